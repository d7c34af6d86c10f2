"""Copies between the host and GPUs, as `Tensor.to`, `cpu` and `cuda` make them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from tests.simgpu import private
from tests.simgpu.operations import copy_waits
from tests.simgpu.tensors import GpuTensor

if TYPE_CHECKING:
    from tests.simgpu.machine import Gpu


def moved(gpu: Gpu, name: str, tensor: torch.Tensor, args: Any, kwargs: Any) -> Any:
    """Return what `Tensor.to`, `cuda` or `cpu` returns; NotImplemented: torch itself may do it, on the host."""
    device, dtype, block, copied = _wanted(gpu, name, args, kwargs)
    source = tensor.device
    device = source if device is None else device
    if device.type == "cuda":
        device = torch.device("cuda", gpu.number(device))
    if "cuda" not in (device.type, source.type) or device.type not in ("cpu", "cuda"):
        return NotImplemented
    if device != source:
        return _Move.apply(gpu, tensor, device, dtype, block)  # type: ignore[no-untyped-call]
    if dtype in (None, tensor.dtype):
        return tensor.clone() if copied else tensor
    return torch.ops.aten._to_copy(tensor, dtype=dtype)


def _wanted(
    gpu: Gpu, name: str, args: Any, kwargs: Any
) -> tuple[torch.device | None, torch.dtype | None, bool, bool]:
    """Return device, type, whether the host may wait, and whether it must be another tensor."""
    block, copied = not kwargs.get("non_blocking", False), bool(kwargs.get("copy", False))
    if name == "cpu":
        return torch.device("cpu"), None, True, False
    if name == "cuda":
        device = kwargs.get("device", args[0] if args else None)
        return torch.device("cuda", gpu.number("cuda" if device is None else device)), None, block, False
    other = kwargs.get("other", args[0] if args else None)
    if isinstance(other, torch.Tensor):
        return other.device, other.dtype, block and not any(args[1:2]), copied
    if args and isinstance(args[0], int):
        args = (torch.device("cuda", args[0]), *args[1:])
    device, dtype, quickly, _ = private.parse_to(
        *args, **{key: value for key, value in kwargs.items() if key != "copy"}
    )
    return device, dtype, not quickly, copied


class _Move(torch.autograd.Function):
    """A copy from one device to another, whose gradient goes the other way."""

    @staticmethod
    def forward(
        ctx: Any, gpu: Gpu, tensor: torch.Tensor, device: torch.device, dtype: torch.dtype | None, block: bool
    ) -> torch.Tensor:
        ctx.gpu, ctx.source, ctx.dtype = gpu, tensor.device, tensor.dtype
        source = tensor.elem if isinstance(tensor, GpuTensor) else tensor
        with private.quiet():
            made = source.detach().to(dtype=dtype, copy=True)
        if device.type == "cpu":
            made.simulated_pinned = not block  # type: ignore[attr-defined]  # torch pins what it copies to so
            target: Any = made
        else:
            target = device
        if "cpu" in (device.type, ctx.source.type) and (what := copy_waits(tensor, target, block)):
            gpu.wait(what)
        index = ctx.source.index if device.type == "cpu" else device.index
        gpu.launch("copy", index)
        moved = made if device.type == "cpu" else gpu.put(made, device.index)
        capture = gpu.capture_on(index)
        if capture is not None:
            capture.add(torch.ops.aten.copy_.default, (made, source), {}, made)
        return moved

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        back = moved(ctx.gpu, "to", grad, (ctx.source, ctx.dtype), {})  # here nothing sees a call of `to` itself
        return None, back, None, None, None
