"""Tensors that say they lie on a GPU. Their numbers are in a CPU tensor, where every operation is really done."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from tests.simgpu import private

if TYPE_CHECKING:
    from tests.simgpu.machine import Gpu
    from tests.simgpu.memory import Block


class GpuTensor(torch.Tensor):
    """A tensor on a simulated GPU.

    To torch's C++ code it is a CPU tensor of the same shape, so autograd works as it always does; to Python it is on
    `cuda:N`.

    Attributes:
        elem: holds the numbers.
        gpu: the simulated machine.
        ordinal: the GPU's number.
        block: the memory its numbers take.
    """

    elem: torch.Tensor
    gpu: Gpu
    ordinal: int
    block: Block | None

    @staticmethod
    def __new__(cls, elem: torch.Tensor, gpu: Gpu, ordinal: int, block: Block | None) -> GpuTensor:
        made: GpuTensor = private.make_wrapper(
            cls,
            elem.size(),
            strides=elem.stride(),
            storage_offset=elem.storage_offset(),
            dtype=elem.dtype,
            layout=elem.layout,
            device=elem.device,
        )
        made.elem, made.gpu, made.ordinal, made.block = elem, gpu, ordinal, block
        return made

    def __init__(self, *_: Any) -> None:
        super().__init__()

    __torch_function__ = private.no_torch_function

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        from tests.simgpu.operations import run

        return run(func, args, kwargs or {})

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda", self.ordinal)

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    @property
    def is_cpu(self) -> bool:  # type: ignore[override]
        return False

    @property
    def data(self) -> Any:
        return torch.Tensor.data.__get__(self)  # type: ignore[attr-defined]

    @data.setter
    def data(self, value: Any) -> None:
        torch.Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.elem, self.ordinal, self.block = value.elem, value.ordinal, value.block

    def get_device(self) -> int:
        return self.ordinal

    def data_ptr(self) -> int:
        return self.elem.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.elem.untyped_storage()

    def is_pinned(self, *_: Any) -> bool:
        return False

    def pin_memory(self, *_: Any) -> NoReturn:
        raise RuntimeError(f"cannot pin '{self.type()}' only dense CPU tensors can be pinned")

    def type(self, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs:
            return super().type(*args, **kwargs)
        return super().type().replace("torch.", "torch.cuda.")

    def numpy(self, **_: Any) -> NoReturn:
        raise TypeError(
            f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host "
            "memory first."
        )

    def __array__(self, *_: Any, **__: Any) -> NoReturn:
        self.numpy()

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"GpuTensor({tuple(self.shape)}, {self.dtype}, {self.device})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            with torch.no_grad():
                made = self.clone()
            made.requires_grad_(self.requires_grad)
            own = {"elem", "gpu", "ordinal", "block"}
            rest = {name: value for name, value in self.__dict__.items() if name not in own}
            made.__dict__.update(copy.deepcopy(rest, memo))
            memo[id(self)] = made
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.elem.detach().__reduce_ex__(protocol)  # type: ignore[no-untyped-call]  # read from a file, it is on the CPU
