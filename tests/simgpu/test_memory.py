"""The allocator: what is used, kept, given back, and refused."""

# mypy: allow-untyped-calls
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.simgpu import Gpu

Make = Callable[..., Gpu]
KIB = 2**10


def room(size: int, device: str = "cuda") -> torch.Tensor:
    return torch.empty(size, dtype=torch.uint8, device=device)


def test_memory_is_given_in_pieces_of_512_bytes(gpu: Gpu) -> None:
    # c10/cuda/CUDACachingAllocator: kMinBlockSize, "all sizes are rounded to at least 512 bytes".
    held = [room(1), room(512), room(513)]
    assert torch.cuda.memory_allocated() == gpu.used() == 512 + 512 + 1024
    views = [held[2][:10], held[2].view(27, 19)]
    assert gpu.used() == 2048  # a view takes none
    del held
    assert gpu.used() == 1024
    del views
    assert gpu.used() == 0


def test_what_is_freed_is_kept_until_the_cache_is_emptied(gpu: Gpu) -> None:
    # PyTorch, "CUDA semantics", "Memory management": memory_allocated, memory_reserved and empty_cache.
    first = room(64 * KIB)
    del first
    assert (torch.cuda.memory_allocated(), torch.cuda.memory_reserved()) == (0, 64 * KIB)
    assert torch.cuda.mem_get_info()[0] == gpu.limit - 64 * KIB
    second = room(16 * KIB)
    assert (gpu.used(), gpu.reserved()) == (16 * KIB, 64 * KIB)
    torch.cuda.empty_cache()
    assert (gpu.used(), gpu.reserved()) == (16 * KIB, 16 * KIB)
    assert torch.cuda.max_memory_allocated() == gpu.peak() == 64 * KIB
    torch.cuda.reset_peak_memory_stats()
    assert gpu.peak() == second.nbytes and torch.cuda.max_memory_reserved() == 16 * KIB


def test_too_much_is_refused_with_cudas_words(make_gpu: Make) -> None:
    # PyTorch, torch.OutOfMemoryError, and the allocator's message.
    gpu = make_gpu(limit=100 * KIB)
    held = room(60 * KIB)
    with pytest.raises(
        torch.OutOfMemoryError, match=r"CUDA out of memory\. Tried to allocate 50\.00 KiB\. GPU 0 has"
    ):
        room(50 * KIB)
    assert gpu.used() == 60 * KIB and gpu.shortages == 1
    del held
    other = room(90 * KIB)  # what was kept was too small, and is given back first
    assert gpu.reserved() == 90 * KIB
    gpu.limit = 200 * KIB
    assert room(100 * KIB).nbytes + other.nbytes == 190 * KIB


def test_each_gpu_has_its_own_memory(make_gpu: Make) -> None:
    # PyTorch, torch.cuda.memory_allocated(device): of the given device, by default of the current one.
    gpu = make_gpu(devices=2, limit=100 * KIB)
    held = room(80 * KIB, "cuda:1")
    assert (gpu.used(0), gpu.used(1), torch.cuda.memory_allocated("cuda:1")) == (0, held.nbytes, held.nbytes)
    with torch.cuda.device(1):
        assert torch.cuda.memory_allocated() == held.nbytes
        with pytest.raises(torch.OutOfMemoryError, match="GPU 1 has"):
            room(30 * KIB)
    assert room(90 * KIB, "cuda:0").device.index == 0


def test_one_allocation_can_be_made_to_fail(gpu: Gpu) -> None:
    # Nothing of CUDA's: a test walks through all allocations of what it tests.
    before = gpu.allocations
    gpu.fail_after(2)
    held = [room(1), room(1)]
    with pytest.raises(torch.OutOfMemoryError):
        room(1)
    held.append(room(1))  # once
    assert gpu.allocations == before + 4 and gpu.shortages == 1
    gpu.fail_after(0)
    with pytest.raises(torch.OutOfMemoryError):
        held[0] + 1
    gpu.fail_after(0)
    gpu.fail_after(None)
    assert (held[0] + 1).device.index == 0


def test_what_a_backward_pass_keeps_is_accounted_until_it_ran(gpu: Gpu) -> None:
    # PyTorch, "Autograd mechanics", "Saved tensors": freed once the way back was taken.
    weight = room(1).new_ones(128, 128, dtype=torch.float32).requires_grad_()
    before = gpu.used()
    loss = (weight @ weight).sin().cos().sum()
    assert gpu.used() == before + 2 * weight.nbytes + 512
    loss.backward()
    del loss
    assert weight.grad is not None and gpu.used() == before + weight.grad.nbytes
    weight.grad = None
    assert gpu.used() == before


def test_streams_do_not_share_what_they_keep(gpu: Gpu) -> None:
    # PyTorch, "CUDA semantics": the caching allocator keeps blocks for the stream they were allocated on.
    del_me: Any = room(64 * KIB)
    del del_me
    with torch.cuda.stream(torch.cuda.Stream()):
        other = room(64 * KIB)
    assert gpu.reserved() == 128 * KIB and gpu.used() == other.nbytes
    again = room(64 * KIB)
    assert gpu.reserved() == 128 * KIB and gpu.used() == other.nbytes + again.nbytes


def test_moving_a_module_takes_and_gives_its_memory(gpu: Gpu) -> None:
    # PyTorch, torch.nn.Module.to: the parameters' memory moves with them.
    module = torch.nn.Linear(64, 64, bias=False)
    module.to("cuda")
    assert gpu.used() == 64 * 64 * 4
    module.to(torch.bfloat16)
    assert gpu.used() == 64 * 64 * 2
    module.to("cpu")
    assert gpu.used() == 0


def test_settings_of_expandable_segments_change_nothing(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    # PyTorch, "Optimizing memory usage with PYTORCH_ALLOC_CONF": read by CUDA's allocator alone.
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    held = room(1)
    assert gpu.used() == 512 and held.device.index == 0
