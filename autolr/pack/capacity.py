"""How many slots a pack gets: what the device's memory holds, and no more than pay.

The memory of a pack is a straight line in its slots: the base model once, and for each slot its
row in the five buffers (weights, averages, gradients, two moments: 20 bytes a parameter) and,
where slots share a forward pass, its activations. The line is measured on the widest batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from autolr.data.batches import CYCLE
from autolr.pack.graphs import WARM
from autolr.pack.memory import free_memory, is_out_of_memory, peak_bytes, release, resident_bytes
from autolr.pack.pack import GIVE_BACK, Pack
from autolr.pack.slots import SlotConfig

# Of the memory that is free, this share is used: other processes, fragmentation.
SHARE = 0.85
# On a CPU as many slots train side by side as it has threads, and so many at least. More would train no faster, and
# begin before the first have taught the sampler anything.
CPU_SLOTS = 2
# Twice the slots must train this much faster in sum to be worth their memory.
WORTHWHILE = 1.1
MOST_SLOTS = 256
WARM_UP, TIMED = 2, 8
# Examples that are scored to probe the memory of a CPU.
SCORED = 256
# Over a search the heap of a CPU's process comes to this many times the probe's: pieces between what is in use.
PIECES = 1.06
GIB = 2**30


@dataclass(frozen=True)
class Capacity:
    """What was found out about a device.

    Attributes:
        slots: the number chosen.
        reason: why, in words.
        peak_bytes: memory in use at the highest, predicted for this number of slots.
        slot_bytes: what one more slot takes.
        free_bytes: memory that was free before.
        rates: trial-steps per second, all slots together, for each number that was tried.
        passes: forward passes that run side by side.
        graphs: whether recorded passes are replayed.
        graphs_reason: why, in words; None on a CPU, which has none.
    """

    slots: int
    reason: str
    peak_bytes: int
    slot_bytes: int
    free_bytes: int
    rates: dict[int, float]
    passes: int = 1
    graphs: bool = False
    graphs_reason: str | None = None


def measure(make_pack: Callable[..., Pack], config: SlotConfig, most: int, wanted: int | None = None) -> Capacity:
    """Choose the number of slots by trying.

    Args:
        make_pack: returns an empty pack with room for so many slots, so many passes side by side, with graphs or not.
        config: of a trial that takes as much memory as any.
        most: more slots are never needed.
        wanted: the user's own choice; it is kept, and its memory predicted.

    Raises:
        torch.OutOfMemoryError: not even one slot fits, with one example at a time.
    """
    with make_pack(1) as pack:
        device = pack.device
        row_bytes = (6 if config.heads else 5) * pack.rows.element_size() * pack.rows.shape[1]
    try:
        if device.type == "cuda":
            return _on_gpu(make_pack, config, most, wanted)
        return _on_cpu(make_pack, config, most, wanted, row_bytes)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    release(device)
    return _in_parts(make_pack, config, row_bytes)


def _on_gpu(make_pack: Callable[..., Pack], config: SlotConfig, most: int, wanted: int | None) -> Capacity:
    free = free_memory(cuda=True)
    limit = int(SHARE * free) + torch.cuda.memory_allocated()
    slots, reason, peaks, rates = knee(lambda count: _probe(make_pack, config, count), limit, most, wanted)
    graphs, why = recording(lambda on: _probe(make_pack, config, slots, graphs=on)[1], predict(peaks, slots), limit)
    return Capacity(slots, reason, predict(peaks, slots), slope(peaks), free, rates, graphs=graphs, graphs_reason=why)


def _in_parts(make_pack: Callable[..., Pack], config: SlotConfig, row_bytes: int) -> Capacity:
    """Return one slot whose batches are trained in parts, since they do not fit at once."""
    with make_pack(1) as pack:
        _fill(pack, config, 1, widest=True)
        pack.step()
        slot, device = pack.slots[0], pack.device
    if slot.unfit:
        raise torch.OutOfMemoryError(slot.unfit)
    reason = f"a batch does not fit the memory at once: it is trained in {slot.parts} parts, which take the same step"
    return Capacity(1, reason, peak_bytes(device), row_bytes, free_memory(cuda=device.type == "cuda"), {})


def _on_cpu(
    make_pack: Callable[..., Pack], config: SlotConfig, most: int, wanted: int | None, row_bytes: int
) -> Capacity:
    free, before = free_memory(), resident_bytes()
    one = _probe_cpu(make_pack, config, 1)
    cores = torch.get_num_threads()
    passes = max(1, min(cores, most, wanted or most, int(SHARE * free) // max(1, one - before)))
    peak = _probe_cpu(make_pack, config, passes) if passes > 1 else one
    fitting = passes + max(0, int(SHARE * free) - (peak - before)) // max(1, row_bytes)
    slots = wanted or min(max(CPU_SLOTS, passes), most, fitting)
    if wanted:
        reason = "as asked"
    elif slots == fitting:
        reason = "more do not fit the memory"
    elif slots == most:
        reason = "there are no more trials"
    else:
        reason = "more do not train faster on a CPU"
    return Capacity(slots, reason, peak + (slots - passes) * row_bytes, row_bytes, free, {}, passes)


def knee(
    probe: Callable[[int], tuple[int, float]], limit: int, most: int, wanted: int | None = None
) -> tuple[int, str, dict[int, int], dict[int, float]]:
    """Double the slots as long as it pays and fits.

    Args:
        probe: returns peak bytes and trial-steps per second of so many slots.
        limit: bytes the peak may reach; a number of slots that is predicted to need more is not tried.
        most: more slots are never needed.
        wanted: a number that is given: only the memory is learned, from one and two slots.

    Returns:
        The number of slots, why, and the peaks and rates that were measured.
    """
    peaks: dict[int, int] = {}
    rates: dict[int, float] = {}
    slots = 1
    while True:
        if wanted is None and predict(peaks, slots) > limit:
            return slots // 2, "twice as many do not fit the memory", peaks, rates
        try:
            peaks[slots], rates[slots] = probe(slots)
        except torch.OutOfMemoryError:
            if slots == 1 or wanted is not None:
                raise
            return slots // 2, "twice as many did not fit the memory", peaks, rates
        if wanted is not None and slots >= min(2, wanted):
            return wanted, "as asked", peaks, rates
        if slots > 1 and rates[slots] < WORTHWHILE * rates[slots // 2]:
            times = rates[slots] / rates[slots // 2]
            return slots // 2, f"twice as many train {times:.2f} times as fast in sum", peaks, rates
        if 2 * slots > min(most, MOST_SLOTS):
            return slots, "there are no more trials", peaks, rates
        slots *= 2


def recording(probe: Callable[[bool], float], peak: int, limit: int) -> tuple[bool, str]:
    """Choose whether passes are recorded, and say why.

    Args:
        probe: returns trial-steps per second with graphs or without.
        peak: bytes in use at the highest without them.
        limit: bytes that may be in use; recorded passes keep their activations beside those of the others.
    """
    if 2 * peak > limit:
        return False, "no memory for their activations"
    without = probe(False)
    try:
        times = probe(True) / without
    except RuntimeError as error:  # an operation of the model that waits for the device cannot be recorded
        torch.cuda.empty_cache()
        return False, f"cannot be recorded: {str(error).strip().splitlines()[0][:120]}"
    return times > WORTHWHILE, f"{times:.2f} times as fast"


def predict(peaks: dict[int, int], slots: int) -> int:
    """Return the peak of so many slots: the line through the last two measured, or in proportion to the only one."""
    if not peaks:
        return 0
    last = max(peaks)
    return peaks[last] + (slots - last) * slope(peaks)


def slope(peaks: dict[int, int]) -> int:
    """Return what one more slot takes."""
    counts = sorted(peaks)
    if len(counts) < 2:
        return peaks[counts[0]] // counts[0]
    return (peaks[counts[-1]] - peaks[counts[-2]]) // (counts[-1] - counts[-2])


def _probe(make_pack: Callable[..., Pack], config: SlotConfig, slots: int, graphs: bool = False) -> tuple[int, float]:
    """Return peak bytes on the widest batch, and trial-steps per second on ordinary ones."""
    torch.cuda.reset_peak_memory_stats()
    with make_pack(slots) as pack:
        pack.thrifty = False
        _fill(pack, config, slots, widest=True)
        pack.step()
        peak = torch.cuda.max_memory_allocated()
    with make_pack(slots, graphs=graphs) as pack:
        pack.thrifty = False
        _fill(pack, config, slots, widest=False)
        for _ in range(CYCLE * (WARM + 1) if graphs else WARM_UP):  # lengths come round after a cycle
            pack.step()
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(TIMED):
            pack.step()
        torch.cuda.synchronize()
        rate = slots * TIMED / (time.perf_counter() - start)
    return peak, rate


def _probe_cpu(make_pack: Callable[..., Pack], config: SlotConfig, passes: int) -> int:
    """Return the peak of so many passes side by side: batches of many widths, the widest, and a scoring."""
    with make_pack(passes, passes) as pack:
        pack.thrifty = False
        _fill(pack, config, passes, widest=False)
        for _ in range(min(max(CYCLE, GIVE_BACK // passes), config.length - 1)):
            pack.step()
        for slot in pack.slots:
            slot.order = [_widest(pack)] * len(slot.order)
        pack.step()
        pack.evaluate(pack.slots, pack.data.take(range(min(len(pack.data), SCORED))), averaged=False)
        return int(PIECES * peak_bytes(pack.device))


def _fill(pack: Pack, config: SlotConfig, slots: int, *, widest: bool) -> None:
    for _ in range(slots):
        slot = pack.admit(config)
        if widest:
            slot.order = [_widest(pack)] * len(slot.order)


def _widest(pack: Pack) -> list[int]:
    lengths = pack.data.lengths()
    return sorted(range(len(lengths)), key=lengths.__getitem__)[-pack.training.batch_size :]
