"""AdamW over the rows of a pack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from autolr.pack.row_optimizer import Rates, RowOptimizer
from autolr.schema.training import Training


class RowAdamW(RowOptimizer):
    """torch.optim.AdamW, row by row."""

    STATE = ("mean", "square")

    @staticmethod
    def alone(groups: list[dict[str, Any]], training: Training) -> torch.optim.AdamW:
        """Return torch's AdamW with the betas and eps of a training; each group has its own weight decay."""
        return torch.optim.AdamW(groups, betas=training.betas, eps=training.eps)

    def numbers(self, counts: Sequence[int], rates: Rates) -> list[list[float]]:
        """Return the step size and the decay of each block, and the second moment's bias correction."""
        beta1, beta2 = self.training.betas
        moving = [[max(0.0, rate) for rate in values] for values in rates.values()]
        sizes = [[rate / (1 - beta1**count) for rate, count in zip(values, counts, strict=True)] for values in moving]
        decays = [[rate * self.training.weight_decay for rate in values] for values in moving]
        return [*sizes, *decays, [(1 - beta2**count) ** 0.5 for count in counts]]

    def move_rows(self, grad: Tensor, numbers: Tensor, scratch: Tensor) -> None:
        """Update the first rows and their moments, as many columns at a time as `scratch` has."""
        (beta1, beta2), (active, width) = self.training.betas, scratch.shape
        blocks = self.layout.blocks
        sizes, decays = (dict(zip(blocks, part, strict=True)) for part in numbers[:-1].tensor_split(2))
        bias2 = numbers[-1]
        for start in range(0, grad.shape[1], width):
            piece = slice(start, min(start + width, grad.shape[1]))
            buffers = (grad, self.state["mean"], self.state["square"], self.rows)
            own, mean, square, rows = (buffer[:active, piece] for buffer in buffers)
            update = scratch[:, : piece.stop - piece.start]
            mean.lerp_(own, 1 - beta1)
            square.mul_(beta2).addcmul_(own, own, value=1 - beta2)
            torch.sqrt(square, out=update)
            torch.div(mean, update.div_(bias2).add_(self.training.eps), out=update)
            for block, columns in blocks.items():
                part = slice(max(0, columns.start - start), max(0, min(columns.stop, piece.stop) - start))
                if part.start >= part.stop:
                    continue
                weights, change = rows[:, part], update[:, part].mul_(sizes[block])
                if self.training.weight_decay:
                    weights.addcmul_(weights, decays[block], value=-1)
                weights.sub_(change)
