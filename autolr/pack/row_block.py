"""The row block of a pack: weights, averages, gradients and optimizer state of all slots, one row each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from autolr.pack.layout import Layout
from autolr.pack.memory import to_device
from autolr.pack.optimizers import row_optimizer
from autolr.pack.row_optimizer import Rates
from autolr.schema.training import Training

# The running average of a slot's weights gives step t the weight (c + 1) / (t + c).
AVERAGE_C = 8.0
Shapes = Mapping[str, tuple[int, ...]]


class RowBlock:
    """What all slots of a pack train, and what belongs to it.

    Args:
        layout: which columns hold which tensor.
        training: settings of the optimizer.
        optimizer: one of `autolr.pack.optimizers`.
        slots: rows.
        dtype: of all numbers.
        device: where they are.

    Attributes:
        rows: parameters, [slots, columns].
        averages: their running averages, as `rows`.
        gradients: as `rows`.
        losses: of the last pass, [slots].
        scales: of each slot's adapters, [slots].
        optimizer: moves the rows.
    """

    def __init__(
        self,
        layout: Layout,
        training: Training,
        optimizer: str,
        slots: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.layout = layout
        self.rows = torch.zeros(slots, layout.columns, dtype=dtype, device=device)
        self.averages = torch.zeros_like(self.rows)
        self.optimizer = row_optimizer(optimizer)(layout, training, self.rows)
        self.gradients = torch.zeros_like(self.rows)
        self.losses = self.rows.new_zeros(slots)
        self.scales = self.rows.new_zeros(slots)

    @property
    def slot_bytes(self) -> int:
        """Bytes of one row in all buffers."""
        return sum(buffer[0].nbytes for buffer in (*self._saved().values(), self.gradients))

    def start(self, slot: int, values: Mapping[str, Tensor], scale: float) -> None:
        """Let a row start a training from `values`; see `Layout.write`."""
        self.layout.write(self.rows[slot], values)
        self.averages[slot].copy_(self.rows[slot])
        self.optimizer.reset(slot)
        self.scales[slot] = scale

    def move(self, source: int, target: int) -> None:
        """Give row `target` what row `source` has."""
        self.rows[target].copy_(self.rows[source])
        self.averages[target].copy_(self.averages[source])
        self.optimizer.move(source, target)
        self.scales[target] = self.scales[source]

    def step(self, counts: Sequence[int], rates: Rates) -> tuple[Tensor, Tensor]:
        """Move the first rows by their gradients; see `RowOptimizer.step`. The averages follow by `average`.

        All memory is taken before anything moves, so a step for which there was none can be taken again.

        Returns:
            Copies of the losses, [active], and the weights of this step in the averages, [active, 1].
        """
        weights = [(AVERAGE_C + 1) / (count + AVERAGE_C) for count in counts]
        losses, column = self.losses[: len(counts)].clone(), to_device(weights, self.rows).unsqueeze(1)
        self.optimizer.step(self.gradients[: len(counts)], counts, rates)
        return losses, column

    def average(self, weights: Tensor) -> None:
        """Let the averages of the first rows follow the rows, by weights [active, 1]."""
        self.averages[: len(weights)].lerp_(self.rows[: len(weights)], weights)

    def read(self, slot: int, shapes: Shapes, *, averaged: bool) -> dict[str, Tensor]:
        """Return copies of the tensors of a row."""
        return self.layout.read((self.averages if averaged else self.rows)[slot], shapes)

    def state(self, slot: int, shapes: Shapes) -> dict[str, Tensor]:
        """Return copies, on the CPU, of all that a row's training resumes from, such as `weights.<tensor>`."""
        return {
            f"{part}.{name}": tensor
            for part, buffer in self._saved().items()
            for name, tensor in self.layout.read(buffer[slot].cpu(), shapes).items()
        }

    def restore(self, slot: int, shapes: Shapes, state: Mapping[str, Tensor]) -> None:
        """Set a row to what `state` has returned.

        Raises:
            KeyError: the state lacks a tensor.
            RuntimeError: a tensor has another shape.
        """
        for part, buffer in self._saved().items():
            host = buffer[slot].cpu()  # of a CPU the row itself
            for name in shapes:
                self.layout.fill(host, name, state[f"{part}.{name}"])
            buffer[slot].copy_(host)

    def _saved(self) -> dict[str, Tensor]:
        return {"weights": self.rows, "average": self.averages, **self.optimizer.state}
