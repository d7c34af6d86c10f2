"""How many held-out examples a rung is scored on: as many as tell its better trials apart.

Trials are compared on the same examples, so what counts is the spread of their paired differences, not that of
their losses; and it is the better half that has to be told apart, not the good from those that have diverged. The
number is found when the first trials reach a rung and holds for all that follow, since scores of one rung are
compared with each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from autolr.data.batches import Labels, TokenSet, joined

# Scored first, to learn how far apart the trials are.
PILOT = 128
# The standard error of a difference between two trials, as a share of the spread between the better ones.
PRECISION = 0.25
# Scoring may take this share of the time of the training since the rung before; a forward pass is a third of a step.
COST = 0.25
FORWARDS_PER_STEP = 3
# No rung has more examples than this, so a spread that needs more need not be resolved.
MOST = 1e9
# Fewer trials tell nothing about their spread.
ENOUGH = 4

Evaluate = Callable[[TokenSet], tuple[Tensor, Tensor]]


class Subset:
    """Nested subsets of splits, each stratified by label, or by length where texts are learned.

    Args:
        parts: the splits, of which a later one is taken from when those before it are used up.
        batch_size: examples of a training step.
        seed: of the order.
        counts: examples of each rung, where known from before.
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
        losses, said = evaluate(self._part(0, first))
        self.counts[step] = count = min(most, max(first, needed(losses) if len(losses) >= ENOUGH else most))
        if count > first:
            more_losses, more_said = evaluate(self._part(first, count))
            losses, said = torch.cat([losses, more_losses], 1), torch.cat([said, more_said], 1)
        return losses, said, self._part(0, count).labels

    def _part(self, start: int, end: int) -> TokenSet:
        return self.data.take(range(start, min(end, len(self.data))))


def affordable(since: int, batch_size: int) -> int:
    """Return on how many examples a rung may be scored, after so many steps of training since the rung before."""
    return max(PILOT, int(COST * FORWARDS_PER_STEP * since * batch_size))


def needed(losses: Tensor) -> int:
    """Return how many examples tell the better half of trials apart, from the `losses` [trials, examples] of some."""
    finite = losses[torch.isfinite(losses).all(1)].numpy()
    finite = finite[finite.mean(1).argsort()[: max(ENOUGH, len(finite) // 2)]]
    if len(finite) < 2:
        return 0
    trials, examples = finite.shape
    own = finite - finite.mean(0)  # what an example costs every trial drops out of their differences
    noise = 2 * float(own.var(1, ddof=1).mean()) * trials / (trials - 1)
    spread = max(float(finite.mean(1).var(ddof=1)) - noise / 2 / examples, noise / MOST)
    return int(noise / (PRECISION**2 * spread)) + 1 if noise else 1


def stratified_order(labels: Sequence[float], seed: int) -> list[int]:
    """Return all rows in an order whose every beginning holds the labels in their proportions."""
    rng = np.random.default_rng([seed, 13])
    label = np.asarray(labels)
    place = np.empty(len(label))
    for value in np.unique(label):
        rows = rng.permutation(np.flatnonzero(label == value))
        place[rows] = (np.arange(len(rows)) + rng.uniform()) / len(rows)
    return [int(row) for row in np.argsort(place, kind="stable")]
