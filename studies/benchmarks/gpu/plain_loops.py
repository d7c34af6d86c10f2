"""PEFT trainings one after another: the plain loop a user would write, and the same loop in CUDA graphs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from autolr.data.batches import TokenSet, batch_order
from autolr.pack.graphs import FILL, STRIDE
from studies.benchmarks.gpu.parts import DEVICE, Run

Batch = dict[str, Tensor]
RATE = 1e-4
# Steps of a shape before it is captured, on a stream of their own.
WARM = 3


class Loop:
    """A plain training loop: bf16 autocast, fused AdamW, clipping, batches from pinned memory, no needless wait.

    Args:
        run: the call it belongs to.
        model: a PEFT model; every training goes on with its weights, which changes no timing.
        data: the examples.
        batch_size: of each step.
        graphs: capture whole steps, forward to optimizer, one CUDA graph for each shape, and replay them.
    """

    def __init__(self, run: Run, model: Any, data: TokenSet, batch_size: int, *, graphs: bool = False) -> None:
        self.run, self.model, self.data, self.batch_size, self.graphs = run, model, data, batch_size, graphs
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        # A rate in a tensor can follow a schedule between replays.
        rate: Any = torch.tensor(RATE, device=DEVICE) if graphs else RATE
        self.optimizer = torch.optim.AdamW(self.trained, lr=rate, weight_decay=0.0, fused=True, capturable=graphs)
        self.loss = torch.zeros((), device=DEVICE)
        self.captured: dict[tuple[torch.Size, ...], tuple[Batch, Any]] = {}
        self.pool: Any = None
        model.train()

    def rate(self, steps: int, seed: int = 0) -> float:
        """Return steps per second of a training."""
        orders = batch_order(self.data.lengths(), self.batch_size, steps, seed)
        self.run.wait()
        start = time.perf_counter()
        for rows in orders:
            self.step(rows)
        self.run.wait()
        return steps / (time.perf_counter() - start)

    def step(self, rows: Sequence[int]) -> None:
        """Take one step; a shape that comes for the first time is captured before."""
        batch = self.data.collate(rows)
        batch = _padded(batch, self.data.pad_id) if self.graphs else batch
        batch = {name: value.pin_memory().to(DEVICE, non_blocking=True) for name, value in batch.items()}
        if not self.graphs:
            self._train(batch)
            return
        key = tuple(value.shape for value in batch.values())
        if key not in self.captured:
            self.captured[key] = self._capture(batch)
        place, graph = self.captured[key]
        for name, value in batch.items():
            place[name].copy_(value, non_blocking=True)
        graph.replay()

    def _train(self, batch: Batch) -> None:
        # What autocast keeps of weights would be of a pass that is not replayed.
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=not self.graphs):
            loss = self.model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.loss.copy_(loss.detach())
        self.optimizer.zero_grad()

    def _capture(self, batch: Batch) -> tuple[Batch, Any]:
        """Capture a whole step; nothing has been learned by it, or in the steps that warm up, but noise."""
        place = {name: value.clone() for name, value in batch.items()}
        with self.run.side_stream():
            for _ in range(WARM):
                self._train(place)
        graph = torch.cuda.CUDAGraph()
        self.run.wait()
        with torch.cuda.graph(graph, pool=self.pool):
            self._train(place)
        self.pool = graph.pool()
        return place, graph


def differ(run: Run, model: Any, data: TokenSet, batch_size: int, steps: int) -> float:
    """Return how far the loss of the captured loop is from the plain loop's after the same steps.

    Args:
        run: the call.
        model: a PEFT model; its weights are those it had, afterwards.
        data: the examples.
        batch_size: of each step.
        steps: on one and the same batch, so that one graph is captured.
    """
    rows = batch_order(data.lengths(), batch_size, 1, 0)[0]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    kept = [parameter.detach().clone() for parameter in trained]
    losses = []
    for graphs in (False, True):
        loop = Loop(run, model, data, batch_size, graphs=graphs)
        # Capturing begins with steps that warm up.
        for _ in range(steps + (0 if graphs else WARM)):
            loop.step(rows)
        losses.append(float(loop.loss))
        with torch.no_grad():
            for parameter, value in zip(trained, kept, strict=True):
                parameter.copy_(value)
    return abs(losses[0] - losses[1])


def _padded(batch: Batch, pad_id: int) -> Batch:
    """Pad texts as recorded packs do, so that there are few shapes."""
    more = -batch["input_ids"].shape[1] % STRIDE
    fill = {"input_ids": pad_id, **FILL}
    return {
        name: functional.pad(value, (0, more), value=fill[name]) if value.dim() == 2 and more else value
        for name, value in batch.items()
    }
