"""A base over two GPUs."""

from __future__ import annotations

import pytest
import torch

from autolr.pack import slot_count
from tests.gpu.training import apart, base_on, config, pack_on, trained

CASES = {
    "classification": ("llama", ("lora",), {}),
    "dora": ("llama", ("dora", "rslora"), {}),
    "full": ("llama", ("full",), {}),
    "checkpointed": ("llama", ("lora",), {"gradient_checkpointing": True}),
    "language": ("llama/lm", ("lora",), {}),
    "language, checkpointed": ("llama/lm", ("dora",), {"gradient_checkpointing": True}),
    "asked to record": ("llama", ("lora",), {"graphs": True, "steps": 6}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_split_base_takes_the_steps_of_a_whole_one(make_gpu, case):
    family, kinds, options = CASES[case]
    expected = trained(family, "cpu", kinds, **{**options, "graphs": False})
    gpu = make_gpu(devices=2)
    assert apart(expected, trained(family, "split", kinds, **options)) < 1e-12
    assert gpu.by_device[0] and gpu.by_device[1] and not gpu.replayed


def test_the_memory_of_both_gpus_bounds_the_slots(make_gpu):
    gpu = make_gpu(devices=2)
    base = base_on("llama", "split", torch.bfloat16)

    def make(count, passes=None, graphs=False):
        return pack_on(base, "llama", graphs=graphs, capacity=count, together=count)

    free = slot_count.measure(make, config(0, 8), 2)
    assert not free.graphs and "several devices" in free.graphs_reason
    held = torch.empty(2**24, dtype=torch.uint8, device="cuda:1")
    gpu.memories[1].limit = gpu.used(1) + free.slot_bytes  # the first GPU has room, the second little
    few = slot_count.measure(make, config(0, 8), 4)
    assert few.slots == 1 and "memory" in few.reason and held.device.index == 1
