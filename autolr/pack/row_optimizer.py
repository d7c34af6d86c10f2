"""What a pack needs of an optimizer: one step of all rows, each with its own rates, step count and gradient norm."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from autolr.pack.layout import Block, Layout
from autolr.pack.memory import to_device
from autolr.schema.training import Training

# Numbers that a step of all rows holds in memory beside the buffers: 64 MiB in float32.
SCRATCH = 2**24
Rates = Mapping[Block, Sequence[float]]


class RowOptimizer(ABC):
    """An optimizer of the rows of a pack: the base class of all, which freezes and clips what they have in common.

    A subclass names its buffers in `STATE`, prepares a step's numbers on the host, moves the rows by them, and names
    the torch optimizer whose steps these are. `Layout.view(rows, name)` gives one tensor of all rows as
    [slots, d_out, rank], for optimizers that need whole matrices. `autolr.pack.optimizers` lists the subclasses.

    Args:
        layout: which columns belong to which block.
        training: betas, eps, weight decay and the largest gradient norm of a slot.
        rows: parameters, [slots, columns]; updated in place.

    Attributes:
        STATE: names of the buffers that a slot's training resumes from.
        state: these buffers, each as `rows`.
        scratch: numbers of each row that a step changes at a time; as many are in memory beside the buffers.
    """

    STATE: ClassVar[tuple[str, ...]]

    def __init__(self, layout: Layout, training: Training, rows: Tensor) -> None:
        self.layout = layout
        self.training = training
        self.rows = rows
        self.state = {name: torch.zeros_like(rows) for name in self.STATE}
        self.scratch = max(1, SCRATCH // len(rows))

    @classmethod
    def bytes_per_parameter(cls, item: int = 4) -> int:
        """Return the bytes of a trained parameter: weight, gradient and state, each of `item` bytes."""
        return item * (2 + len(cls.STATE))

    @staticmethod
    @abstractmethod
    def alone(groups: list[dict[str, Any]], training: Training) -> torch.optim.Optimizer:
        """Return the torch optimizer that takes the same steps in a run alone."""

    @abstractmethod
    def numbers(self, counts: Sequence[int], rates: Rates) -> list[list[float]]:
        """Return what a step needs of each active row beside its gradient, [numbers, active]; see `step`."""

    @abstractmethod
    def move_rows(self, grad: Tensor, numbers: Tensor, scratch: Tensor) -> None:
        """Update the first rows and their state; no memory is left to be taken.

        Args:
            grad: clipped gradients, 0 where a block is frozen, [active, columns]; may be overwritten.
            numbers: those of `numbers` on the device, [numbers, active, 1].
            scratch: [active, at most `self.scratch` columns], to be used.
        """

    def reset(self, slot: int) -> None:
        """Forget the state of a row."""
        for buffer in self.state.values():
            buffer[slot].zero_()

    def move(self, source: int, target: int) -> None:
        """Give the state of row `source` to row `target`."""
        for buffer in self.state.values():
            buffer[target].copy_(buffer[source])

    def step(self, grad: Tensor, counts: Sequence[int], rates: Rates) -> None:
        """Update the first rows.

        All memory is taken before anything is changed: if there is none, rows and state are as they were.

        Args:
            grad: gradients, [active, columns]; overwritten.
            counts: which update this is for each active row; 1 is its first.
            rates: for each block the rate of each active row; a block whose rate is 0 at the row's
                start is frozen: pass a negative number to leave it out of the norm as well.

        Raises:
            torch.OutOfMemoryError: the device has no memory for `scratch` numbers of each active row.
        """
        trained = [[float(rate >= 0) for rate in values] for values in rates.values()]
        on_device = to_device([*trained, *self.numbers(counts, rates)], grad).unsqueeze(2)
        norm = grad.new_empty(len(grad), 1)
        scratch = grad.new_empty(len(grad), min(self.scratch, grad.shape[1]))
        for is_trained, (block, columns) in zip(on_device, self.layout.blocks.items(), strict=False):
            if min(rates[block]) < 0:
                grad[:, columns].mul_(is_trained)
        if self.training.max_grad_norm is not None:
            torch.linalg.vector_norm(grad, dim=1, keepdim=True, out=norm)
            # torch.nn.utils.clip_grad_norm_ divides by norm + 1e-6.
            grad.mul_(norm.add_(1e-6).reciprocal_().mul_(self.training.max_grad_norm).clamp_(max=1.0))
        self.move_rows(grad, on_device[len(rates) :], scratch)

    def shrink(self) -> bool:
        """Take a quarter of the memory beside the buffers from now on; return False if it is the least already."""
        if self.scratch == 1:
            return False
        self.scratch = max(1, min(self.scratch, self.layout.columns) // 4)
        return True
