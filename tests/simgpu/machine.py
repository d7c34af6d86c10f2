"""The simulated machine: what is counted on it, and torch.cuda while it is open."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, TypeVar

import torch

from tests.simgpu import blame, private
from tests.simgpu.calls import Calls
from tests.simgpu.graphs import Graph, Stream
from tests.simgpu.memory import Memory
from tests.simgpu.surface import replace
from tests.simgpu.tensors import GpuTensor

Result = TypeVar("Result")
_open: list[Gpu] = []


class Gpu:
    """A machine with GPUs that are not there, while the context is open.

    Args:
        devices: how many GPUs.
        limit: bytes of each.
        threads: run backward passes in a thread of their own, as torch does on a GPU.
        bf16: whether its kernels have bf16.

    Attributes:
        waits: how often the host waited for a GPU, by what it was and whose line: `tolist @ autolr/pack/pack.py:322`.
        kernels: how many were launched, by their names.
        by_device: how many were launched, by the GPU's number.
        asked: GPUs on which the process has a context, which takes some of their memory: how often each was used.
        current: number of the current GPU.
        replayed: replays of graphs.
        recording: the graph that is being recorded.
    """

    def __init__(self, devices: int = 1, limit: int = 80 * 2**30, *, threads: bool = True, bf16: bool = True) -> None:
        self.devices, self.threads, self.bf16 = devices, threads, bf16
        self.memories = [Memory(index, limit) for index in range(devices)]
        self.waits: Counter[str] = Counter()
        self.kernels: Counter[str] = Counter()
        self.by_device: Counter[int] = Counter()
        self.asked: Counter[int] = Counter()
        self.current = self.replayed = 0
        self.recording: Graph | None = None
        self.streams: list[Stream] = []
        self._stack = ExitStack()

    def __enter__(self) -> Gpu:
        if _open:
            raise RuntimeError("tests/simgpu: a simulated GPU is open already")
        private.check()
        _open.append(self)
        replace(self, self._stack)
        self._stack.enter_context(Calls(self))
        self._check_itself()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        _open.remove(self)

    def _check_itself(self) -> None:
        """See that this torch leads all that a training step does here."""
        weight = torch.ones(2, 2, device="cuda", requires_grad=True)
        (weight @ weight).sum().backward()  # type: ignore[no-untyped-call]
        if str(weight.device) != "cuda:0" or weight.grad is None or weight.grad.tolist() != [[4.0, 4.0], [4.0, 4.0]]:
            raise private.complaint("Tensor._make_wrapper_subclass", "a backward pass gives something else")
        del weight
        self.forget()
        self.asked.clear()
        for memory in self.memories:
            memory.kept.clear()
            memory.reset_peak()

    # -- what a test reads and sets -------------------------------------------------------------------------------

    @property
    def limit(self) -> int:
        """Bytes of each GPU; it can be changed at any time."""
        return self.memories[0].limit

    @limit.setter
    def limit(self, limit: int) -> None:
        for memory in self.memories:
            memory.limit = limit

    def used(self, device: Any = None) -> int:
        """Return the bytes of the tensors on a GPU; None: the current one."""
        return self.memory(device).allocated

    def reserved(self, device: Any = None) -> int:
        """Return the bytes that torch has taken from a GPU."""
        return self.memory(device).reserved

    def peak(self, device: Any = None) -> int:
        """Return the most bytes that tensors took, since `reset_peak`."""
        return self.memory(device).peak

    def reset_peak(self, device: Any = None) -> None:
        """Begin the peak of a GPU anew."""
        self.memory(device).reset_peak()

    @property
    def allocations(self) -> int:
        """How often memory was asked for, on all GPUs."""
        return sum(memory.allocations for memory in self.memories)

    @property
    def shortages(self) -> int:
        """How often memory was refused, on all GPUs."""
        return sum(memory.failures for memory in self.memories)

    def fail_after(self, count: int | None, device: Any = None) -> None:
        """Let one allocation fail, once: the one after so many more; None: none does."""
        self.memory(device).fail_in = count

    @property
    def stuck(self) -> bool:
        """Whether the allocator believes that a capture is under way, and none is."""
        return self.recording is None and any(memory.capturing for memory in self.memories)

    def forget(self) -> None:
        """Begin to count waits, kernels and replays anew."""
        self.waits.clear()
        self.kernels.clear()
        self.by_device.clear()
        self.replayed = 0

    # -- what happens on it ---------------------------------------------------------------------------------------

    def number(self, device: Any) -> int:
        """Return the number of a GPU; `cuda` is the current one.

        Raises:
            RuntimeError: there is none of this number.
        """
        found = device if isinstance(device, int) else torch.device(device).index
        if found is None:
            return self.current
        if not 0 <= found < self.devices:
            raise RuntimeError("CUDA error: invalid device ordinal")
        return int(found)

    def memory(self, device: Any = None) -> Memory:
        """Return the memory of a GPU; None: of the current one."""
        return self.memories[self.number("cuda" if device is None else device)]

    def wait(self, what: str) -> None:
        """Let the host wait for a GPU.

        Raises:
            RuntimeError: a graph is being recorded, which this makes invalid.
        """
        if self.recording is not None:
            self.recording.invalid = True
            raise RuntimeError(
                f"CUDA error: operation not permitted when stream is capturing ({what} @ {blame.line()})"
            )
        self.waits[f"{what} @ {blame.line()}"] += 1

    def launch(self, name: str, index: int) -> None:
        """Count a kernel."""
        self.kernels[name] += 1
        self.by_device[index] += 1
        self.asked[index] += 1

    def put(self, elem: torch.Tensor, index: int) -> GpuTensor:
        """Return a CPU tensor as one of a GPU, whose memory it takes."""
        capture = self.capture_on(index)
        place = self.streams[index] if capture is None else capture.pool_in_use
        storage = elem.untyped_storage()
        block = self.memories[index].hold(storage, place)
        self.asked[index] += 1
        if capture is not None and block is not None and block.place is place:
            capture.inner(storage, block)
        return GpuTensor(elem, self, index, block)

    def capture_on(self, index: int) -> Graph | None:
        """Return the graph that records what a GPU's current stream is given; None: it is done."""
        if self.recording is None or self.recording.stream is not self.streams[index]:
            return None
        return self.recording

    def backward(self, work: Callable[[], Result]) -> Result:
        """Do a backward pass in another thread, as autograd's threads for GPUs do.

        What autograd calls there is Python without `Calls`: only checkpointed layers get it back (`private.py`).
        """
        if not self.threads:
            return work()
        caller, done, failed = sys._getframe(1), [], []

        def run() -> None:
            blame.begin_thread(caller)
            try:
                done.append(work())
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=run, name="autograd")
        thread.start()
        thread.join()
        if failed:
            raise failed[0]
        return done[0]
