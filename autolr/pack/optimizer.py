"""AdamW over the rows of a pack: each slot has its own rates, step count and gradient norm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from autolr.pack.memory import to_device
from autolr.pack.rows import Block, Layout
from autolr.study import Training

# Numbers that a step of all rows holds in memory beside the buffers: 64 MiB in float32.
SCRATCH = 2**24


def schedule_factor(training: Training, step: int, steps: int) -> float:
    """Return what the rate is multiplied by in update `step` (0 is the first) of `steps`.

    Warm-up and linear decay are those of `transformers.get_scheduler`.
    """
    warmup = round(training.warmup * steps)
    if step < warmup:
        return step / warmup
    if training.schedule == "constant":
        return 1.0
    return max(0.0, (steps - step) / max(1, steps - warmup))


class RowAdamW:
    """torch.optim.AdamW, row by row.

    Args:
        layout: which columns belong to which block.
        training: betas, eps, weight decay and the largest gradient norm of a slot.
        rows: parameters, [slots, columns]; updated in place.

    Attributes:
        scratch: numbers of each row that a step changes at a time; as many are in memory beside the buffers.
    """

    def __init__(self, layout: Layout, training: Training, rows: Tensor) -> None:
        self.layout = layout
        self.training = training
        self.rows = rows
        self.mean = torch.zeros_like(rows)
        self.square = torch.zeros_like(rows)
        self.scratch = max(1, SCRATCH // len(rows))

    def reset(self, slot: int) -> None:
        """Forget the moments of a row."""
        self.mean[slot].zero_()
        self.square[slot].zero_()

    def move(self, source: int, target: int) -> None:
        """Give the moments of row `source` to row `target`."""
        for buffer in (self.mean, self.square):
            buffer[target].copy_(buffer[source])

    def step(self, grad: Tensor, counts: Sequence[int], rates: Mapping[Block, Sequence[float]]) -> None:
        """Update the first rows.

        All memory is taken before anything is changed: where there is none, rows and moments are as they were.

        Args:
            grad: gradients, [active, columns]; overwritten.
            counts: which update this is for each active row; 1 is its first.
            rates: for each block the rate of each active row; a block whose rate is 0 at the row's
                start is frozen: pass a negative number to leave it out of the norm as well.

        Raises:
            torch.OutOfMemoryError: the device has no memory for `scratch` numbers of each active row.
        """
        beta1, beta2 = self.training.betas
        numbers = to_device(self._numbers(counts, rates), grad).unsqueeze(2)  # [3 * blocks + 1, active, 1]
        sizes, decays, kept = (dict(zip(rates, part, strict=True)) for part in numbers[:-1].tensor_split(3))
        bias2, norm = numbers[-1], grad.new_empty(len(grad), 1)
        width = min(self.scratch, grad.shape[1])
        scratch = grad.new_empty(len(grad), width)

        for block, columns in self.layout.blocks.items():
            if min(rates[block]) < 0:
                grad[:, columns].mul_(kept[block])
        if self.training.clip_norm is not None:
            torch.linalg.vector_norm(grad, dim=1, keepdim=True, out=norm)
            # torch.nn.utils.clip_grad_norm_ divides by norm + 1e-6.
            grad.mul_(norm.add_(1e-6).reciprocal_().mul_(self.training.clip_norm).clamp_(max=1.0))
        for start in range(0, grad.shape[1], width):
            piece = slice(start, min(start + width, grad.shape[1]))
            own, mean, square, rows = (each[: len(grad), piece] for each in (grad, self.mean, self.square, self.rows))
            update = scratch[:, : piece.stop - piece.start]
            mean.lerp_(own, 1 - beta1)
            square.mul_(beta2).addcmul_(own, own, value=1 - beta2)
            torch.sqrt(square, out=update)
            torch.div(mean, update.div_(bias2).add_(self.training.eps), out=update)
            for block, columns in self.layout.blocks.items():
                part = slice(max(0, columns.start - start), max(0, min(columns.stop, piece.stop) - start))
                if part.start >= part.stop:
                    continue
                weights, change = rows[:, part], update[:, part].mul_(sizes[block])
                if self.training.weight_decay:
                    weights.addcmul_(weights, decays[block], value=-1)
                weights.sub_(change)

    def _numbers(self, counts: Sequence[int], rates: Mapping[Block, Sequence[float]]) -> list[list[float]]:
        """Return all numbers of a step, [3 * blocks + 1, active].

        They are step sizes, decays and whether it learns, of each block; then the second moment's bias correction.
        """
        beta1, beta2 = self.training.betas
        bias1 = [1 - beta1**count for count in counts]
        moving = [[max(0.0, rate) for rate in values] for values in rates.values()]
        sizes = [[rate / bias for rate, bias in zip(values, bias1, strict=True)] for values in moving]
        decays = [[rate * self.training.weight_decay for rate in values] for values in moving]
        kept = [[float(rate >= 0) for rate in values] for values in rates.values()]
        return [*sizes, *decays, *kept, [(1 - beta2**count) ** 0.5 for count in counts]]
