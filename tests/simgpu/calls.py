"""Calls from Python, seen before they reach torch's C++ code, where a build without CUDA would refuse some."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

from tests.simgpu import private
from tests.simgpu.copies import moved
from tests.simgpu.tensors import GpuTensor

if TYPE_CHECKING:
    from tests.simgpu.machine import Gpu

# What torch.autocast("cuda") computes in half and in float32: of torch's lists (docs/amp, "CUDA Ops that can autocast
# to"), what transformers calls.
LOW = frozenset(
    ["linear", "matmul", "__matmul__", "__rmatmul__", "bmm", "mm", "addmm", "baddbmm", "scaled_dot_product_attention"]
)
HIGH = frozenset(
    [
        "layer_norm",
        "softmax",
        "log_softmax",
        "cross_entropy",
        "nll_loss",
        "mse_loss",
        "cumsum",
        "norm",
        "pow",
        "rsqrt",
        "exp",
        "log",
        "sum",
        "prod",
        "softplus",
        "reciprocal",
        "__pow__",
        "__rpow__",
        "__rtruediv__",
    ]
)
FROM_DATA = frozenset(("tensor", "as_tensor", "asarray"))
ROOM = frozenset(("empty", "empty_strided", "empty_like"))


class Calls(TorchFunctionMode):
    """Sends calls that name a GPU to it."""

    def __init__(self, gpu: Gpu) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        first = args[0] if args else None
        if name in LOW or name in HIGH:
            if torch.is_autocast_enabled("cuda"):
                return self._cast(func, name, args, kwargs)
        elif name in _SPECIAL and func is not torch.autograd.backward and isinstance(first, torch.Tensor):
            done = _SPECIAL[name](self.gpu, first, args[1:], kwargs)
            if done is not NotImplemented:
                return done
        if func in (torch.autograd.backward, torch.autograd.grad) and _has_gpu(args):
            return self.gpu.backward(lambda: func(*args, **kwargs))
        if func is torch.device and isinstance(first, int):
            return torch.device("cuda", first)
        if name in FROM_DATA:
            return self._from_data(func, name, args, kwargs)
        if kwargs.get("device") is not None and is_gpu(kwargs["device"]) and not _has_gpu(args):
            return self._made(func, name, args, kwargs)
        return func(*args, **kwargs)

    def _cast(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        """Do what autocast does before an operation."""
        half = torch.get_autocast_dtype("cuda")
        wanted = half if name in LOW else torch.float32

        def cast(value: Any) -> Any:
            if isinstance(value, GpuTensor) and value.dtype in (torch.float32, half):
                return value.to(wanted)
            return type(value)(map(cast, value)) if type(value) in (list, tuple) else value

        with torch.autocast("cuda", enabled=False):
            return func(*map(cast, args), **{key: cast(value) for key, value in kwargs.items()})

    def _from_data(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        """Make a tensor of what the host has, or of another tensor."""
        data = args[0] if args else kwargs.get("data")
        device = kwargs.get("device")
        on_gpu = device is not None and is_gpu(device)
        if isinstance(data, torch.Tensor) and (on_gpu or isinstance(data, GpuTensor)):
            named = {"device": data.device if device is None else device, "dtype": kwargs.get("dtype")}
            if name == "as_tensor":
                return moved(self.gpu, "to", data, (), named)
            made = moved(self.gpu, "to", data.detach(), (), {**named, "copy": True})
            return made.requires_grad_(kwargs.get("requires_grad", False))
        if isinstance(data, (list, tuple)) and _has_gpu(data):
            self.gpu.wait("torch.tensor of tensors on a GPU")
            args = (_numbers(data), *args[1:])
        return self._made(func, name, args, kwargs) if on_gpu else func(*args, **kwargs)

    def _made(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        """Make a tensor on the host, and put it on a GPU: what a factory with `device=` does."""
        gpu, index = self.gpu, self.gpu.number(kwargs["device"])
        if kwargs.get("pin_memory"):
            raise RuntimeError("Only dense CPU tensors can be pinned")
        rest = {key: value for key, value in kwargs.items() if key not in ("device", "requires_grad", "pin_memory")}
        with private.quiet():
            made = func(*args, **rest)
            if name != "tensor" and name in FROM_DATA:
                made = made.clone()  # its memory is not the host's
        if name in FROM_DATA:
            if made.numel():
                gpu.wait(f"torch.{name} on a GPU (a copy from pageable memory)")
            gpu.launch("copy", index)
        elif name not in ROOM:
            gpu.launch(name, index)
        placed = gpu.put(made, index)
        capture = gpu.capture_on(index)
        if capture is not None and name not in ROOM:
            capture.add(torch.ops.aten.copy_.default, (made, made.clone()), {}, made)
        return placed.requires_grad_() if kwargs.get("requires_grad") else placed


def is_gpu(device: Any) -> bool:
    """Return whether a device's name is a GPU's."""
    return isinstance(device, int) or torch.device(device).type == "cuda"


def _has_gpu(values: Any) -> bool:
    return any(
        isinstance(value, GpuTensor) or (isinstance(value, (list, tuple)) and _has_gpu(value)) for value in values
    )


def _numbers(value: Any) -> Any:
    if isinstance(value, GpuTensor):
        return value.elem.item()
    return [_numbers(one) for one in value] if isinstance(value, (list, tuple)) else value


# Methods and functions of a tensor that have an own way.


def _to_list(gpu: Gpu, tensor: torch.Tensor, args: Any, kwargs: Any) -> Any:
    if not isinstance(tensor, GpuTensor):
        return NotImplemented
    gpu.wait("tolist")
    return tensor.elem.tolist()


def _pin(gpu: Gpu, tensor: torch.Tensor, args: Any, kwargs: Any) -> Any:
    if isinstance(tensor, GpuTensor):
        return tensor.pin_memory()
    made = tensor.clone()
    made.simulated_pinned = True  # type: ignore[attr-defined]
    return made


def _is_pinned(gpu: Gpu, tensor: torch.Tensor, args: Any, kwargs: Any) -> bool:
    return bool(getattr(tensor, "simulated_pinned", False))


def _backward(gpu: Gpu, tensor: torch.Tensor, args: Any, kwargs: Any) -> Any:
    if not isinstance(tensor, GpuTensor):
        return NotImplemented
    names = dict(zip(("gradient", "retain_graph", "create_graph", "inputs"), args, strict=False)) | kwargs
    gradient = names.pop("gradient", None)
    return gpu.backward(lambda: torch.autograd.backward(tensor, gradient, **names))


def _new_tensor(gpu: Gpu, tensor: torch.Tensor, args: Any, kwargs: Any) -> Any:
    if not isinstance(tensor, GpuTensor):
        return NotImplemented
    data = args[0] if args else kwargs["data"]
    rest = {key: value for key, value in kwargs.items() if key != "data"}
    with Calls(gpu):
        return torch.tensor(data, **{"dtype": tensor.dtype, "device": tensor.device, **rest})


def _one_hot(gpu: Gpu, tensor: torch.Tensor, args: Any, kwargs: Any) -> Any:
    """Composed in C++ of a tensor that it makes there, on the host."""
    if not isinstance(tensor, GpuTensor):
        return NotImplemented
    with Calls(gpu):
        classes = args[0] if args else kwargs.get("num_classes", -1)
        classes = int(tensor.max()) + 1 if classes == -1 else classes
        made = torch.zeros(*tensor.shape, classes, dtype=torch.int64, device=tensor.device)
        return made.scatter_(-1, tensor.unsqueeze(-1), 1)


_SPECIAL: dict[str, Callable[[Gpu, torch.Tensor, Any, Any], Any]] = {
    "to": lambda gpu, tensor, args, kwargs: moved(gpu, "to", tensor, args, kwargs),
    "cuda": lambda gpu, tensor, args, kwargs: moved(gpu, "cuda", tensor, args, kwargs),
    "cpu": lambda gpu, tensor, args, kwargs: moved(gpu, "cpu", tensor, args, kwargs),
    "tolist": _to_list,
    "pin_memory": _pin,
    "is_pinned": _is_pinned,
    "backward": _backward,
    "new_tensor": _new_tensor,
    "one_hot": _one_hot,
}
