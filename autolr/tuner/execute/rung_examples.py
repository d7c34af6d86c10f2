"""How many held-out examples a rung is scored on: as many as separate its better trials.

Trials are scored on the same examples, so the spread of paired differences counts, not that of the losses. Only the
better half must be separated, not good trials from diverged ones. The first trials at a rung fix the number for all
later ones, since scores of one rung are compared with each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from autolr.data.batches import Labels, TokenSet, joined

# Examples that are scored first, to estimate how far apart the trials are.
PILOT = 128
# The standard error of a difference between two trials, as a share of the spread between the better ones.
PRECISION = 0.25
# Longest time of scoring, as a share of the training since the rung before; a forward pass is a third of a step.
MAX_COST = 0.25
FORWARDS_PER_STEP = 3
# No rung has more examples, so a spread that would need more is not resolved.
MAX_EXAMPLES = 1e9
# Fewer trials say nothing about their spread.
MIN_TRIALS = 4

Evaluate = Callable[[TokenSet], tuple[Tensor, Tensor]]


class Subset:
    """Nested subsets of splits, stratified by label, or by length for language models.

    Args:
        parts: the splits; a later one is used when the earlier ones are used up.
        batch_size: examples of a training step.
        seed: of the order.
        counts: examples of each rung, if known from before.
    """

    def __init__(
        self, parts: Sequence[TokenSet], batch_size: int, seed: int, counts: dict[int, int] | None = None
    ) -> None:
        self.batch_size = batch_size
        self.counts = dict(counts or {})
        self.data = joined([part.take(stratified_order(part.strata, seed)) for part in parts])

    def score(self, evaluate: Evaluate, step: int, since: int) -> tuple[Tensor, Tensor, Labels]:
        """Score trials at a rung.

        Args:
            evaluate: returns losses and predictions, both [trials, examples], of the trials on some examples.
            step: the rung.
            since: steps of training since the rung before.

        Returns:
            Losses and predictions on the rung's examples, float64 [trials, examples], and these examples' labels.
        """
        most = min(len(self.data), affordable(since, self.batch_size))
        if step in self.counts:
            part = self._part(0, self.counts[step])
            return *evaluate(part), part.labels
        first = min(PILOT, most)
        losses, predictions = evaluate(self._part(0, first))
        self.counts[step] = count = min(most, max(first, needed(losses) if len(losses) >= MIN_TRIALS else most))
        if count > first:
            more_losses, more_predictions = evaluate(self._part(first, count))
            losses, predictions = torch.cat([losses, more_losses], 1), torch.cat([predictions, more_predictions], 1)
        return losses, predictions, self._part(0, count).labels

    def _part(self, start: int, end: int) -> TokenSet:
        return self.data.take(range(start, min(end, len(self.data))))


def affordable(since: int, batch_size: int) -> int:
    """Return how many examples a rung may be scored on, `since` training steps after the rung before."""
    return max(PILOT, int(MAX_COST * FORWARDS_PER_STEP * since * batch_size))


def needed(losses: Tensor) -> int:
    """Return how many examples separate the better half of trials, estimated from `losses`, [trials, examples]."""
    finite = losses[torch.isfinite(losses).all(1)].numpy()
    finite = finite[finite.mean(1).argsort()[: max(MIN_TRIALS, len(finite) // 2)]]
    if len(finite) < 2:
        return 0
    trials, examples = finite.shape
    residual = finite - finite.mean(0)  # what an example costs every trial drops out of their differences
    noise = 2 * float(residual.var(1, ddof=1).mean()) * trials / (trials - 1)
    spread = max(float(finite.mean(1).var(ddof=1)) - noise / 2 / examples, noise / MAX_EXAMPLES)
    return int(noise / (PRECISION**2 * spread)) + 1 if noise else 1


def stratified_order(labels: Sequence[float], seed: int) -> list[int]:
    """Return all rows in an order in which every prefix has the labels in their proportions."""
    rng = np.random.default_rng([seed, 13])
    label = np.asarray(labels)
    position = np.empty(len(label))
    for value in np.unique(label):
        rows = rng.permutation(np.flatnonzero(label == value))
        position[rows] = (np.arange(len(rows)) + rng.uniform()) / len(rows)
    return [int(row) for row in np.argsort(position, kind="stable")]
