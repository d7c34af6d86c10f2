"""The device that work is done on, and the memory of the GPUs that a model lies on."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping

import torch
from torch import nn

from autolr.errors import AutoLRError

# Texts of many lengths leave a GPU's memory in pieces, unless torch's allocator may enlarge its segments.
GIB = 2**30
ALLOCATOR, SETTING = {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"}, "expandable_segments:True"


def choose_device(name: str | None) -> torch.device:
    """Return the device of that name, and make a GPU the current one.

    Unless they are given another, libraries ask the current GPU for its memory, wait for it, and record its work.

    Args:
        name: such as `cpu` or `cuda:1`; None or `auto`: the GPU if there is one.

    Raises:
        AutoLRError: the machine has no such device.
    """
    if name is None or name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and sys.platform == "linux" and not ALLOCATOR & os.environ.keys():
        os.environ["PYTORCH_ALLOC_CONF"] = SETTING  # torch reads it when the process first uses a GPU
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0][:120]
        raise AutoLRError(f"--device {name}: cannot be used here ({reason}); known: cpu, cuda, cuda:0, ...") from None
    return device


class GpuMemory(Mapping[int, int]):
    """Bytes that each GPU can still give this process, by its number.

    A GPU is asked when its number is looked up: the answer creates a context there, which takes some of its memory.
    """

    def __getitem__(self, index: int) -> int:
        """Return the bytes the driver has free and those that torch's allocator keeps unused."""
        kept = torch.cuda.memory_reserved(index) - torch.cuda.memory_allocated(index)
        return int(torch.cuda.mem_get_info(index)[0]) + kept

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self)))

    def __len__(self) -> int:
        return torch.cuda.device_count()


def devices_of(model: nn.Module) -> tuple[torch.device, ...]:
    """Return the devices that a model's parameters lie on, the first parameter's first."""
    return tuple(dict.fromkeys(parameter.device for parameter in model.parameters()))
