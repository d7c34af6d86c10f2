"""What an ATen operation does on a simulated GPU: which devices it takes, whether the host waits, what it costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from tests.simgpu import blame, private
from tests.simgpu.tensors import GpuTensor

if TYPE_CHECKING:
    from tests.simgpu.machine import Gpu

# Operations that only look at what is there from another side, or make room: no kernel.
VIEWS = frozenset(
    [
        "view",
        "_unsafe_view",
        "alias",
        "detach",
        "expand",
        "permute",
        "t",
        "transpose",
        "select",
        "slice",
        "split",
        "split_with_sizes",
        "unsqueeze",
        "squeeze",
        "unbind",
        "as_strided",
        "unfold",
        "diagonal",
        "_reshape_alias",
        "lift_fresh",
        "empty",
        "empty_like",
        "empty_strided",
        "new_empty",
        "new_empty_strided",
        "set_",
        "requires_grad_",
        "_fused_sdp_choice",
        "unflatten",
        "chunk",
        "narrow",
        "real",
        "is_same_size",
        "_local_scalar_dense",
    ]
)
# The size of what these give depends on numbers on the GPU, so the host waits for them.
WAITING = {
    "_local_scalar_dense": "a number read by the host (.item(), bool, float, int)",
    **{name: name for name in ("nonzero", "masked_select", "equal", "is_nonzero", "bincount")},
    **dict.fromkeys(("_unique", "_unique2", "unique_dim", "unique_consecutive"), "unique"),
}
INDEXING = frozenset(("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"))
COPIES = frozenset(("copy_", "_to_copy"))


def run(func: Any, args: Any, kwargs: Any) -> Any:
    """Do one ATen operation some of whose tensors are on a GPU."""
    name = private.name_of(func)
    own: list[GpuTensor] = []
    host: list[torch.Tensor] = []
    _sort(args, own, host)
    _sort(tuple(kwargs.values()), own, host)
    gpu = own[0].gpu
    index = _device(gpu, name, args, own, host)
    if kwargs:
        if kwargs.get("pin_memory"):
            raise RuntimeError("Only dense CPU tensors can be pinned")
        device = kwargs.get("device")  # "cpu" comes from C++, to which all of this is on the host
        if device is not None and device.type == "cuda":
            index = gpu.number(kwargs["device"])
        kwargs = {key: _plain(value) for key, value in kwargs.items() if key not in ("device", "pin_memory")}
    if what := _waits(name, args, kwargs, host):
        gpu.wait(what)
    plain = tuple(_plain(value) for value in args)
    capture = gpu.capture_on(index)
    if capture is not None:
        changed: list[GpuTensor] = []  # fused operations change lists
        _sort(private.written(func, args), changed, [])
        capture.before(changed)
    with private.quiet():
        found = func(*plain, **kwargs)
    if name not in VIEWS:
        gpu.launch(name, index)
    if capture is not None:
        capture.add(func, plain, kwargs, found, baked=() if name == "copy_" else host)
    for leaf in own:
        if leaf.elem.shape != leaf.shape:
            raise NotImplementedError(
                f"tests/simgpu: {name} changes the shape of a GPU tensor in place @ {blame.line()}"
            )
    return _wrapped(gpu, found, index, own)


def _sort(values: Any, own: list[GpuTensor], host: list[torch.Tensor]) -> None:
    for value in values:
        if isinstance(value, GpuTensor):
            own.append(value)
        elif isinstance(value, torch.Tensor):
            host.append(value)
        elif isinstance(value, (list, tuple)):
            _sort(value, own, host)


def _plain(value: Any) -> Any:
    if isinstance(value, GpuTensor):
        return value.elem
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value


def _wrapped(gpu: Gpu, found: Any, index: int, own: list[GpuTensor]) -> Any:
    if isinstance(found, torch.Tensor):
        for leaf in own:
            if leaf.elem is found:  # done in place
                return leaf
        return gpu.put(found, index)
    if isinstance(found, (list, tuple)):
        return type(found)([_wrapped(gpu, one, index, own) for one in found])
    return found


def _device(gpu: Gpu, name: str, args: Any, own: list[GpuTensor], host: list[torch.Tensor]) -> int:
    """Return the GPU that an operation is done on.

    Raises:
        RuntimeError: its tensors are on several devices, and it is none of those that may be.
    """
    if name in COPIES:
        return args[0].ordinal if isinstance(args[0], GpuTensor) else own[0].ordinal
    if name in INDEXING:
        if not isinstance(args[0], GpuTensor):
            raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
        picks = [pick for pick in args[1] if pick is not None]
        if any(isinstance(pick, GpuTensor) and pick.ordinal != args[0].ordinal for pick in picks):
            raise RuntimeError(
                f"indices should be either on cpu or on the same device as the indexed tensor ({args[0].device})"
            )
        host = [leaf for leaf in host if not any(leaf is pick for pick in picks)]
    there = {leaf.ordinal for leaf in own}
    target = args[0]  # of fused operations a list, whose tensors are among the others
    into_host = name.endswith("_") and isinstance(target, torch.Tensor) and not isinstance(target, GpuTensor)
    stray = into_host or any(leaf.dim() > 0 for leaf in host)
    if len(there) == 1 and not stray:
        return own[0].ordinal
    names = [f"cuda:{number}" for number in sorted(there)] + ["cpu"] * stray
    raise RuntimeError(
        f"Expected all tensors to be on the same device, but found at least two devices, {names[0]} and {names[1]}! "
        f"(when checking arguments of {name} @ {blame.line()})"
    )


def _waits(name: str, args: Any, kwargs: Any, host: list[torch.Tensor]) -> str | None:
    """Return what the host waits for in an operation; None: it does not wait."""
    if name in WAITING:
        return WAITING[name]
    if name in INDEXING:
        picks = [pick for pick in args[1] if pick is not None]
        masks = [pick for pick in picks if pick.dtype in (torch.bool, torch.uint8)]
        filled = name != "index" and len(picks) == len(masks) == 1 and host and args[2] is host[0]
        if masks and not filled:  # x[mask] = 0.0 is a masked_fill
            return "a mask as index (nonzero)"
        if any(not isinstance(pick, GpuTensor) for pick in picks):
            return "an index on the host (a copy from pageable memory)"
    if name == "repeat_interleave" and kwargs.get("output_size") is None:
        return "repeat_interleave without output_size"
    if name == "copy_" and host:
        block = not kwargs.get("non_blocking", args[2] if len(args) > 2 else False)
        return copy_waits(args[1], args[0], block)
    return None


def copy_waits(source: torch.Tensor, target: Any, block: bool) -> str | None:
    """Return why the host waits for a copy between it and a GPU; None: it does not.

    Args:
        source: what is copied.
        target: where to: a tensor of the host, or anything else for a GPU.
        block: whether `non_blocking` was not said.
    """
    to_host = isinstance(target, torch.Tensor) and not isinstance(target, GpuTensor)
    way = "to the host" if to_host else "from the host"
    if block:
        return f"a copy {way} without non_blocking"
    pinned = target if to_host else source
    return None if getattr(pinned, "simulated_pinned", False) else f"a copy {way}, of pageable memory"
