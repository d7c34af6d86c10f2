"""What lets the host wait for a GPU, and what does not."""

# mypy: allow-untyped-calls
from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.simgpu import Gpu


def x() -> Tensor:
    return torch.arange(4.0, device="cuda")


def here() -> int:
    frame = sys._getframe(1)
    return frame.f_lineno


# PyTorch, "CUDA semantics", "Asynchronous execution": copies between CPU and GPU are synchronous, all else is not.
# The operations whose output's size depends on numbers on the GPU: torch.cuda.set_sync_debug_mode.
# Copies: CUDA Runtime API, "API synchronization behavior", of pageable memory.
WAITS: dict[str, Callable[[Tensor], object]] = {
    "item": lambda x: x.sum().item(),
    "float": lambda x: float(x[0]),
    "bool": lambda x: bool(x.any()),
    "if": lambda x: 1 if (x > 0).all() else 0,
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "to cpu": lambda x: x.to("cpu"),
    "nonzero": lambda x: x.nonzero(),
    "where of one": lambda x: torch.where(x > 1),
    "mask": lambda x: x[x > 1],
    "masked_select": lambda x: x.masked_select(x > 1),
    "mask filled from a tensor": lambda x: x.index_put_((x > 1,), torch.zeros(2, device="cuda")),
    "index of the host": lambda x: x[torch.tensor([1])],
    "unique": lambda x: x.unique(),
    "equal": lambda x: torch.equal(x, x),
    "repeat_interleave": lambda x: x.repeat_interleave(x.long()),
    "pageable, non_blocking": lambda x: torch.ones(4).to("cuda", non_blocking=True),
    "pageable": lambda x: torch.ones(4).to("cuda"),
    "copy_ from the host": lambda x: x.copy_(torch.ones(4)),
    "copy_ to the host": lambda x: torch.ones(4).copy_(x),
    "pinned, blocking": lambda x: torch.ones(4).pin_memory().to("cuda"),
    "torch.tensor": lambda x: torch.tensor([1.0], device="cuda"),
    "new_tensor": lambda x: x.new_tensor([1.0]),
    "as_tensor": lambda x: torch.as_tensor([1.0], device="cuda"),
    "synchronize": lambda x: torch.cuda.synchronize(),
    "stream": lambda x: torch.cuda.current_stream().synchronize(),
}
GOES_ON: dict[str, Callable[[Tensor], object]] = {
    "arithmetic": lambda x: ((x + 1) * 2.0).exp().sum(),
    "pinned": lambda x: torch.ones(4).pin_memory().to("cuda", non_blocking=True),
    "copy_ from pinned": lambda x: x.copy_(torch.ones(4).pin_memory(), non_blocking=True),
    "to the host, non_blocking": lambda x: x.to("cpu", non_blocking=True),
    "index": lambda x: x[torch.zeros(2, dtype=torch.int64, device="cuda")],
    "index_select": lambda x: x.index_select(0, torch.zeros(2, dtype=torch.int64, device="cuda")),
    "where": lambda x: torch.where(x > 1, x, 0.0),
    "masked_fill": lambda x: x.masked_fill(x > 1, 0.0),
    "mask filled with a number": lambda x: x.__setitem__(x > 1, 0.0),
    "repeat_interleave": lambda x: x.repeat_interleave(2),
    "repeat_interleave of a known size": lambda x: x.repeat_interleave(
        torch.ones(4, dtype=torch.int64, device="cuda"), output_size=4
    ),
    "factories": lambda x: (torch.zeros(2, device="cuda"), x.new_ones(3), torch.arange(3, device="cuda")),
    "full": lambda x: torch.full((2,), 3.0, device="cuda"),
    "shape": lambda x: (x.shape, x.numel(), x.stride(), len(x), x.device, x.dtype),
    "one_hot": lambda x: torch.nn.functional.one_hot(x.long(), 4),
    "between devices": lambda x: x.double(),
}


@pytest.mark.parametrize("what", WAITS)
def test_the_host_waits(gpu: Gpu, what: str) -> None:
    own = x()
    gpu.forget()
    WAITS[what](own)
    assert sum(gpu.waits.values()) == 1, gpu.waits


@pytest.mark.parametrize("what", GOES_ON)
def test_the_host_goes_on(gpu: Gpu, what: str) -> None:
    own = x()
    gpu.forget()
    GOES_ON[what](own)
    assert not gpu.waits and (gpu.kernels or what == "shape")


def test_a_wait_names_the_line_that_is_to_blame(gpu: Gpu) -> None:
    # Nothing of CUDA's: who waits is what the test of a wait must say.
    x().tolist()
    assert [*gpu.waits] == [f"tolist @ tests/simgpu/test_waits.py:{here() - 1}"]
    gpu.forget()
    own = x().requires_grad_()
    loss = own[own > 1].sum()
    loss.backward()
    # The way back of a mask looks for its places once more, in autograd's thread: the line of `backward` is to blame.
    wait = "a mask as index (nonzero) @ tests/simgpu/test_waits.py"
    assert gpu.waits == {f"{wait}:{here() - 4}": 1, f"{wait}:{here() - 3}": 1}


def test_kernels_are_counted_and_views_are_none(gpu: Gpu) -> None:
    # PyTorch, "Tensor Views": a view shares the data, no kernel copies it.
    own = x()
    gpu.forget()
    own.view(2, 2).t().unsqueeze(0)[0, 1].detach()
    assert not gpu.kernels
    own.add_(1).mul_(2)
    assert gpu.kernels == {"add_": 1, "mul_": 1} and gpu.by_device == {0: 2}
