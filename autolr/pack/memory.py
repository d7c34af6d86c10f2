"""Memory of the device: what is free, what was used at the highest, and giving back what is not needed."""

from __future__ import annotations

import ctypes
import gc
import platform
from collections.abc import Sequence
from pathlib import Path

import psutil
import torch
from torch import Tensor

from autolr.model.device import GpuMemory


def peak_bytes(device: torch.device) -> int:
    """Return the highest memory in use so far: of torch on a GPU, of this process in the machine."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        # Linux counts what a parent process had before into ru_maxrss, but not into this.
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    except (OSError, ValueError, IndexError):
        pass
    try:
        import resource
    except ImportError:  # Windows, where psutil knows the peak
        return int(getattr(psutil.Process().memory_info(), "peak_wset", 0))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else 1024 * peak


def resident_bytes() -> int:
    """Return the machine's memory in use by this process now."""
    return int(psutil.Process().memory_info().rss)


def reset_peak(devices: Sequence[torch.device]) -> None:
    """Let the highest memory in use of GPUs count from now on."""
    for device in devices:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)


def free_memory(device: torch.device | None = None) -> int:
    """Return the bytes this process may still take, on a GPU or (None) in the machine's memory."""
    if device is not None and device.type == "cuda":
        return GpuMemory()[torch.cuda.current_device() if device.index is None else device.index]
    free = int(psutil.virtual_memory().available)
    for limit_file, usage_file in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        # A container may be allowed less than the machine has.
        try:
            limit = int(Path("/sys/fs/cgroup", limit_file).read_text())
            usage = int(Path("/sys/fs/cgroup", usage_file).read_text())
        except (OSError, ValueError):  # none set: the file says "max"
            continue
        free = min(free, max(0, limit - usage))
    return free


def to_device(numbers: Sequence[float] | Sequence[Sequence[float]], like: Tensor) -> Tensor:
    """Return numbers as a tensor of the type and on the device of another, without waiting for a GPU."""
    return moved(torch.tensor(numbers, dtype=like.dtype), like.device)


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the machine's memory on a device; a GPU reads it while the host goes on."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if an error means that the device, or the machine, has no more memory to give."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    # The CPU's allocator and some of a GPU's libraries raise plain RuntimeErrors.
    message = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        words in message for words in ("out of memory", "can't allocate memory", "alloc_failed")
    )


def release(device: torch.device) -> None:
    """Return what a failed attempt left behind to the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    else:
        give_back()


def give_back() -> None:
    """Return freed memory to the machine: the C library of Linux keeps more and more of it, in pieces."""
    if platform.system() == "Linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none
        if trim is not None:
            trim(0)
