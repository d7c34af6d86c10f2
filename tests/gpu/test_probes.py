"""What is measured before a search: that it covers what the search does, and that it leaves nothing behind."""

from __future__ import annotations

import gc

import pytest
import torch

from autolr.pack import slot_count
from tests import tiny
from tests.gpu.training import base_on, config, pack_on

MIB = 2**20


def make_for(family: str, dtype: torch.dtype = torch.bfloat16):
    base = base_on(family, "cuda", dtype)

    def make(count, passes=None, graphs=False):
        return pack_on(base, family, graphs=graphs, capacity=count, together=count)

    return make


@pytest.mark.parametrize("family", ["bert", "llama/lm"])
def test_training_and_scoring_stay_below_the_peak_that_was_predicted(gpu, family):
    make = make_for(family)
    found = slot_count.measure(make, config(0, 8), 8, wanted=2)
    assert gpu.peak() < found.peak_bytes / 2  # what follows has a peak of its own
    more = tiny.tokens(48, seed=1, learned=family != "bert")
    with make(2) as pack:
        slots = [pack.admit(config(seed, 8)) for seed in range(2)]
        for _ in range(6):
            pack.step()
        pack.evaluate(slots, more, averaged=True)
        pack.evaluate(slots, pack.data, averaged=False)
        pack.flush()
    assert 0 < gpu.peak() <= 1.05 * found.peak_bytes


def test_passes_of_a_language_model_are_not_recorded_and_not_probed_so(gpu):
    found = slot_count.measure(make_for("llama/lm"), config(0, 8), 1)
    assert not found.graphs and "not recorded" in found.graphs_reason
    assert gpu.replayed == 0 and not any("graphs.py" in line for line in gpu.waits)


@pytest.mark.parametrize("family", ["bert", "qwen3_moe"])
def test_probes_leave_nothing_behind(gpu, family):
    make = make_for(family)
    before = gpu.used()
    found = slot_count.measure(make, config(0, 8), 1)
    gc.collect()
    torch.cuda.empty_cache()
    assert gpu.used() == gpu.reserved() == before
    assert not gpu.stuck and torch.cuda.current_stream().stream_id == 0
    if family == "bert":
        assert found.graphs_reason.endswith("times as fast")
    else:
        assert not found.graphs and found.graphs_reason.startswith("cannot be recorded")


def test_slots_are_as_many_as_the_card_holds(gpu):
    make = make_for("llama/lm")
    two = slot_count.measure(make, config(0, 8), 8, wanted=2)
    gpu.limit = int((two.peak_bytes + 0.5 * two.slot_bytes) / slot_count.USABLE_SHARE)
    found = slot_count.measure(make, config(0, 8), 4)
    assert found.slots <= 2 and "memory" in found.reason
    with make(found.slots) as pack:
        for seed in range(found.slots):
            pack.admit(config(seed, 8))
        for _ in range(3):
            pack.step()
        assert pack.together == found.slots and not any(slot.parts > 1 for slot in pack.slots)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    ],
    ids=["torch", "cublas", "driver", "cudnn"],
)
def test_a_shortage_of_any_library_ends_the_doubling_of_slots(error):
    def probe(slots: int) -> tuple[int, float]:
        if slots > 4:
            raise error
        return slots * MIB, float(slots)

    slots, reason, peaks, rates = slot_count.knee(probe, 2**40, 64)
    assert slots == 4 and "memory" in reason and set(peaks) == set(rates) == {1, 2, 4}


def test_another_error_of_a_probe_is_passed_on():
    def probe(slots: int) -> tuple[int, float]:
        if slots > 1:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return MIB, 1.0

    with pytest.raises(RuntimeError, match="illegal memory access"):
        slot_count.knee(probe, 2**40, 64)


def test_a_card_without_room_for_one_batch_trains_it_in_parts(gpu):
    make = make_for("bert")
    one = slot_count.measure(make, config(0, 8), 1, wanted=1)
    gc.collect()
    fixed = gpu.used() + 5 * 4 * 16_000
    gpu.limit = int(fixed + 0.3 * (one.peak_bytes - fixed))
    found = slot_count.measure(make, config(0, 8), 8)
    assert found.slots == 1 and "parts, which take the same step" in found.reason
    assert not gpu.stuck
