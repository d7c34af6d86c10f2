"""A search that is killed goes on as if nothing had happened."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open

from autolr.data.tasks import task_of
from autolr.pack.pack import Pack
from autolr.pack.slots import SlotConfig
from autolr.progress import state
from autolr.progress.callbacks import Callback
from autolr.rundir import records, storage
from autolr.rundir.folder import RunFolder
from autolr.rundir.result import SearchResult
from autolr.schema import yaml_io
from autolr.schema.study import Study
from autolr.schema.training import Training
from autolr.tuner.execute import checkpoints, trials
from autolr.tuner.run import search
from autolr.tuner.workers import leases
from autolr.tuner.workers.leases import SILENT, Leases
from tests import tiny
from tests.tuner.test_search import Stop, facts

ROOT = Path(__file__).resolve().parents[2]
RATES = {"q": 2e-3, "k": 0.0, "v": 8e-3, "head": 1e-2}


class Killed(BaseException):
    """The process is gone: nothing more is written."""


class Notes(Callback):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, small_study) -> SearchResult:
    return search(small_study, tmp_path_factory.mktemp("whole") / "run", device="cpu")


def same(found, expected) -> bool:
    """Return True if two searches have found the same, to what batches of another make-up round."""
    if isinstance(found, SearchResult):
        (one, other), recipes = (facts(found), facts(expected)), (found.recipe, expected.recipe)
        assert recipes[0].candidate == recipes[1].candidate and recipes[0].rates == recipes[1].rates
        return same(one[:2], other[:2])
    if isinstance(found, float) and isinstance(expected, float):
        return found == pytest.approx(expected, rel=1e-4, abs=1e-5)
    if isinstance(found, dict):
        return found.keys() == expected.keys() and all(same(found[key], expected[key]) for key in found)
    if isinstance(found, (list, tuple)):
        return len(found) == len(expected) and all(same(*pair) for pair in zip(found, expected, strict=True))
    return found == expected


@pytest.mark.parametrize("kind", ["lora", "dora", "full"])
def test_a_slot_goes_on_from_its_state_to_the_last_bit(kind):
    base, data = tiny.base("bert"), tiny.tokens()
    rank = 0 if kind == "full" else 3
    config = SlotConfig(RATES, rank, seed=1, steps=9, kind=kind)

    def pack() -> Pack:
        training = Training(batch_size=4, weight_decay=0.1)
        task = task_of("classification", ["a", "b", "c"], None, data.labels)
        return Pack(base, training, task, data, capacity=1, max_rank=rank and 4, lora_alpha=16, kinds=[kind])

    with pack() as alone:
        whole = alone.admit(config)
        for _ in range(4):
            alone.step()
        kept, losses, tokens = alone.state(whole), list(whole.losses), whole.tokens
        for _ in range(5):
            alone.step()
        expected = alone.state(whole)
    with pack() as later:
        resumed = later.restore(config, kept, 4, losses, tokens)
        for _ in range(5):
            later.step()
        assert resumed.losses == whole.losses and resumed.tokens == whole.tokens and resumed.done
        found = later.state(resumed)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_state_that_does_not_fit_leaves_the_slot_free():
    data = tiny.tokens()
    task = task_of("classification", ["a", "b", "c"], None, data.labels)
    with Pack(tiny.base("bert"), Training(batch_size=4), task, data, capacity=1, max_rank=4, lora_alpha=16) as pack:
        kept = pack.state(slot := pack.admit(SlotConfig(RATES, 4, seed=1, steps=9)))
        pack.evict(slot)
        with pytest.raises(RuntimeError, match="more than"):
            pack.restore(SlotConfig(RATES, 4, 1, 9), {name: torch.ones(99, 99) for name in kept}, 1, [0.5], 1)
        with pytest.raises(KeyError):
            pack.restore(SlotConfig(RATES, 4, 1, 9), {}, 1, [0.5], 1)
        assert pack.free == 1


def fail_at(monkeypatch, number: int, half: bool) -> list[int]:
    """Let the process die at its write of that number, before or in the middle of it; return the count of writes."""
    count = [0]

    def dying(write, spoil):
        def call(*arguments, **options):
            count[0] += 1
            if count[0] > number:
                raise Killed
            if count[0] == number:
                if half:
                    spoil(*arguments)
                raise Killed
            return write(*arguments, **options)

        return call

    def half_a_line(path) -> None:
        with Path(path).open("ab") as file:
            file.write(b'{"number": 3, "cand')

    monkeypatch.setattr(
        storage.Journal, "append_logs", dying(storage.Journal.append_logs, lambda own, logs: half_a_line(own._path))
    )
    monkeypatch.setattr(records, "append", dying(records.append, lambda path, record: half_a_line(path)))
    monkeypatch.setattr(
        yaml_io,
        "write_bytes",
        dying(yaml_io.write_bytes, lambda path, content: path.with_name(f".{path.name}.x").write_bytes(content[:9])),
    )
    return count


def writes_of(study, folder: Path, patch: pytest.MonkeyPatch) -> int:
    count = fail_at(patch, 10**9, half=False)
    search(study, folder, device="cpu")
    return count[0]


def test_a_search_that_dies_at_any_write_goes_on_as_if_it_had_not(small_study, tmp_path, monkeypatch):
    content = small_study.model_dump()
    content["budget"]["trials"] = 6
    # At higher rates what is rounded otherwise, in a pass of others, grows within a few steps.
    content["space"]["lr_v"] = {"low": 2e-4, "high": 1e-2}
    study = Study.model_validate(content)
    asked = itertools.count()
    # Checkpoints of all slots at every third step, whatever the clock on the wall says.
    monkeypatch.setattr(checkpoints.Checkpoints, "due", property(lambda self: next(asked) // 2 % 3 == 2))
    monkeypatch.setattr(state, "EVERY", 1e9)
    with monkeypatch.context() as patch:
        total = writes_of(study, tmp_path / "counted", patch)
    undisturbed = SearchResult.load(tmp_path / "counted")
    rng = random.Random(0)
    deaths = sorted(rng.sample(range(20, total - 1), 6))
    run = tmp_path / "run"
    for number, at in enumerate(deaths):
        shutil.rmtree(run, ignore_errors=True)
        asked = itertools.count()
        with monkeypatch.context() as patch:
            fail_at(patch, at, half=number % 2 == 0)
            with pytest.raises(Killed):
                search(study, run, device="cpu")
        before = SearchResult.load(run)
        result = search(study, run, device="cpu")
        assert same(result, undisturbed), f"killed at write {at} of {total}"
        kept = {trial.number: trial for trial in result.ended()}
        assert all(kept[trial.number] == trial for trial in before.ended())
        assert not (run / "slots").exists()


def test_a_search_that_is_stopped_goes_on_to_the_same_end(undisturbed, small_study, tmp_path):
    for steps in (7, 19):
        with pytest.raises(KeyboardInterrupt):
            search(small_study, tmp_path / str(steps), device="cpu", callback=Stop(steps))
        assert same(search(small_study, tmp_path / str(steps), device="cpu"), undisturbed)


class StopInTheFinals(Stop):
    """Presses Ctrl-C after so many steps of the finals."""

    phase_now = ""

    def phase(self, name: str, total: int, done: int) -> None:
        self.phase_now = name

    def stepped(self, running, capacity) -> None:
        if self.phase_now == "100%":
            super().stepped(running, capacity)


def test_what_has_no_rungs_is_kept_as_often_as_trials_are(undisturbed, small_study, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "CHECKPOINT_INTERVAL_S", 1e9)
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        search(small_study, run, device="cpu", callback=StopInTheFinals(7))
    kept = sorted((run / "slots").glob("*-step24.safetensors"))
    assert kept
    for file in kept:
        with safe_open(file, framework="pt") as tensors:
            head = json.loads(tensors.metadata()["autolr"])
        assert head["step"] == head["begun"] + 4  # rungs are at 4 and 8
    resumed = search(small_study, run, device="cpu")
    assert same(resumed, undisturbed)
    # What the trials had trained is not counted again, however often a final was gone on with.
    assert [one.tokens for one in resumed.finals] == [one.tokens for one in undisturbed.finals]


def test_finals_go_on_where_their_trials_ended(undisturbed, small_study, tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        search(small_study, tmp_path / "damaged", device="cpu", callback=StopInTheFinals(1))
    for file in (tmp_path / "damaged" / "slots").glob("*.safetensors"):
        file.write_bytes(b"no tensors")
    notes = Notes()
    from_the_start = search(small_study, tmp_path / "damaged", device="cpu", callback=notes)
    assert any("trial-0.safetensors: is damaged" in note for note in notes.said)
    assert same(from_the_start, undisturbed)
    # So do trainings whose trials' ends were not among those kept: the default's alone is.
    monkeypatch.setattr(trials, "ENDS_KEPT", 0)
    with pytest.raises(KeyboardInterrupt):
        search(small_study, tmp_path / "few", device="cpu", callback=StopInTheFinals(1))
    assert [file.stem for file in (tmp_path / "few" / "slots").glob("trial-*.safetensors")] == ["trial-0"]
    assert same(search(small_study, tmp_path / "few", device="cpu"), undisturbed)
    tried = {trial.candidate: trial for trial in undisturbed.ended()}
    half = {one.candidate: one for one in undisturbed.ladder["50%"]}
    saved = 0
    for whole, final in zip(from_the_start.finals, undisturbed.finals, strict=True):
        stages = [tried[final.candidate], *([half[final.candidate]] if final.candidate in half else [])]
        assert stages[0].outcome == "finished" or "default" in final.label
        begun = sum(stage.tokens for stage in stages)
        assert final.tokens == whole.tokens - begun
        assert len(final.curve) == 24 and final.curve[: len(stages[-1].curve)] == stages[-1].curve
        saved += begun
    costs = [one.recipe.evidence.cost.trained_tokens for one in (undisturbed, from_the_start)]
    assert costs[1] - costs[0] == saved > 0


def test_a_search_killed_with_signal_9_goes_on_with_the_same_command(undisturbed, small_study, tmp_path):
    small_study.save(tmp_path / "study.yaml")
    # As the command does, but with a line when training begins and many checkpoints.
    script = (
        "import sys; from autolr.search import checkpoints, loop; from autolr.tuner.run import search;"
        "from autolr.schema.study import Study;"
        "checkpoints.CHECKPOINT_INTERVAL_S, checkpoints.MAX_WRITING_SHARE = 0.05, 1.0;"
        "step = loop._step;"
        "loop._step = lambda *a: (print(flush=True), step(*a))[1];"
        "search(Study.load(sys.argv[1]), sys.argv[2], device='cpu')"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "study.yaml"), str(tmp_path / "run")]
    rng = random.Random(0)
    for _ in range(2):
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
        ) as going:
            for _ in range(rng.randrange(5, 40)):
                going.stdout.readline()
            time.sleep(rng.uniform(0, 0.05))
            going.send_signal(signal.SIGKILL)
    result = search(small_study, tmp_path / "run", device="cpu")
    assert same(result, undisturbed)


def test_half_a_last_line_is_dropped_and_said(undisturbed, small_study, tmp_path):
    shutil.copytree(undisturbed.folder, tmp_path / "run")
    folder, notes = RunFolder(tmp_path / "run"), Notes()
    for path in (folder.curves, folder.trainings, folder.phases, folder.journal):
        with path.open("ab") as file:
            file.write(b'{"number": 1, "candi')
    more = small_study.model_copy(update={"budget": small_study.budget.model_copy(update={"trials": 10})})
    result = search(more, folder.path, device="cpu", callback=notes)
    assert len(result.ended()) == 10
    assert [t for t in result.trials if t.number < 9] == undisturbed.trials
    for name in ("curves.jsonl", "trainings.jsonl", "phases.jsonl"):
        assert any(note.startswith(f"{name}: its last line was cut off") for note in notes.said)
    assert all(line.startswith(b"{") and line.endswith(b"}") for line in folder.journal.read_bytes().splitlines())


def test_a_damaged_checkpoint_is_said_and_its_trial_starts_anew(undisturbed, small_study, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "CHECKPOINT_INTERVAL_S", 0.0)
    with pytest.raises(KeyboardInterrupt):
        search(small_study, tmp_path / "run", device="cpu", callback=Stop(7))
    kept = sorted((tmp_path / "run" / "slots").glob("*.safetensors"))
    assert [path.stem for path in kept] == ["trial-0", "trial-1", "trial-2", "trial-3"]
    kept[0].write_bytes(kept[0].read_bytes()[:1000])
    kept[1].write_bytes(b"no tensors")
    notes = Notes()
    result = search(small_study, tmp_path / "run", device="cpu", callback=notes)
    assert len([note for note in notes.said if "ignoring it for" in note]) >= 2
    curves = {trial.candidate: trial.curve for trial in undisturbed.ended()}
    again = [trial for trial in result.ended() if trial.candidate in curves and trial.outcome == "finished"]
    assert again
    for trial in again:
        shorter = min(len(trial.curve), len(curves[trial.candidate]))
        assert trial.curve[:shorter] == pytest.approx(curves[trial.candidate][:shorter], rel=1e-3)


def test_cutting_off_a_last_line(tmp_path):
    path = tmp_path / "lines"
    assert storage.cut_last_line(path) == 0
    for content, left in ((b"", b""), (b"half", b""), (b"one\n", b"one\n"), (b"one\nha", b"one\n")):
        path.write_bytes(content)
        assert storage.cut_last_line(path) == len(content) - len(left)
        assert path.read_bytes() == left
    path.write_bytes(b"one\n" + b"x" * 200_000)
    assert storage.cut_last_line(path) == 200_000
    assert path.read_bytes() == b"one\n"


def test_workers_of_other_machines_are_gone_when_they_are_silent(small_study, tmp_path, monkeypatch):
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    study, clock = folder.optuna(small_study), [1000.0]
    monkeypatch.setattr(leases, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    one = Leases(folder, study, "one")

    def sign(beat, **other):
        study.set_user_attr("worker:two", {"host": "elsewhere", "pid": 1, "born": 0.0, "beat": beat, **other})
        return study.user_attrs

    assert one.alive("two", sign(1))
    clock[0] += SILENT - 1
    assert one.alive("two", study.user_attrs)
    clock[0] += 2
    assert not one.alive("two", study.user_attrs)
    assert one.alive("two", sign(2))  # it was only slow
    assert not one.alive("two", sign(-1))  # it has said that it ends
    assert not one.alive("three", study.user_attrs) and not one.alive(None, study.user_attrs)
    here = dict(one._sign)
    assert not one.alive("two", sign(3, host=here["host"], pid=2**22 + 1))
    assert one.alive("two", sign(3, **here))
    with one.lock():
        assert one.take("repeat-a") and one.take("repeat-a") and one.holds("repeat-a")
    sign(4)
    two = Leases(folder, study, "two")
    assert (
        not two.take("repeat-a") if one.alive("one", study.user_attrs) and "worker:one" in study.user_attrs else True
    )
    with one.working():
        assert not two.take("repeat-a") and not two.holds("repeat-a")
    assert two.take("repeat-a") and not one.holds("repeat-a")
