"""Where memory runs out: fewer slots at a time, then batches in parts, then an end; the same steps for the rest."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest
import torch

from autolr.data.tasks import Classification, Language
from autolr.errors import RunError
from autolr.pack import slot_count
from autolr.pack.memory import is_out_of_memory
from autolr.pack.pack import Pack
from autolr.pack.slots import SlotConfig
from autolr.progress.callbacks import Callback
from autolr.rundir.result import SearchResult
from autolr.schema.candidate import Candidate
from autolr.schema.training import Training
from autolr.tuner.run import search
from tests import tiny

TASKS = {
    "classification": ("bert", Classification(("a", "b", "c")), tiny.tokens()),
    "language": ("llama/lm", Language((), "token_accuracy"), tiny.tokens(learned=True)),
}
RATES = {"q": 1e-2, "k": 0.0, "v": 2e-2, "head": 1e-2}
OUT = (torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("DefaultCPUAllocator: can't allocate memory"))


def pack_of(task: str = "classification", **options) -> Pack:
    family, what, data = TASKS[task]
    base = tiny.base(family, torch.float64)
    return Pack(base, Training(batch_size=8), what, data, capacity=4, max_rank=8, lora_alpha=16.0, **options)


def config(seed: int, rank: int = 4) -> SlotConfig:
    rates = {role: rate * (1 + seed) for role, rate in RATES.items()}
    return SlotConfig(rates, rank=rank, seed=seed, steps=12)


def ran(pack: Pack, configs, steps: int = 4, prepare=lambda pack: None):
    """Train, and return values, losses and tokens of each slot."""
    with pack:
        slots = [pack.admit(one) for one in configs]
        prepare(pack)
        for _ in range(steps):
            pack.step()
        pack.flush()
        return [(pack.values(slot), slot.losses, slot.tokens, slot) for slot in slots]


def same(found, expected) -> None:
    for (values, losses, tokens, _), (others, other_losses, other_tokens, _) in zip(found, expected, strict=True):
        assert losses == pytest.approx(other_losses, abs=1e-9) and tokens == other_tokens
        for name, value in values.items():
            torch.testing.assert_close(value, others[name], rtol=0, atol=1e-9)


def limit(monkeypatch, pack: Pack, fits, error: Exception = OUT[0]) -> list[int]:
    """Let a pack's passes fail unless `fits(rows, ranks)`; return the rows of those that did not."""
    own, failed = pack.forward, []

    def forward(batch):
        rows, ranks = len(batch["input_ids"]), [part.bound for part in pack.hooks.now.parts]
        largest = max(t.shape[1] for bound in ranks for name, t in bound.items() if name.endswith(".lora_A"))
        output = own(batch)  # so that the failure comes late, when gradients of other passes are there
        if not fits(rows, largest):
            failed.append(rows)
            raise error
        return output

    monkeypatch.setattr(pack, "forward", forward)
    return failed


@pytest.mark.parametrize("parts", [2, 3, 8])
@pytest.mark.parametrize("task", TASKS)
def test_a_batch_in_parts_takes_the_same_step(task, parts):
    configs = [config(seed) for seed in range(2)]

    def cut(pack):
        for slot in pack.slots:
            slot.parts = parts

    same(ran(pack_of(task), configs, prepare=cut), ran(pack_of(task), configs))


@pytest.mark.parametrize("error", OUT, ids=["gpu", "cpu"])
@pytest.mark.parametrize(("rows", "parts"), [(16, 1), (8, 1), (4, 2), (1, 8)])
def test_fewer_slots_at_a_time_then_parts_and_the_same_steps(monkeypatch, rows, parts, error):
    configs = [config(seed) for seed in range(4)]
    pack = pack_of(together=4)
    failed = limit(monkeypatch, pack, lambda count, rank: count <= rows, error)
    found = ran(pack, configs)
    assert failed and max(failed) == 32
    assert pack.together == 2 if rows == 16 else pack.together < 4
    assert {slot.parts for *_, slot in found} == {parts}
    assert not any(slot.unfit for *_, slot in found)
    same(found, ran(pack_of(together=4), configs))


def test_a_slot_that_does_not_fit_ends_and_the_others_are_unharmed(monkeypatch):
    configs = [config(0), config(1, rank=8), config(2), config(3)]
    pack = pack_of(together=4)
    limit(monkeypatch, pack, lambda count, rank: rank < 8)
    found = ran(pack, configs, steps=1)
    assert [slot.unfit is None for *_, slot in found] == [True, False, True, True]
    assert "one example of" in found[1][3].unfit and "does not fit" in found[1][3].unfit
    expected = ran(pack_of(together=4), configs, steps=1)
    same([found[place] for place in (0, 2, 3)], [expected[place] for place in (0, 2, 3)])


def test_passes_side_by_side_become_fewer(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    pack, busy, lock = pack_of(together=1, passes=2), [0], threading.Lock()
    own = pack.forward
    assert pack.crew.workers == 2

    def forward(batch):
        with lock:
            busy[0] += 1
        try:
            time.sleep(0.02)
            if busy[0] > 1:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
            return own(batch)
        finally:
            with lock:
                busy[0] -= 1

    monkeypatch.setattr(pack, "forward", forward)
    configs = [config(seed) for seed in range(3)]
    found = ran(pack, configs)
    assert pack.crew.workers == 1 and {slot.parts for *_, slot in found} == {1}
    same(found, ran(pack_of(together=1, passes=1), configs))


def test_scoring_takes_fewer_examples_at_a_time(monkeypatch):
    data = TASKS["classification"][2]
    with pack_of(together=4) as pack:
        slots = [pack.admit(config(seed)) for seed in range(4)]
        expected = pack.evaluate(slots, data, averaged=False)
        failed = limit(monkeypatch, pack, lambda count, rank: count <= 2)
        found = pack.evaluate(slots, data, averaged=False)
        assert failed
        torch.testing.assert_close(found[0], expected[0], rtol=0, atol=1e-9)
        assert torch.equal(found[1], expected[1])
        limit(monkeypatch, pack, lambda count, rank: False)
        with pytest.raises(RunError, match=r"scoring one text.*data\.max_length"):
            pack.evaluate(slots, data, averaged=False)


def test_other_errors_are_passed_on(monkeypatch):
    pack = pack_of()
    limit(monkeypatch, pack, lambda *_: False, RuntimeError("shapes do not fit"))
    with pytest.raises(RuntimeError, match="shapes"):
        ran(pack, [config(0)])
    assert not is_out_of_memory(RuntimeError("a key was not found")) and is_out_of_memory(MemoryError())


def test_a_slot_that_is_no_number_leaves_the_others_as_they_are():
    configs = [config(seed) for seed in range(3)]

    def poison(pack):
        pack.rows[1].fill_(float("nan"))

    found = ran(pack_of(together=4), configs, prepare=poison)
    expected = ran(pack_of(together=4), configs)
    assert all(loss != loss for loss in found[1][1])
    same([found[0], found[2]], [expected[0], expected[2]])


def test_the_probe_takes_one_slot_in_parts_where_a_batch_does_not_fit(monkeypatch):
    own = Pack.forward

    def forward(pack, batch):
        if len(batch["input_ids"]) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return own(pack, batch)

    monkeypatch.setattr(Pack, "forward", forward)

    def make(count, passes=None, graphs=False):
        return pack_of(passes=passes)

    rows = 2
    found = slot_count.measure(make, replace(config(0), steps=64), 8)
    assert found.slots == 1 and "in 4 parts" in found.reason
    rows = 0
    with pytest.raises(torch.OutOfMemoryError, match="one example"):
        slot_count.measure(make, replace(config(0), steps=64), 8)


class Notes(Callback):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def test_a_search_ends_candidates_that_do_not_fit_and_the_sampler_learns_it(small_study, tmp_path, monkeypatch):
    own, tried = Pack.forward, []

    def forward(pack, batch):
        for slot_part in pack.hooks.now.parts:
            rank = max(t.shape[1] for name, t in slot_part.bound.items() if name.endswith(".lora_A"))
            if rank >= 16:
                tried.append(rank)
                raise torch.OutOfMemoryError("CUDA out of memory.")
        return own(pack, batch)

    monkeypatch.setattr(Pack, "forward", forward)
    space = small_study.space.model_copy(update={"rank": [4, 16]})
    budget = small_study.budget.model_copy(update={"trials": 12})
    study = small_study.model_copy(update={"space": space, "budget": budget, "baselines": ["default", "same_lr"]})
    notes = Notes()
    result = search(study, tmp_path / "run", device="cpu", callback=notes)
    outcomes = [trial.outcome for trial in result.ended()]
    unfit = [trial for trial in result.ended() if trial.outcome == "infeasible"]
    assert len(outcomes) == 12 and unfit and {trial.candidate.rank for trial in unfit} == {16}
    # Those that began before the first had ended may be among them; none after.
    assert len(unfit) <= study.search.slots
    after = [trial for trial in result.ended() if trial.number > unfit[-1].number]
    assert after and {trial.candidate.rank for trial in after} == {4}
    assert result.recipe.candidate.rank == 4
    assert result.recipe.evidence.trials["infeasible"] == len(unfit)
    assert any("does not fit the device's memory" in line for line in notes.said)
    trial = SearchResult.load(result.folder).trials[unfit[0].number]
    assert trial.score is None and trial.outcome == "infeasible"


def test_a_baseline_outside_the_space_that_does_not_fit_is_left_out(small_study, tmp_path, monkeypatch):
    own = Pack.forward

    def forward(pack, batch):
        if "k" in pack.hooks.now.used:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return own(pack, batch)

    monkeypatch.setattr(Pack, "forward", forward)
    study = small_study.model_copy(update={"baselines": ["default", "with_k"]})
    result = search(study, tmp_path / "run", device="cpu")
    unfit = [one for one in result.trainings if one.infeasible]
    assert [one.label for one in unfit] == ["with_k"] * study.search.seeds
    assert "with_k" not in [score.label for score in result.recipe.evidence.scores]
    again = search(study, tmp_path / "run", device="cpu")  # and not tried again
    assert again.trainings == result.trainings


def test_which_candidates_take_at_least_as_much():
    small = Candidate(lr_v=1e-3, ratio=1, rank=4)
    assert small.model_copy(update={"rank": 8, "lr_v": 1.0}).is_as_large_as(small)
    assert small.model_copy(update={"targets": "qkv"}).is_as_large_as(small)
    assert small.model_copy(update={"kind": "dora"}).is_as_large_as(small)
    for change in ({"rank": 2}, {"targets": "v"}):
        assert not small.model_copy(update=change).is_as_large_as(small)
