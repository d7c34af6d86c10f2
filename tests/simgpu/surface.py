"""What torch.cuda offers while a simulated GPU is open."""

from __future__ import annotations

import time
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar
from unittest import mock

import safetensors
import safetensors.torch
import torch
import torch._dynamo  # it looks at all of torch.cuda when it is imported: that must be before anything is replaced
import torch.utils.checkpoint

from tests.simgpu import private
from tests.simgpu.calls import Calls
from tests.simgpu.graphs import Capture, Graph, Stream
from tests.simgpu.memory import Pool

if TYPE_CHECKING:
    from tests.simgpu.machine import Gpu

NAME = "Simulated GPU"


class Device:
    """What torch.cuda.device is: makes a GPU the current one for a while."""

    gpu: ClassVar[Gpu]

    def __init__(self, device: Any) -> None:
        self.idx = self.gpu.current if device is None else self.gpu.number(device)

    def __enter__(self) -> None:
        self.before, self.gpu.current = self.gpu.current, self.idx

    def __exit__(self, *_: object) -> None:
        self.gpu.current = self.before


class Event:
    """What torch.cuda.Event is."""

    gpu: ClassVar[Gpu]

    def __init__(self, enable_timing: bool = False, **_: Any) -> None:
        self.time: float | None = None

    def record(self, stream: Stream | None = None) -> None:
        """Take the time."""
        self.time = time.perf_counter()

    def query(self) -> bool:
        """Return whether all is done: always."""
        return True

    def synchronize(self) -> None:
        """Wait for the event."""
        self.gpu.wait("Event.synchronize")

    def wait(self, stream: Stream | None = None) -> None:
        """Let a stream wait for the event; the host does not."""

    def elapsed_time(self, end: Event) -> float:
        """Return the milliseconds from this event to another."""
        if self.time is None or end.time is None:
            raise ValueError("Both events must be recorded before calculating elapsed time.")
        return 1000 * (end.time - self.time)


def replace(gpu: Gpu, stack: ExitStack) -> None:
    """Put a machine in the place of torch.cuda, until the stack is closed."""
    classes = {
        "device": Device,
        "Stream": Stream,
        "Event": Event,
        "CUDAGraph": Graph,
        "graph": Capture,
    }
    bound = {name: type(name, (kind,), {"gpu": gpu}) for name, kind in classes.items()}
    gpu.streams = [bound["Stream"](index, stream_id=0) for index in range(gpu.devices)]
    for name, value in (_functions(gpu) | bound).items():
        for place in (torch.cuda, torch.cuda.memory, torch.cuda.random, torch.cuda.graphs):
            if hasattr(place, name):
                stack.enter_context(mock.patch.object(place, name, value))
    end = mock.patch.object(torch._C, private.END_ALLOCATE_TO_POOL, _end_allocate_to_pool(gpu), create=True)
    stack.enter_context(end)
    stack.enter_context(mock.patch.object(safetensors.torch, "safe_open", _open))
    stack.enter_context(private.grouped_by_device())
    stack.enter_context(private.recomputed_inside(lambda: Calls(gpu)))
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)  # a parameter that is moved stays the same object
    stack.callback(torch.__future__.set_swap_module_params_on_conversion, before)


def _functions(gpu: Gpu) -> dict[str, Any]:
    def nothing(*_: Any, **__: Any) -> None:
        return None

    def set_device(device: Any) -> None:
        gpu.current = gpu.number(device)
        gpu.asked[gpu.current] += 1

    def set_stream(stream: Stream | None) -> None:
        if stream is not None:  # it takes its GPU with it, as torch's does
            gpu.streams[stream.device_index], gpu.current = stream, stream.device_index

    def synchronize(device: Any = None) -> None:
        gpu.memory(device)
        gpu.wait("torch.cuda.synchronize")

    def mem_get_info(device: Any = None) -> tuple[int, int]:
        memory = gpu.memory(device)
        gpu.asked[memory.index] += 1
        return max(0, memory.limit - memory.reserved), memory.limit

    def empty_cache() -> None:
        for memory in gpu.memories:
            memory.empty_cache()

    def memory_stats(device: Any = None) -> dict[str, int]:
        memory = gpu.memory(device)
        return {
            "allocated_bytes.all.current": memory.allocated,
            "allocated_bytes.all.peak": memory.peak,
            "reserved_bytes.all.current": memory.reserved,
            "reserved_bytes.all.peak": memory.reserved_peak,
            "num_ooms": memory.failures,
        }

    def properties(device: Any = None) -> SimpleNamespace:
        total = gpu.memory(device).limit
        return SimpleNamespace(name=NAME, major=9, minor=0, multi_processor_count=132, total_memory=total)

    def random_state(*_: Any, **__: Any) -> torch.Tensor:
        return torch.zeros(16, dtype=torch.uint8)

    return {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "init": nothing,
        "_lazy_init": nothing,
        "device_count": lambda: gpu.devices,
        "current_device": lambda: gpu.current,
        "set_device": set_device,
        "synchronize": synchronize,
        "get_device_name": lambda device=None: NAME,
        "get_device_properties": properties,
        "get_device_capability": lambda device=None: (9, 0),
        "is_bf16_supported": lambda including_emulation=True: gpu.bf16,
        "memory_allocated": gpu.used,
        "max_memory_allocated": gpu.peak,
        "memory_reserved": gpu.reserved,
        "max_memory_reserved": lambda device=None: gpu.memory(device).reserved_peak,
        "reset_peak_memory_stats": gpu.reset_peak,
        "memory_stats": memory_stats,
        "mem_get_info": mem_get_info,
        "empty_cache": empty_cache,
        "utilization": lambda device=None: 50,
        "power_draw": lambda device=None: 300_000,
        "manual_seed": nothing,
        "manual_seed_all": nothing,
        "get_rng_state": random_state,
        "set_rng_state": nothing,
        "get_rng_state_all": lambda: [random_state() for _ in range(gpu.devices)],
        "set_rng_state_all": nothing,
        "is_current_stream_capturing": lambda: gpu.capture_on(gpu.current) is not None,
        "current_stream": lambda device=None: gpu.streams[gpu.memory(device).index],
        "set_stream": set_stream,
        "graph_pool_handle": Pool,
    }


def _end_allocate_to_pool(gpu: Gpu) -> Any:
    def end(device: int, pool: Pool) -> None:
        capturing = gpu.memories[device].capturing
        if pool not in capturing:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        capturing.remove(pool)

    return end


@contextmanager
def _open(name: Any, framework: str = "pt", device: Any = "cpu", **more: Any) -> Any:
    """Read a safetensors file onto a GPU: its own code is not Python's."""
    with safetensors.safe_open(name, framework=framework, device="cpu", **more) as file:
        if str(device) == "cpu":
            yield file
        else:
            yield SimpleNamespace(
                keys=file.keys,
                metadata=file.metadata,
                get_tensor=lambda key: file.get_tensor(key).to(device),
                get_tensors=lambda: {key: file.get_tensor(key).to(device) for key in file.keys()},  # noqa: SIM118
            )
