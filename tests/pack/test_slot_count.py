"""The number of slots: as many as pay, never more than fit."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest
import torch

from autolr.pack import memory, slot_count
from autolr.pack.pack import Pack
from autolr.pack.slots import SlotConfig
from autolr.schema.training import Training
from tests import tiny
from tests.pack.test_packed_equals_alone import TASK

CONFIG = SlotConfig({"q": 1e-3, "k": 0.0, "v": 1e-3, "head": 1e-3}, rank=4, seed=0, steps=20)
BASE, EACH = 1000, 100


class Device:
    """A device whose memory is a line and whose throughput saturates; it out of memory where a real one is."""

    def __init__(self, size: int, saturation: float, bend: int = 0) -> None:
        self.size, self.saturation, self.bend = size, saturation, bend
        self.tried: list[int] = []

    def __call__(self, slots: int) -> tuple[int, float]:
        self.tried.append(slots)
        peak = BASE + EACH * slots + self.bend
        assert peak <= self.size, "out of memory"
        return peak, slots / (1 + slots / self.saturation)


def test_doubles_while_it_pays():
    slots, reason, _, rates = slot_count.knee(Device(10**9, saturation=16), limit=10**9, most=1000)
    assert rates[slots] >= slot_count.WORTHWHILE * rates[slots // 2]
    assert rates[2 * slots] < slot_count.WORTHWHILE * rates[slots]
    assert "times as fast" in reason


@pytest.mark.parametrize("size", [1100, 1250, 1500, 2700, 4000, 20_000])
def test_never_tries_what_does_not_fit(size):
    device = Device(size, saturation=1e9)
    slots, reason, peaks, _ = slot_count.knee(device, limit=size, most=10**6)
    assert BASE + EACH * slots <= size
    assert slot_count.predict(peaks, slots) == BASE + EACH * slots
    assert slots == 256 or "fit" in reason


def test_no_more_slots_than_trials_and_a_wish_is_kept():
    assert slot_count.knee(Device(10**9, 1e9), limit=10**9, most=24)[0] == 16
    device = Device(10**9, 1e9)
    slots, reason, peaks, _ = slot_count.knee(device, limit=10**9, most=24, wanted=13)
    assert (slots, reason, device.tried) == (13, "as asked", [1, 2])
    assert slot_count.predict(peaks, 13) == BASE + 13 * EACH


def make_pack(slots: int, passes: int | None = None) -> Pack:
    training = Training(batch_size=4)
    return Pack(
        tiny.base("bert"), training, TASK, tiny.tokens(), capacity=slots, max_rank=8, lora_alpha=16, passes=passes
    )


def test_on_a_cpu(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    found = slot_count.measure(make_pack, CONFIG, most=24)
    with make_pack(1) as pack:
        buffers = [pack.rows, pack.averages, *pack.optimizer.state.values(), pack.block.gradients]
        assert found.slot_bytes == sum(buffer.nbytes for buffer in buffers)
    assert found.slots == slot_count.CPU_SLOTS
    assert slot_count.measure(make_pack, CONFIG, most=1).slots == 1
    assert slot_count.measure(make_pack, CONFIG, most=24, wanted=40).slots == 40


@pytest.mark.parametrize(
    ("cores", "room", "passes", "slots"), [(16, 3.5, 3, 3), (4, 999, 4, 4), (1, 999, 1, 2), (1, 1.5, 1, 1)]
)
def test_little_memory_means_few_slots(monkeypatch, cores, room, passes, slots):
    with make_pack(1) as pack:
        row = 5 * 4 * pack.rows.shape[1]
    # A machine where a pass takes what its slot's row takes, and there is room for so many.
    monkeypatch.setattr(slot_count, "resident_bytes", lambda: BASE)
    monkeypatch.setattr(slot_count, "free_memory", lambda *_: int(room * row / slot_count.USABLE_SHARE))
    monkeypatch.setattr(slot_count, "_probe_cpu", lambda make_pack, config, passes: BASE + passes * row)
    monkeypatch.setattr(torch, "get_num_threads", lambda: cores)
    found = slot_count.measure(make_pack, CONFIG, most=24)
    assert (found.passes, found.slots) == (passes, slots)
    assert found.peak_bytes == BASE + slots * row


def test_the_peak_of_a_cpu_is_the_process_own():
    found = slot_count.measure(make_pack, CONFIG, most=24)
    assert memory.resident_bytes() <= found.peak_bytes
    peak = memory.peak_bytes(torch.device("cpu"))
    assert found.peak_bytes == pytest.approx(slot_count.HEAP_FRAGMENTATION * peak, rel=0.1)


def test_free_memory_is_what_torch_can_have():
    gc.collect()
    free = slot_count.free_memory()
    assert free > 100 * 2**20
    block = torch.ones(150 * 2**20)  # 600 MiB: what others on the machine do is less
    assert slot_count.free_memory() < free - 100 * 2**20
    del block


def test_the_peak_is_not_that_of_the_parent_process():
    code = "import torch; from autolr.pack.memory import peak_bytes; print(peak_bytes(torch.device('cpu')))"
    block = torch.ones(400 * 2**20)  # 1.6 GiB here, which Linux's ru_maxrss would hand down
    found = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert 0 < found < block.nbytes
