"""Which adapters to merge: the greedy soup.

The best adapter is taken. The others are tried in the order of their losses, and one stays if the average with it has
a lower loss than the average without it. Losses are those of validation. Wortsman et al., "Model soups", ICML 2022,
arXiv:2203.05482, with the loss in place of the accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Tried:
    """An adapter that was tried.

    Attributes:
        index: its place among all.
        taken: whether it is an ingredient.
        merged: loss of the average with it; None where none was measured.
        reason: why it was taken or left out.
    """

    index: int
    taken: bool
    merged: float | None
    reason: str


@dataclass(frozen=True)
class Choice:
    """What the greedy choice has taken.

    Attributes:
        taken: places of the ingredients, the best first.
        loss: of their average.
        tried: all adapters, in the order in which they were tried.
    """

    taken: tuple[int, ...]
    loss: float
    tried: tuple[Tried, ...]


def choose(losses: Sequence[float], loss_of: Callable[[tuple[int, ...]], float]) -> Choice:
    """Choose the ingredients.

    Args:
        losses: of each adapter alone, on validation. One that is no finite number is left out.
        loss_of: measures the average of the adapters at these places, on the same examples.

    Raises:
        ValueError: no loss is a finite number.
    """
    usable = [index for index, loss in enumerate(losses) if math.isfinite(loss)]
    if not usable:
        raise ValueError("no adapter has a finite loss")
    best, *rest = sorted(usable, key=lambda index: losses[index])  # of equal ones, the one given first
    taken: tuple[int, ...] = (best,)
    lowest = losses[best]
    tried = [Tried(best, True, None, "has the lowest loss of all")]
    for index in rest:
        merged = loss_of((*taken, index))
        if merged < lowest:  # never true of NaN
            tried.append(Tried(index, True, merged, "lowers the loss of the average"))
            taken, lowest = (*taken, index), merged
        else:
            tried.append(Tried(index, False, merged, "does not lower the loss of the average"))
    left = [index for index in range(len(losses)) if index not in usable]
    tried += [Tried(index, False, None, "has no finite loss: its training diverged") for index in left]
    return Choice(taken, lowest, tuple(tried))
