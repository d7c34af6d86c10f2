"""Which devices an operation takes, and what a device is called."""

# mypy: allow-untyped-calls
from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tests.simgpu import Gpu

Make = Callable[..., Gpu]


def test_tensors_of_two_devices_are_refused_with_cudas_words(make_gpu: Make) -> None:
    # PyTorch, "CUDA semantics": "Cross-GPU operations are not allowed by default, with the exception of copy_()".
    make_gpu(devices=2)
    here, there, host = torch.ones(3, device="cuda:0"), torch.ones(3, device="cuda:1"), torch.ones(3)
    with pytest.raises(RuntimeError, match=r"Expected all tensors to be on the same device.*cuda:0 and cuda:1!"):
        here + there
    for mixed in (lambda: here + host, lambda: host + here, lambda: host.add_(here), lambda: torch.cat([here, host])):
        with pytest.raises(RuntimeError, match=r"Expected all tensors to be on the same device.*cuda:0 and cpu!"):
            mixed()
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        torch.nn.functional.linear(torch.ones(2, 3, device="cuda"), torch.ones(4, 3))


def test_a_number_of_the_host_goes_with_a_gpu(gpu: Gpu) -> None:
    # PyTorch, "Tensor Attributes", torch.device: a 0-dimensional CPU tensor may be combined with CUDA tensors.
    x = torch.ones(3, device="cuda")
    for mixed in (x * torch.tensor(2.0), torch.tensor(2.0) * x, torch.where(x > 0, torch.tensor(2.0), x)):
        assert mixed.device == torch.device("cuda", 0) and mixed.tolist() == [2.0] * 3
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        torch.tensor(1.0).add_(x.sum())


def test_indices_may_be_on_the_host(gpu: Gpu) -> None:
    # ATen, TensorAdvancedIndexing: "indices should be either on cpu or on the same device as the indexed tensor".
    x = torch.arange(4.0, device="cuda")
    assert x[torch.tensor([3, 1])].tolist() == [3.0, 1.0]
    with pytest.raises(RuntimeError, match=r"indices should be either on cpu or on the same device .* \(cpu\)"):
        torch.arange(4.0)[torch.tensor([3, 1], device="cuda")]
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        x.index_select(0, torch.tensor([1]))


def test_copies_go_between_devices(make_gpu: Make) -> None:
    # PyTorch, "CUDA semantics": copy_, to and cuda move between devices.
    make_gpu(devices=2)
    x = torch.arange(3.0)
    assert x.cuda().device == x.to("cuda").device == x.to(0).device == torch.device("cuda", 0)
    there = x.cuda(1).to(dtype=torch.float64)
    assert (there.device, there.dtype) == (torch.device("cuda", 1), torch.float64)
    assert there.to(x.cuda()).dtype == torch.float32 and there.to(there) is there
    assert torch.zeros(3, device="cuda:0").copy_(there).tolist() == [0, 1, 2]
    assert x.copy_(2 * there).tolist() == [0, 2, 4]


def test_the_current_device_is_where_cuda_means(make_gpu: Make) -> None:
    # PyTorch, "CUDA semantics": "all CUDA tensors you allocate will by default be created on" the selected device.
    gpu = make_gpu(devices=3)
    torch.cuda.set_device(1)
    assert (torch.cuda.current_device(), gpu.current) == (1, 1)
    with torch.cuda.device(2):
        assert torch.ones(1, device="cuda").device.index == 2
        with torch.cuda.device("cuda:0"):
            assert torch.ones(1).cuda().device.index == 0
        assert torch.cuda.current_device() == 2
    x = torch.ones(1, device="cuda")
    assert x.device.index == 1 and (x + 1).device.index == 1 and x.new_zeros(2).device.index == 1
    with torch.device("cuda:2"):
        assert torch.ones(1).device.index == 2


def test_there_is_no_device_beyond_the_last(make_gpu: Make) -> None:
    # CUDA Runtime API: cudaErrorInvalidDevice, "invalid device ordinal".
    make_gpu(devices=2)
    for ask in (
        lambda: torch.ones(1, device="cuda:2"),
        lambda: torch.cuda.set_device(2),
        lambda: torch.cuda.mem_get_info(5),
        lambda: torch.ones(1).cuda(2),
        lambda: torch.cuda.device(2),
    ):
        with pytest.raises(RuntimeError, match="invalid device ordinal"):
            ask()
    assert torch.cuda.device_count() == 2 and torch.cuda.is_available()


def test_a_context_is_opened_where_a_gpu_is_used_or_asked_for_its_memory(make_gpu: Make) -> None:
    # CUDA Runtime API, "Initialization": the primary context of a device is made by the first call that needs it.
    gpu = make_gpu(devices=4)
    torch.cuda.device_count(), torch.cuda.get_device_name(3), torch.cuda.memory_allocated(3)
    assert not gpu.asked
    torch.cuda.mem_get_info(1)
    torch.ones(1, device="cuda:2")
    assert set(gpu.asked) == {1, 2}


@pytest.mark.parametrize("source", [torch.zeros(2), np.zeros(2)], ids=["tensor", "array"])
def test_what_is_made_of_the_hosts_data_has_its_own_memory(gpu: Gpu, source: Any) -> None:
    # PyTorch, torch.as_tensor: data on another device is copied.
    made = torch.as_tensor(source, device="cuda")
    source += 1
    assert made.tolist() == [0, 0] and torch.as_tensor(made) is made


def test_a_gpu_tensor_is_no_array_and_cannot_be_pinned(gpu: Gpu) -> None:
    # PyTorch, Tensor.numpy and Tensor.pin_memory: of dense CPU tensors alone.
    x = torch.ones(2, device="cuda")
    with pytest.raises(TypeError, match=r"can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu\(\)"):
        x.numpy()
    with pytest.raises(RuntimeError, match="only dense CPU tensors can be pinned"):
        x.pin_memory()
    assert x.is_cuda and not x.is_cpu and x.get_device() == 0 and x.type() == "torch.cuda.FloatTensor"
    assert x.cpu().is_cpu and torch.ones(2).pin_memory().is_pinned() and not x.is_pinned()


def test_modules_move_and_keep_their_parameters(make_gpu: Make) -> None:
    # PyTorch, torch.nn.Module.to: "this method modifies the module in-place".
    make_gpu(devices=2)
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    before = list(module.parameters())
    module.to("cuda:1")
    assert all(old is new for old, new in zip(before, module.parameters(), strict=True))
    assert {parameter.device.index for parameter in module.parameters()} == {1}
    twin = copy.deepcopy(module)
    assert isinstance(twin[0].weight, torch.nn.Parameter) and twin[0].weight.device.index == 1
    with torch.no_grad():
        next(twin.parameters()).zero_()
    assert before[0].abs().sum().item() > 0
    module.to("cpu", torch.float64)
    assert before[0].dtype == torch.float64 and before[0].is_cpu


def test_only_one_machine_is_open_at_a_time(gpu: Gpu) -> None:
    # Nothing of CUDA's: two machines would be in each other's way.
    with pytest.raises(RuntimeError, match="is open already"), Gpu():
        pass


def test_torch_is_as_before_when_the_machine_is_closed() -> None:
    # PyTorch on a CPU: torch.cuda without a device.
    with Gpu(bf16=False):
        assert torch.cuda.is_available() and not torch.cuda.is_bf16_supported()
    assert not torch.cuda.is_available() and torch.cuda.device_count() == 0
    with pytest.raises((AssertionError, RuntimeError)):
        torch.ones(1, device="cuda")
