"""Memory that runs out, at each allocation in turn: the same steps, nothing left behind, and a clear end."""

from __future__ import annotations

import gc

import pytest
import torch

from autolr.errors import RunError
from tests.gpu.training import apart, base_on, config, pack_on, result


@pytest.fixture(scope="module", autouse=True)
def quick_collections():
    """Let the garbage collector, which a shortage calls, look at what these tests make, and at nothing older."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


CASES = {"bert": ("lora", "dora", "full"), "llama/lm": ("lora",)}
# One of so many allocations fails: few enough to be quick, and prime, so that all kinds of them are met.
STRIDE = {"bert": 17, "llama/lm": 23}


def expected(family: str, steps: int):
    with pack_on(base_on(family, "cpu"), family, kinds=CASES[family]) as pack:
        slots = admitted(pack, family)
        for _ in range(steps):
            pack.step()
        return result(pack, slots)


def admitted(pack, family):
    kinds = CASES[family]
    return [pack.admit(config(seed, 4, kinds[seed % len(kinds)], steps=200)) for seed in range(3)]


def allocations_of(gpu, work) -> int:
    before = gpu.allocations
    work()
    return gpu.allocations - before


def steps_short_of_memory(gpu, pack, places: range) -> int:
    """Take a step for each place: there an allocation fails, as if it were the first shortage. Return how many."""
    together, scratch = pack.together, pack.optimizer.scratch
    for place in places:
        shortages = gpu.shortages
        gpu.fail_after(place)
        pack.step()
        pack.flush()
        gpu.fail_after(None)
        assert gpu.shortages == shortages + 1, place
        assert not any(slot.unfit for slot in pack.slots)
        pack.together, pack.optimizer.scratch = together, scratch
        for slot in pack.slots:
            slot.parts = 1
    return len(places)


@pytest.mark.parametrize("family", CASES)
def test_a_shortage_anywhere_in_a_step_changes_nothing_but_how_it_is_taken(gpu, family):
    base = base_on(family, "cuda")
    with pack_on(base, family, kinds=CASES[family]) as pack:
        slots = admitted(pack, family)
        pack.step()
        pack.flush()
        gc.collect()
        held, count = gpu.used(), allocations_of(gpu, pack.step)
        steps = 2 + steps_short_of_memory(gpu, pack, range(0, count, STRIDE[family]))
        found = result(pack, slots)
        gc.collect()
        assert gpu.used() <= held
    assert count > 100 and steps > 10
    assert apart(expected(family, steps), found) < 1e-10


@pytest.mark.parametrize("family", CASES)
def test_a_shortage_in_the_last_allocations_of_a_step_does_not_take_it_twice(gpu, family):
    # The optimizer's are the last: rows that have moved must not move again.
    with pack_on(base_on(family, "cuda"), family, kinds=CASES[family]) as pack:
        slots = admitted(pack, family)
        pack.step()
        count = allocations_of(gpu, pack.step)
        steps = 2 + steps_short_of_memory(gpu, pack, range(count - 12, count))
        found = result(pack, slots)
    assert apart(expected(family, steps), found) < 1e-10


@pytest.mark.parametrize("family", CASES)
def test_a_shortage_anywhere_in_scoring_changes_nothing(gpu, family):
    with pack_on(base_on(family, "cuda"), family, kinds=CASES[family]) as pack:
        slots = admitted(pack, family)
        pack.step()
        pack.flush()
        before = pack.evaluate(slots, pack.data, averaged=False)
        gc.collect()
        held, budget = gpu.used(), pack.budget
        count = allocations_of(gpu, lambda: pack.evaluate(slots, pack.data, averaged=False))
        for place in range(0, count, STRIDE[family]):
            gpu.fail_after(place)
            found = pack.evaluate(slots, pack.data, averaged=False)
            gpu.fail_after(None)
            for one, other in zip(found, before, strict=True):
                assert (one - other).abs().max() < 1e-10, place
            pack.budget = budget
        del found
        gc.collect()
        assert gpu.used() == held and count > 20


def test_scoring_keeps_what_it_found_to_fit(gpu):
    # Else each scoring would fail as often as the first.
    with pack_on(base_on("llama/lm", "cuda"), "llama/lm") as pack:
        slots = admitted(pack, "llama/lm")
        gpu.reset_peak()
        before, _ = pack.evaluate(slots, pack.data, averaged=False)
        gpu.limit = int(gpu.used() + 0.3 * (gpu.peak() - gpu.used()))
        found, _ = pack.evaluate(slots, pack.data, averaged=False)
        assert (found - before).abs().max() < 1e-10 and gpu.shortages > 0
        shortages = gpu.shortages
        pack.evaluate(slots, pack.data, averaged=True)
        assert gpu.shortages == shortages


@pytest.mark.parametrize("family", CASES)
def test_a_checkpoint_needs_no_memory_of_the_gpu(gpu, family):
    with pack_on(base_on(family, "cuda"), family, kinds=CASES[family]) as pack:
        slots = admitted(pack, family)
        pack.step()
        pack.flush()
        gpu.limit = gpu.reserved()
        torch.cuda.empty_cache()
        gpu.limit = gpu.used()
        gpu.forget()
        states = [pack.state(slot) for slot in slots]
        assert all(tensor.device.type == "cpu" for state in states for tensor in state.values())
        assert sum(gpu.waits.values()) <= 4 * len(slots)  # one for each row, not one for each tensor
        gpu.limit = 2**34
        values = [pack.values(slot) for slot in slots]
    for state, own in zip(states, values, strict=True):
        assert {f"weights.{name}" for name in own} <= state.keys()
        assert all(torch.equal(state[f"weights.{name}"], value.cpu()) for name, value in own.items())


def on_a_card(gpu, base, family: str, part: float = 1.0, room: int = 2**30):
    """Train and score on a card with room for a part; return the training and its peak beyond the rows."""
    with pack_on(base, family, kinds=CASES[family]) as pack:
        fixed = gpu.used()
        gpu.limit = int(fixed + part * room)
        gpu.reset_peak()
        slots = admitted(pack, family)
        for _ in range(3):
            pack.step()
        found = result(pack, slots)
        assert not any(slot.unfit for slot in slots)
        return found, gpu.peak() - fixed


@pytest.mark.parametrize("family", CASES)
def test_a_card_that_is_too_small_takes_the_same_steps(gpu, family):
    base = base_on(family, "cuda")
    before = gpu.used()
    free, room = on_a_card(gpu, base, family)
    for part in (0.35, 0.03):
        shortages = gpu.shortages
        found, _ = on_a_card(gpu, base, family, part, room)
        gc.collect()
        assert apart(free, found) < 1e-10
        assert gpu.used() == before and gpu.shortages > shortages
        torch.cuda.empty_cache()


def test_a_slot_of_which_not_one_example_fits_ends_and_says_so(gpu):
    base = base_on("bert", "cuda")
    with pack_on(base, "bert") as pack:
        slots = [pack.admit(config(seed)) for seed in range(2)]
        torch.cuda.empty_cache()
        gpu.limit = gpu.used() + 2**12
        try:
            pack.step()
        except RunError as error:  # the others cannot take their step either
            assert "memory" in str(error)
        assert all("does not fit the device's memory" in (slot.unfit or "") for slot in slots)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_slot_that_could_not_be_admitted_leaves_the_others_alone(gpu, kind):
    with pack_on(base_on("bert", "cuda"), "bert", kinds=("lora", kind) if kind != "lora" else ("lora",)) as pack:
        first = pack.admit(config(0, 2))
        pack.step()
        pack.flush()
        before = {name: value.cpu() for name, value in pack.values(first).items()}
        count = allocations_of(gpu, lambda: pack.evict(pack.admit(config(1, 8, kind))))
        for place in range(count):
            gpu.fail_after(place)
            try:
                pack.evict(pack.admit(config(1, 8, kind)))
            except torch.OutOfMemoryError:
                assert pack.slots == [first], f"a slot that was not admitted is there (allocation {place})"
            gpu.fail_after(None)
            after = {name: value.cpu() for name, value in pack.values(first).items()}
            assert all(torch.equal(value, after[name]) for name, value in before.items())
