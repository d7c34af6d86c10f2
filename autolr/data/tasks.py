"""What a model is asked to do: a loss for each example, and scores.

A new task (regression, language modelling) is a new class with these methods.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Classification:
    """One class for each text. The loss is the cross-entropy, the metric the accuracy."""

    classes: tuple[str, ...]
    metric: str = "accuracy"

    @property
    def chance(self) -> float:
        """Loss of a model that knows nothing, in nats."""
        return math.log(len(self.classes))

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each example in nats, [rows], for `logits` [rows, classes]."""
        return functional.cross_entropy(logits, labels, reduction="none")

    def hits(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return 1.0 for each example whose largest logit is its label, else 0.0, [rows]."""
        return (logits.argmax(-1) == labels).to(torch.float64)
