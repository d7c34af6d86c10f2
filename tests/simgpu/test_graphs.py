"""CUDA graphs: what is recorded, what is replayed, and what a failure leaves behind.

The rules are those of PyTorch, "CUDA semantics", "CUDA Graphs" (constraints, memory management), and of torch 2.13's
torch/cuda/graphs.py and CUDAGraph.cpp.
"""

# mypy: allow-untyped-calls
from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.simgpu import Gpu

Make = Callable[..., Gpu]


def recorded(work: Callable[[], object], **options: Any) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, **options):
        work()
    return graph


def test_recording_does_nothing_and_replaying_does_it_at_the_same_places(gpu: Gpu) -> None:
    # "Work recorded during capture is not executed"; replay() reads and writes the same addresses.
    x, total = torch.ones(3, device="cuda"), torch.zeros(3, device="cuda")
    graph = recorded(lambda: total.add_(x * 2))
    assert total.tolist() == [0, 0, 0]
    graph.replay()
    x.fill_(5)
    graph.replay()
    assert total.tolist() == [12, 12, 12] and gpu.replayed == 2


def test_fused_operations_on_lists_are_recorded_as_others_are(gpu: Gpu) -> None:
    # torch/optim/adamw.py with fused=True and torch/nn/utils/clip_grad.py work on lists of tensors.
    def training(device: str, capture: bool) -> list[float]:
        weights = [torch.ones(3, device=device, requires_grad=True), torch.ones(2, device=device, requires_grad=True)]
        optimizer = torch.optim.AdamW(weights, lr=torch.tensor(0.1, device=device), fused=True, capturable=capture)

        def step() -> None:
            torch.stack([(weight**3).sum() for weight in weights]).sum().backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad()

        step()
        graph = recorded(step) if capture else None
        for _ in range(3):
            graph.replay() if graph else step()
        return torch.cat([weight.detach().cpu() for weight in weights]).tolist()

    assert training("cuda", True) == training("cuda", False) == pytest.approx(training("cpu", False))


def test_numbers_of_the_host_are_baked_in(gpu: Gpu) -> None:
    # Constraints: "CPU work is elided during replay", so its numbers stay what they were.
    total, numbers, scalar = torch.zeros(1, device="cuda"), [1.0], torch.tensor(10.0)
    graph = recorded(lambda: total.add_(numbers[0]).add_(scalar))
    numbers[0] = 100.0
    scalar.fill_(1000.0)
    graph.replay()
    assert total.item() == 11.0


def test_results_stay_while_they_are_held_and_the_rest_of_the_pool_is_undefined(gpu: Gpu) -> None:
    # Graph memory management: the pool belongs to the graph; static outputs are read after replay().
    x, out = torch.ones(2, device="cuda"), torch.zeros(2, device="cuda")
    held: list[torch.Tensor] = []

    def work() -> None:
        between = x * 3
        held.append(between + 1)

    graph = recorded(work)
    assert held[0].isnan().all()
    graph.replay()
    assert held[0].tolist() == [4, 4]
    first: list[torch.Tensor] = []

    def reads_what_another_left() -> None:
        first.append(torch.empty(2, device="cuda"))  # never written to
        out.copy_(first[0])
        first.clear()

    broken = recorded(reads_what_another_left)
    broken.replay()
    assert out.isnan().all()


def test_memory_of_the_pool_is_reserved_not_allocated(gpu: Gpu) -> None:
    # Graph memory management: "the graph's private pool stays alive as long as its CUDAGraph object".
    x = torch.ones(1024, device="cuda")
    before = gpu.used(), gpu.reserved()
    graph = recorded(lambda: x.add_(x * 2))
    assert gpu.used() == before[0] and gpu.reserved() == before[1] + x.nbytes
    torch.cuda.empty_cache()
    assert gpu.reserved() == before[1] + x.nbytes
    del graph
    torch.cuda.empty_cache()
    assert gpu.reserved() == before[1]


def test_graphs_can_share_a_pool(gpu: Gpu) -> None:
    # Sharing memory across captures: pool=other_Graph_instance.pool(), or graph_pool_handle().
    x = torch.zeros(1024, device="cuda")
    pool = torch.cuda.graph_pool_handle()
    first = recorded(lambda: x.add_(x + 1), pool=pool)
    before = gpu.reserved()
    second = recorded(lambda: x.mul_(x + 1), pool=first.pool())
    assert gpu.reserved() == before
    first.replay()
    second.replay()
    assert x[0].item() == 2 and second.pool() is pool


@pytest.mark.parametrize(
    "work",
    [
        lambda x: x.sum().item(),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: torch.tensor([1.0], device="cuda"),
        lambda x: torch.ones(2).to("cuda", non_blocking=True),
        lambda x: torch.cuda.synchronize(),
    ],
)
def test_what_waits_cannot_be_recorded(gpu: Gpu, work: Callable[[torch.Tensor], object]) -> None:
    # Constraints: "Capturing work that syncs the CPU with the GPU raises an error".
    x = torch.ones(2, device="cuda")
    with pytest.raises(RuntimeError, match="due to a previous error during capture") as failure:
        recorded(lambda: work(x))
    assert "operation not permitted when stream is capturing" in str(failure.value.__context__)
    assert "tests/simgpu/test_graphs.py:" in str(failure.value.__context__)


def test_copies_from_pinned_memory_are_recorded_and_read_it_again(gpu: Gpu) -> None:
    # CUDA Programming Guide, "CUDA Graphs", memcpy nodes: a copy of pinned memory reads it when the graph runs.
    source, x = torch.ones(2).pin_memory(), torch.zeros(2, device="cuda")
    graph = recorded(lambda: x.copy_(source, non_blocking=True))
    source.fill_(7)
    graph.replay()
    assert x.tolist() == [7, 7]


def test_a_failed_recording_leaves_the_stream_and_the_allocator_as_in_a_recording(gpu: Gpu) -> None:
    # torch 2.13, torch/cuda/graphs.py, graph.__exit__: capture_end() raises before the stream is given back, and
    # before endAllocateToPool.
    held, before = [torch.ones(1024, device="cuda")], torch.cuda.current_stream()
    pool = torch.cuda.graph_pool_handle()
    with pytest.raises(RuntimeError):
        recorded(lambda: held[0].sum().item(), pool=pool)
    assert gpu.stuck and torch.cuda.current_stream() is not before
    held.clear()
    kept = gpu.reserved()
    torch.cuda.empty_cache()
    assert gpu.reserved() == kept > 0  # nothing is given back
    torch.cuda.set_stream(before)
    torch._C._cuda_endAllocateToPool(0, pool)
    assert not gpu.stuck
    torch.cuda.empty_cache()
    assert gpu.reserved() == 0


@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")
def test_an_error_of_python_ends_a_recording_in_order(gpu: Gpu) -> None:
    # torch/cuda/graphs.py: only what CUDA refuses makes a capture invalid.
    before = torch.cuda.current_stream()
    with pytest.raises(ValueError, match="of Python"):
        recorded(lambda: (_ for _ in ()).throw(ValueError("of Python")))
    assert not gpu.stuck and torch.cuda.current_stream() is before


def test_kernels_of_another_device_are_not_recorded(make_gpu: Make) -> None:
    # CUDAGraph.cpp: "The CUDA Graph is empty. This usually means that the graph was attempted to be captured on wrong
    # device or stream." A stream belongs to one device.
    make_gpu(devices=2)
    x = torch.zeros(1, device="cuda:1")
    with pytest.warns(UserWarning, match="The CUDA Graph is empty"):
        graph = recorded(lambda: x.add_(1))
    assert x.item() == 1  # it was done at once
    graph.replay()
    assert x.item() == 1
    with torch.cuda.device(1), warnings.catch_warnings():
        warnings.simplefilter("error")
        graph = recorded(lambda: x.add_(1), stream=torch.cuda.Stream())
    graph.replay()
    assert x.item() == 2


def test_the_stream_that_torch_records_on_stays_where_it_was_first_made(make_gpu: Make) -> None:
    # torch 2.13, torch/cuda/graphs.py: default_capture_stream is one for the process, made on the current device of
    # then; THCPModule_setStream takes that device along.
    make_gpu(devices=2)
    x = torch.zeros(1, device="cuda:1")
    recorded(lambda: torch.zeros(1, device="cuda:0"))
    torch.cuda.set_device(1)
    with pytest.warns(UserWarning, match="The CUDA Graph is empty"):
        recorded(lambda: x.add_(1))
    assert torch.cuda.current_device() == 1


def test_memory_that_was_freed_is_not_replayed(gpu: Gpu) -> None:
    # Graph memory management: a graph's inputs must live as long as it does; torch's check_input_liveness.
    held, out = [torch.ones(2, device="cuda")], torch.zeros(2, device="cuda")
    graph = recorded(lambda: out.add_(held[0]))
    held.clear()
    with pytest.raises(RuntimeError, match="memory that was freed after it was recorded"):
        graph.replay()


def test_a_backward_pass_is_recorded_too(gpu: Gpu) -> None:
    # Whole-network capture: forward, backward and what hooks do.
    weight = torch.ones(2, 2, device="cuda", requires_grad=True)
    total = torch.zeros(2, 2, device="cuda")

    def land(leaf: torch.Tensor) -> None:
        assert leaf.grad is not None
        total.add_(leaf.grad)
        leaf.grad = None

    weight.register_post_accumulate_grad_hook(land)
    graph = recorded(lambda: (weight @ weight).sum().backward())
    graph.replay()
    graph.replay()
    assert total.tolist() == [[8.0, 8.0], [8.0, 8.0]]


def test_a_graph_is_recorded_before_it_is_replayed_and_on_a_stream_of_its_own(gpu: Gpu) -> None:
    # CUDAGraph.cpp: the checks of replay, pool and capture_begin.
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(RuntimeError, match="without a preceding successful capture"):
        graph.replay()
    with pytest.raises(RuntimeError, match="without a preceding successful capture"):
        graph.pool()
    with pytest.raises(RuntimeError, match="must be captured on a non-default stream"):
        graph.capture_begin()
    with pytest.raises(RuntimeError, match="Unknown capture error mode"):
        recorded(lambda: None, capture_error_mode="lenient")
    assert not torch.cuda.is_current_stream_capturing()
    x = torch.zeros(1, device="cuda")
    recorded(lambda: x.add_(torch.cuda.is_current_stream_capturing())).replay()
    assert x.item() == 1
