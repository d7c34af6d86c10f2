"""How many slots a pack gets: what the device's memory holds, and no more than pay.

The memory of a pack is a straight line in its slots: the base model once, and for each slot its
row in the buffers (weights, averages, gradients, and what the optimizer holds) and,
where slots share a forward pass, its activations. The line is measured on the widest batch, and
on the longest texts that are scored at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from autolr.data.batches import CYCLE, TokenSet
from autolr.pack import scoring
from autolr.pack.graphs import WARM
from autolr.pack.memory import free_memory, is_out_of_memory, peak_bytes, release, reset_peak, resident_bytes
from autolr.pack.pack import GIVE_BACK, Pack
from autolr.pack.slots import SlotConfig

# Of the memory that is free, this share is used: other processes, fragmentation.
USABLE_SHARE = 0.85
# On a CPU as many slots train side by side as it has threads, and so many at least. More would train no faster, and
# begin before the first have taught the sampler anything.
CPU_SLOTS = 2
# Twice the slots must train this much faster in sum to be worth their memory.
WORTHWHILE = 1.1
# A number of slots is the best after so many doublings that were not worth it: one measurement may mislead.
DOUBLINGS = 2
MOST_SLOTS = 256
# Lengths come round after a cycle: each is met once before the clock runs, and once while it does.
WARM_UP, TIMED = CYCLE, CYCLE
# Examples that are scored to probe the memory of a CPU.
SCORED_EXAMPLES = 256
# Over a search the heap of a CPU's process comes to this many times the probe's: pieces between what is in use.
HEAP_FRAGMENTATION = 1.06


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
        devices, recordable = pack.devices, pack.recordable
        device = devices[0]
        row_bytes = pack.block.slot_bytes
    try:
        if device.type == "cuda":
            return _on_gpu(make_pack, config, most, wanted, device, recordable)
        return _on_cpu(make_pack, config, most, wanted, row_bytes)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    finally:
        release(device)
        reset_peak(devices)  # what follows has a peak of its own
    return _in_parts(make_pack, config, row_bytes)


def _on_gpu(
    make_pack: Callable[..., Pack],
    config: SlotConfig,
    most: int,
    wanted: int | None,
    device: torch.device,
    recordable: bool,
) -> Capacity:
    free, limit = free_memory(device), _limit(device)
    slots, reason, peaks, rates = knee(lambda count: _probe(make_pack, config, count), limit, most, wanted)
    peak = predict(peaks, slots)
    graphs, why = False, "passes of a language model, or of a base on several devices, are not recorded"
    if recordable:
        graphs, why = recording(lambda on: _probe(make_pack, config, slots, graphs=on)[1], peak, limit)
    return Capacity(slots, reason, peak, slope(peaks), free, rates, graphs=graphs, graphs_reason=why)


def _limit(device: torch.device) -> int:
    """Return the bytes that may be in use on a GPU."""
    return int(USABLE_SHARE * free_memory(device)) + torch.cuda.memory_allocated(device)


def fullest(peaks: Mapping[torch.device, int], limits: Mapping[torch.device, int]) -> int:
    """Return the peak of the device that is nearest to its limit, as if it had the first device's limit.

    Args:
        peaks: bytes in use at the highest, of each device that the base lies on.
        limits: bytes that may be in use there.
    """
    first = next(iter(limits.values()))
    return max(first - limit + peaks[device] for device, limit in limits.items())


def _in_parts(make_pack: Callable[..., Pack], config: SlotConfig, row_bytes: int) -> Capacity:
    """Return one slot whose batches are trained in parts, since they do not fit at once."""
    with make_pack(1) as pack:
        _fill(pack, config, 1, widest=True)
        pack.step()
        slot, device = pack.slots[0], pack.device
    if slot.unfit:
        raise torch.OutOfMemoryError(slot.unfit)
    reason = f"a batch does not fit the memory at once: it is trained in {slot.parts} parts, which take the same step"
    return Capacity(1, reason, peak_bytes(device), row_bytes, free_memory(device), {})


def _on_cpu(
    make_pack: Callable[..., Pack], config: SlotConfig, most: int, wanted: int | None, row_bytes: int
) -> Capacity:
    free, before = free_memory(), resident_bytes()
    one = _probe_cpu(make_pack, config, 1)
    cores = torch.get_num_threads()
    passes = max(1, min(cores, most, wanted or most, int(USABLE_SHARE * free) // max(1, one - before)))
    peak = _probe_cpu(make_pack, config, passes) if passes > 1 else one
    fitting = passes + max(0, int(USABLE_SHARE * free) - (peak - before)) // max(1, row_bytes)
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
    best = slots = 1

    def found() -> tuple[int, str, dict[int, int], dict[int, float]]:
        reason = "twice as many do not fit the memory"
        if 2 * best in rates:
            reason = f"twice as many train {rates[2 * best] / rates[best]:.2f} times as fast in sum"
        elif 2 * best > min(most, MOST_SLOTS):
            reason = "there are no more trials"
        return best, reason, peaks, rates

    while slots <= min(most, MOST_SLOTS) or slots == 1:
        if wanted is None and predict(peaks, slots) > limit:
            return found()
        try:
            peaks[slots], rates[slots] = probe(slots)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or slots == 1 or wanted is not None:
                raise
            return found()
        if wanted is not None and slots >= min(2, wanted):
            return wanted, "as asked", peaks, rates
        doublings = (slots // best).bit_length() - 1
        if rates[slots] >= WORTHWHILE**doublings * rates[best]:
            best = slots
        elif doublings == DOUBLINGS:
            return found()
        slots *= 2
    return found()


def recording(probe: Callable[[bool], float], peak: int, limit: int) -> tuple[bool, str]:
    """Choose whether passes are recorded, and say why.

    Args:
        probe: returns trial-steps per second with graphs or without.
        peak: bytes in use at the highest without them.
        limit: bytes that may be in use; recorded passes keep their activations beside those of the others.
    """
    short = "no memory for their activations"
    if 2 * peak > limit:
        return False, short
    try:
        times = 1 / probe(False) * probe(True)
    except (RuntimeError, MemoryError) as error:  # an operation of the model that waits cannot be recorded
        return False, short if is_out_of_memory(error) else f"cannot be recorded: {str(error).splitlines()[0][:120]}"
    return times > WORTHWHILE, f"{times:.2f} times as fast"


def predict(peaks: dict[int, int], slots: int) -> int:
    """Return the peak of so many slots: as measured, or on the line through the last two, or in proportion to one."""
    if not peaks:
        return 0
    if slots in peaks:
        return peaks[slots]
    last = max(peaks)
    return peaks[last] + (slots - last) * slope(peaks)


def slope(peaks: dict[int, int]) -> int:
    """Return what one more slot takes."""
    counts = sorted(peaks)
    if len(counts) < 2:
        return peaks[counts[0]] // counts[0]
    return (peaks[counts[-1]] - peaks[counts[-2]]) // (counts[-1] - counts[-2])


def _probe(make_pack: Callable[..., Pack], config: SlotConfig, slots: int, graphs: bool = False) -> tuple[int, float]:
    """Return peak bytes on the widest batch and in scoring, and trial-steps per second on ordinary batches."""
    with make_pack(slots) as pack:
        devices = pack.devices
        limits = {device: _limit(device) for device in devices}
        reset_peak(devices)
        pack.thrifty = False
        _fill(pack, config, slots, widest=True)
        pack.step()
        pack.evaluate(pack.slots, _most_scored_at_once(pack, min(slots, pack.together)), averaged=False)
        peak = fullest({device: peak_bytes(device) for device in devices}, limits)
    with make_pack(slots, graphs=graphs) as pack:
        pack.thrifty = False
        _fill(pack, config, slots, widest=False)
        for _ in range(CYCLE * (WARM + 1) if graphs else WARM_UP):
            pack.step()
        torch.cuda.synchronize(pack.device)
        start = time.perf_counter()
        for _ in range(TIMED):
            pack.step()
        torch.cuda.synchronize(pack.device)
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
        pack.evaluate(pack.slots, pack.data.take(range(min(len(pack.data), SCORED_EXAMPLES))), averaged=False)
        return int(HEAP_FRAGMENTATION * peak_bytes(pack.device))


def _fill(pack: Pack, config: SlotConfig, slots: int, *, widest: bool) -> None:
    for _ in range(slots):
        slot = pack.admit(config)
        if widest:
            slot.order = [_widest(pack)] * len(slot.order)


def _most_scored_at_once(pack: Pack, slots: int) -> TokenSet:
    """Return the longest texts that so many slots are scored on in one pass, however few *train* has."""
    lengths, rows = pack.data.lengths(), pack.budget.rows
    longest = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)[:rows]
    many = pack.data.take(longest * -(-rows // len(longest)))
    return many.take(next(scoring.batches(pack, many, slots)))


def _widest(pack: Pack) -> list[int]:
    lengths = pack.data.lengths()
    return sorted(range(len(lengths)), key=lengths.__getitem__)[-pack.training.batch_size :]
