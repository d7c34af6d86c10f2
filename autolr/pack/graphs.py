"""CUDA graphs of a pack's passes: a pass of a shape that comes again is recorded once and replayed.

A pass launches thousands of small kernels, one for each operation of each layer; with few slots, short batches or a
fast device the launches take longer than the work. A recorded pass is one launch. It reads and writes the tensors it
was recorded with, so batches are copied into one set of tensors for each shape, and the rows of the slots stay where
they are. Texts are padded to a multiple of `STRIDE` tokens, so that there are few shapes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

Batch = dict[str, Tensor]

STRIDE = 16
# A pass is recorded when it comes for this time; before, it runs as it is, and the libraries warm up.
WARM = 3
# Recordings that are kept; the one that was not used for the longest time makes room for another.
MAX_RECORDINGS = 64
# What the places of a padded text hold; ids are padded with the tokenizer's own.
FILL = {"attention_mask": 0, "labels": -100}


class Recording(Protocol):
    """A pass that was recorded."""

    def replay(self) -> None:
        """Do it again."""


class Graphs:
    """Recorded passes, by what tells them apart.

    Args:
        pad_id: id used to pad.
        record: does a pass and returns its recording; None: as a CUDA graph.
        limit: tokens of the longest text that the model takes; None: any.
    """

    def __init__(
        self, pad_id: int, record: Callable[[Callable[[], None]], Recording] | None = None, limit: int | None = None
    ) -> None:
        self.pad_id = pad_id
        self.limit = limit
        self._record = record
        self._seen: dict[Hashable, int] = {}
        self._recorded: dict[Hashable, tuple[Batch, Recording]] = {}
        self._pool: Any = None
        self._stream: Any = None

    @property
    def shapes(self) -> int:
        """Recorded passes."""
        return len(self._recorded)

    def run(self, key: Hashable, batch: Batch, work: Callable[[Batch], None]) -> None:
        """Do `work` on a batch, from its recording where there is one.

        Args:
            key: changes with everything but the batch that `work` reads and writes, and with nothing else.
            batch: tensors [rows, tokens] or [rows].
            work: leaves its results in tensors that stay in their places, and gives the same kernels each time.
        """
        batch = self._padded(batch)
        key = (key, *(value.shape for value in batch.values()))
        if key in self._recorded:
            place, recording = self._recorded[key] = self._recorded.pop(key)  # the last is the newest
            for name, value in batch.items():
                place[name].copy_(value, non_blocking=True)
            recording.replay()
            return
        self._seen[key] = self._seen.get(key, 0) + 1
        if self._seen[key] < WARM:
            work(batch)
            return
        if self.shapes >= MAX_RECORDINGS:
            oldest = next(iter(self._recorded))
            del self._recorded[oldest], self._seen[oldest]
        place = {name: value.clone() for name, value in batch.items()}
        recording = (self._record or partial(self._capture, batch["input_ids"].device))(lambda: work(place))
        self._recorded[key] = place, recording
        recording.replay()  # recording a graph does not run it

    def _padded(self, batch: Batch) -> Batch:
        length = batch["input_ids"].shape[1]
        more = -length % STRIDE if self.limit is None else max(0, min(-length % STRIDE, self.limit - length))
        fill = {"input_ids": self.pad_id, **FILL}
        return {
            name: functional.pad(value, (0, more), value=fill[name]) if value.dim() == 2 and more else value
            for name, value in batch.items()
        }

    def _capture(self, device: torch.device, work: Callable[[], None]) -> Recording:
        """Record a pass as a CUDA graph.

        Raises:
            RuntimeError: the pass waits for the device, or gives it nothing to do. It leaves nothing behind.
        """
        with torch.cuda.device(device), warnings.catch_warnings():
            warnings.filterwarnings("error", "The CUDA Graph is empty")  # its replay would train nothing
            graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
            # Passes follow each other and leave nothing in the pool that a later one reads, so all share one.
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            # torch's own stream for recordings is that of the first device the process has recorded on.
            self._stream = self._stream or torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            torch.cuda.synchronize()
            try:
                with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                    work()
            except BaseException as error:
                # Up to torch 2.13 at least, a recording that fails keeps its stream current, and the allocator takes
                # it to be under way for good.
                torch.cuda.set_stream(stream)
                with suppress(Exception):
                    torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), self._pool)
                if isinstance(error, Warning):
                    raise RuntimeError(str(error)) from None
                raise
        return graph
