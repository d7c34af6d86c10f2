"""Streams and CUDA graphs: what a stream is given is recorded without being done, and done when it is replayed.

Here an operation is done while it is recorded, since its shapes are needed. At the end, what it changed outside the
graph's pool is restored. Between replays all that is free in the pool is NaN, which shows a recording that reads what
it has not written.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import ref

import torch

from tests.simgpu import private
from tests.simgpu.memory import Block, Pool, block_at
from tests.simgpu.tensors import GpuTensor

if TYPE_CHECKING:
    from tests.simgpu.machine import Gpu

# A byte of which every floating-point type makes NaN, and an integer a place that is not there.
SPOILT = 0xFF


class Stream:
    """What torch.cuda.Stream is. Work is done at once, so streams only matter to memory and to recordings."""

    gpu: ClassVar[Gpu]
    made: ClassVar[int] = 0

    def __init__(self, device: Any = None, priority: int = 0, stream_id: int | None = None) -> None:
        self.device_index = self.gpu.number("cuda" if device is None else device)
        self.device = torch.device("cuda", self.device_index)
        Stream.made += 1
        self.stream_id = self.cuda_stream = Stream.made if stream_id is None else stream_id

    def synchronize(self) -> None:
        """Wait for the stream."""
        self.gpu.wait("Stream.synchronize")

    def query(self) -> bool:
        """Return whether all is done: always."""
        return True

    def wait_stream(self, stream: Stream) -> None:
        """Let this stream wait for another; the host does not."""

    def wait_event(self, event: Any) -> None:
        """Let this stream wait for an event; the host does not."""


class Graph:
    """What torch.cuda.CUDAGraph is."""

    gpu: ClassVar[Gpu]

    def __init__(self, keep_graph: bool = False) -> None:
        self.calls: list[tuple[Any, Any, Any, list[torch.Tensor]]] = []
        self.stream: Stream | None = None
        self.invalid = self.captured = False
        self._pool: Pool | None = None
        self._inner: dict[int, tuple[torch.Tensor, ref[Block]]] = {}  # storages of the pool, by their addresses
        self._read: dict[int, ref[Block]] = {}  # storages outside of it
        self._changed: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # what they were before

    def __del__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Give the pool's memory back."""
        if self.captured and self._pool is not None:
            self._pool.graphs -= 1
        self.captured, self.calls, self._inner = False, [], {}

    @property
    def pool_in_use(self) -> Pool:
        """The pool that it is recorded in."""
        assert self._pool is not None
        return self._pool

    def pool(self) -> Pool:
        """Return the pool that other graphs may share."""
        if not self.captured or self._pool is None:
            raise RuntimeError("Called CUDAGraph::pool() without a preceding successful capture.")
        return self._pool

    def capture_begin(self, pool: Pool | None = None, capture_error_mode: str = "global") -> None:
        """Begin to record the current stream."""
        if capture_error_mode not in ("global", "thread_local", "relaxed"):
            raise RuntimeError(
                "Unknown capture error mode. Expected `global`, `thread_local`, or `relaxed`, got "
                f"{capture_error_mode}"
            )
        stream = self.gpu.streams[self.gpu.current]
        if stream.stream_id == 0:
            raise RuntimeError(
                "CUDA graphs must be captured on a non-default stream. (However, after capture, it's ok to replay "
                "them on the default stream.)"
            )
        if self.gpu.recording is not None:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        self.stream, self._pool = stream, pool or Pool()
        self.gpu.recording = self
        self.gpu.memories[stream.device_index].capturing.append(self._pool)

    def capture_end(self) -> None:
        """End the recording.

        Raises:
            RuntimeError: something that cannot be recorded has made it invalid. As in torch 2.13 the allocator then
                goes on as if the capture were under way.
        """
        stream, pool = self.stream, self._pool
        assert stream is not None and pool is not None
        if self.gpu.streams[self.gpu.current] is not stream:
            raise RuntimeError("Capture must end on the same stream it began on.")
        self.gpu.recording = None
        self._undo()
        if self.invalid:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
        self.gpu.memories[stream.device_index].capturing.remove(pool)
        self.captured = True
        pool.graphs += 1
        if not self.calls:
            warnings.warn(
                "The CUDA Graph is empty. This usually means that the graph was attempted to be captured on wrong "
                "device or stream.",
                stacklevel=3,
            )

    def replay(self) -> None:
        """Do what was recorded."""
        if not self.captured or self.stream is None:
            raise RuntimeError("Called CUDAGraph::replay without a preceding successful capture.")
        if any(block() is None for block in self._read.values()):
            raise RuntimeError(
                "tests/simgpu: the recording reads or writes memory that was freed after it was recorded. On a GPU "
                "that memory may hold other tensors now."
            )
        self.gpu.launch("graph", self.stream.device_index)
        self.gpu.replayed += 1
        with torch.no_grad(), private.quiet():
            for func, args, kwargs, places in self.calls:
                for place, value in zip(places, _tensors(func(*args, **kwargs)), strict=True):
                    if place.data_ptr() != value.data_ptr():
                        place.copy_(value)
        self._spoil()

    # What operations say while they are recorded.

    def before(self, written: Iterable[GpuTensor]) -> None:
        """Remember what tensors are that an operation is about to change."""
        for tensor in written:
            storage = tensor.untyped_storage()
            place = storage.data_ptr()
            if place and place not in self._inner and place not in self._changed:
                whole = _bytes(storage)
                self._changed[place] = whole, whole.clone()

    def add(self, func: Any, args: Any, kwargs: Any, found: Any, baked: Iterable[torch.Tensor] = ()) -> None:
        """Record an operation.

        Args:
            func: the operation, on CPU tensors.
            args: of it.
            kwargs: of it.
            found: what it gave.
            baked: tensors of the host whose numbers become part of the recording.
        """
        baked = tuple(baked)
        if baked:
            args = [_baked(value, baked) for value in args]
            kwargs = {key: _baked(value, baked) for key, value in kwargs.items()}
        places = _tensors(found)
        self.calls.append((func, args, kwargs, places))
        for tensor in [*_tensors(args), *_tensors(tuple(kwargs.values()))]:
            place = tensor.untyped_storage().data_ptr()
            block = block_at(place)
            if place not in self._inner and block is not None:
                self._read[place] = ref(block)

    def inner(self, storage: torch.UntypedStorage, block: Block | None) -> None:
        """Add a storage of the pool."""
        if block is not None:
            self._inner[storage.data_ptr()] = _bytes(storage), ref(block)

    def _undo(self) -> None:
        with torch.no_grad(), private.quiet():
            for tensor, value in self._changed.values():
                tensor.copy_(value)
            for whole, _ in self._inner.values():
                whole.fill_(SPOILT)
        self._changed = {}

    def _spoil(self) -> None:
        """Make NaN of what is free in the pool."""
        with private.quiet():
            for whole, block in self._inner.values():
                if block() is None:
                    whole.fill_(SPOILT)


class Capture:
    """What torch.cuda.graph is: the same steps as in torch 2.13, so it also fails as that does."""

    gpu: ClassVar[Gpu]
    default_capture_stream: ClassVar[Stream | None] = None

    def __init__(
        self,
        cuda_graph: Graph,
        pool: Pool | None = None,
        stream: Stream | None = None,
        capture_error_mode: str = "global",
        **_: Any,
    ) -> None:
        own = type(self)
        if stream is None and own.default_capture_stream is None:
            own.default_capture_stream = torch.cuda.Stream()  # type: ignore[assignment, no-untyped-call]
        self.graph, self._pool, self._mode = cuda_graph, pool, capture_error_mode
        self._context = torch.cuda.stream(stream or own.default_capture_stream)  # type: ignore[arg-type]

    def __enter__(self) -> None:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        self._context.__enter__()  # type: ignore[no-untyped-call]
        self.graph.capture_begin(self._pool, self._mode)

    def __exit__(self, *args: Any) -> None:
        self.graph.capture_end()
        self._context.__exit__(*args)


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [tensor for one in value for tensor in _tensors(one)]
    return []


def _baked(value: Any, baked: tuple[torch.Tensor, ...]) -> Any:
    if isinstance(value, torch.Tensor) and any(value is one for one in baked):
        return value.clone()
    if isinstance(value, (list, tuple)):
        return [_baked(one, baked) for one in value]
    return value


def _bytes(storage: torch.UntypedStorage) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8).set_(storage)
