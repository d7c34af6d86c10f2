"""CUDA graphs of a pack's passes: a pass of a shape that comes again is recorded once and replayed.

A pass launches thousands of small kernels, one for each operation of each layer; with few slots, short batches or a
fast device the launches take longer than the work. A recorded pass is one launch. It reads and writes the tensors it
was recorded with, so batches are copied into one set of tensors for each shape, and the rows of the slots stay where
they are. Texts are padded to a multiple of `STRIDE` tokens, so that there are few shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

Batch = dict[str, Tensor]

STRIDE = 16
# A pass is recorded when it comes for this time; before, it runs as it is, and the libraries warm up.
WARM = 3
# Shapes beyond this many run as they are.
MOST = 64
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
    """

    def __init__(self, pad_id: int, record: Callable[[Callable[[], None]], Recording] | None = None) -> None:
        self.pad_id = pad_id
        self._record = record or self._capture
        self._seen: dict[Hashable, int] = {}
        self._recorded: dict[Hashable, tuple[Batch, Recording]] = {}
        self._pool: Any = None

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
            place, recording = self._recorded[key]
            for name, value in batch.items():
                place[name].copy_(value, non_blocking=True)
            recording.replay()
            return
        self._seen[key] = self._seen.get(key, 0) + 1
        if self._seen[key] < WARM or self.shapes >= MOST:
            work(batch)
            return
        place = {name: value.clone() for name, value in batch.items()}
        recording = self._record(lambda: work(place))
        self._recorded[key] = place, recording
        recording.replay()  # recording a graph does not run it

    def _padded(self, batch: Batch) -> Batch:
        more = -batch["input_ids"].shape[1] % STRIDE
        fill = {"input_ids": self.pad_id, **FILL}
        return {
            name: functional.pad(value, (0, more), value=fill[name]) if value.dim() == 2 and more else value
            for name, value in batch.items()
        }

    def _capture(self, work: Callable[[], None]) -> Recording:
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        # Passes follow each other and leave nothing in the pool that a later one reads, so all share one.
        with torch.cuda.graph(graph, pool=self._pool):
            work()
        self._pool = graph.pool()
        return graph
