"""Where a frozen base goes: on one device, in 4 bits where it is too large, or split over the machine's devices."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from autolr.errors import ModelError
from autolr.model.device import GIB, GpuMemory
from autolr.model.precision import QUANTIZED, choose
from autolr.schema.training import Precision

# Of the memory that is free, the base may take this share: slots, activations and other processes need some.
MAX_BASE_SHARE = 0.8
BYTES_EACH: dict[Precision, float] = {"fp32": 4.0, "bf16": 2.0, "int8": 1.1, "nf4": 0.6}


@dataclass(frozen=True)
class Placement:
    """Where a base goes.

    Attributes:
        precision: in which it is kept, if it is to be loaded so; else as the study says.
        split: bytes that each device may take, where the base is split over several.
        reason: why, in words.
    """

    precision: Precision
    reason: str
    split: dict[int, int] | None = None


def place(parameters: int, wanted: Precision, device: torch.device, source: str) -> Placement:
    """Choose where a base of so many parameters goes on this machine.

    Raises:
        ModelError: it fits nowhere.
    """
    has_4_bits = importlib.util.find_spec("bitsandbytes") is not None
    return decide(parameters, wanted, device, free_bytes(device), source, has_4_bits)


def decide(
    parameters: int, wanted: Precision, device: torch.device, free: Mapping[int, int], source: str, has_4_bits: bool
) -> Placement:
    """Choose where a base goes.

    Args:
        parameters: of the model.
        wanted: the study's precision; `auto` may become 4 bits.
        device: where it is wanted.
        free: bytes that are free, by the device's number; of a CPU, number 0.
        source: what the user calls the model.
        has_4_bits: whether bitsandbytes is installed.

    Raises:
        ModelError: it fits nowhere.
    """
    number = 0 if device.type != "cuda" else torch.cuda.current_device() if device.index is None else device.index
    kept = wanted if wanted in QUANTIZED else choose(wanted, device)
    # A CPU keeps float32, and beside it the bf16 copies of what it multiplies.
    each = BYTES_EACH[kept] if device.type == "cuda" or kept in QUANTIZED else 4.0 + (2.0 if kept == "bf16" else 0.0)
    needed, most = int(parameters * each), int(MAX_BASE_SHARE * free[number])
    size = f"{parameters / 1e9:.3g} billion parameters take {needed / GIB:.1f} GiB in {kept}"
    room = f"{free[number] / GIB:.1f} GiB are free on {device}"
    if needed <= most:
        return Placement(wanted, f"on one device: {size}, {room}")
    if wanted == "auto" and has_4_bits and parameters * BYTES_EACH["nf4"] <= most:
        return Placement("nf4", f"in 4 bits: {size}, too much for one device ({room}), and bitsandbytes is installed")
    if device.type == "cuda" and wanted not in QUANTIZED and needed <= MAX_BASE_SHARE * sum(free.values()):
        why = "bitsandbytes is not installed" if not has_4_bits else "4 bits were not asked for, or do not fit"
        if wanted == "auto" and has_4_bits:
            why = "nor does it in 4 bits"
        split = {index: int(MAX_BASE_SHARE * own) for index, own in free.items()}
        return Placement(wanted, f"split over {len(split)} devices: {size}, too much for one ({room}); {why}", split)
    remedy = (
        "choose a smaller model" if has_4_bits else "pip install bitsandbytes for 4 bits, or choose a smaller model"
    )
    others = f"; all {len(free)} devices together do not hold it either" if len(free) > 1 else ""
    if has_4_bits and wanted not in ("auto", "nf4"):
        remedy = "take training.precision=nf4, or a smaller model"
    raise ModelError(f"model {source!r}: {size}, and {room}{others}; {remedy}")


def free_bytes(device: torch.device) -> Mapping[int, int]:
    """Return the bytes that each device of a kind can still give, by its number; a CPU's memory is number 0."""
    return GpuMemory() if device.type == "cuda" else {0: int(psutil.virtual_memory().available)}


def count(auto: Any, config: Any, **options: Any) -> int:
    """Return the parameters of a model, of which nothing is loaded."""
    with torch.device("meta"):
        empty = auto.from_config(config, **options)
    return sum(parameter.numel() for parameter in empty.parameters())


def device_map(model: Any, split: Mapping[int, int]) -> dict[str, int | str]:
    """Return which device takes which part of a model: whole layers, in their order.

    Args:
        model: loaded or empty.
        split: bytes that each device may take.
    """
    from accelerate import infer_auto_device_map

    whole = list(getattr(model, "_no_split_modules", None) or [])
    found: dict[str, int | str] = infer_auto_device_map(model, dict(split), no_split_module_classes=whole)
    return found


def spread(model: Any, parts: Mapping[str, int | str]) -> None:
    """Put the parts of a loaded model on their devices; what goes from one to the next is moved on the way."""
    from accelerate import dispatch_model

    dispatch_model(model, dict(parts), force_hooks=True)
