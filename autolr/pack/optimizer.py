"""AdamW over the rows of a pack: each slot has its own rates, step count and gradient norm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from autolr.pack.rows import Block, Layout
from autolr.study import Training


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
        factors: what each rate is multiplied by, as `rows`; None: all are 1.
    """

    def __init__(self, layout: Layout, training: Training, rows: Tensor) -> None:
        self.layout = layout
        self.training = training
        self.rows = rows
        self.mean = torch.zeros_like(rows)
        self.square = torch.zeros_like(rows)
        self.factors: Tensor | None = None

    def reset(self, slot: int) -> None:
        """Forget the moments of a row, and what its rates were multiplied by."""
        self.mean[slot].zero_()
        self.square[slot].zero_()
        if self.factors is not None:
            self.factors[slot].fill_(1.0)

    def scale(self, slot: int, name: str, factors: Sequence[float]) -> None:
        """Multiply the rates of a tensor of one row, [d_out, ...], by `factors`: one for each equal part of d_out."""
        if self.factors is None:
            self.factors = torch.ones_like(self.rows)
        part = self.layout.view(self.factors, name)[slot]
        column = part.new_tensor(factors).repeat_interleave(len(part) // len(factors))
        part.mul_(column.unsqueeze(1))

    def move(self, source: int, target: int) -> None:
        """Give the moments and factors of row `source` to row `target`."""
        for buffer in (self.mean, self.square, self.factors):
            if buffer is not None:
                buffer[target].copy_(buffer[source])

    def step(self, grad: Tensor, counts: Sequence[int], rates: Mapping[Block, Sequence[float]]) -> None:
        """Update the first rows.

        Args:
            grad: gradients, [active, columns]; overwritten.
            counts: which update this is for each active row; 1 is its first.
            rates: for each block the rate of each active row; a block whose rate is 0 at the row's
                start is frozen: pass a negative number to leave it out of the norm as well.
        """
        active = grad.shape[0]
        beta1, beta2 = self.training.betas
        as_column = {"dtype": grad.dtype, "device": grad.device}
        lr = {block: torch.tensor(values, **as_column).unsqueeze(1) for block, values in rates.items()}  # type: ignore[arg-type]
        for block, columns in self.layout.blocks.items():
            if min(rates[block]) < 0:
                grad[:, columns].mul_(lr[block] >= 0)
        if self.training.clip_norm is not None:
            norm = torch.linalg.vector_norm(grad, dim=1, keepdim=True)
            # torch.nn.utils.clip_grad_norm_ divides by norm + 1e-6.
            grad.mul_((self.training.clip_norm / (norm + 1e-6)).clamp_(max=1.0))
        bias1 = torch.tensor([1 - beta1**count for count in counts], **as_column).unsqueeze(1)  # type: ignore[arg-type]
        bias2 = torch.tensor([(1 - beta2**count) ** 0.5 for count in counts], **as_column).unsqueeze(1)  # type: ignore[arg-type]
        rows, mean, square = self.rows[:active], self.mean[:active], self.square[:active]
        mean.lerp_(grad, 1 - beta1)
        square.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        update = mean / square.sqrt().div_(bias2).add_(self.training.eps)
        for block, columns in self.layout.blocks.items():
            rate = lr[block].clamp_(min=0.0)
            if self.factors is not None:
                rate = rate * self.factors[:active, columns]
            part = rows[:, columns]
            if self.training.weight_decay:
                part.mul_(1 - rate * self.training.weight_decay)
            part.sub_(update[:, columns].mul_(rate / bias1))
