"""Has a training diverged? One rule for trials, later trainings and full runs, on the scale of the task's own losses.

No loss is cut: a squared error of 2,000 is kept as 2,000, and a loss of 1e-12 as 1e-12.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

# A training has diverged when its last losses are on average this many times its first ones.
FACTOR = 2.0
WINDOW = 10
_LARGEST = float(np.finfo(np.float32).max)


def is_number(loss: float) -> bool:
    """Return True if a loss is finite in float32, in which models are trained."""
    return abs(loss) <= _LARGEST  # False for nan


def first_without_number(losses: Iterable[float]) -> int | None:
    """Return the place of the first loss that is no number; None if there is none."""
    return next((place for place, loss in enumerate(losses) if not is_number(loss)), None)


def diverged(losses: Sequence[float], chance: float = math.inf) -> bool:
    """Return True if a training has gone wrong: its last loss is no number, or far above its own start.

    Args:
        losses: of each step so far.
        chance: loss of a model that knows nothing; losses below twice it are never far above the start. Infinite if
            it is not known: then only a loss that is no number counts.
    """
    if not is_number(losses[-1]):
        return True
    if len(losses) < 2 * WINDOW:
        return False
    return sum(losses[-WINDOW:]) / WINDOW > _limit(losses, chance)


def describe(losses: Sequence[float], step: int) -> str:
    """Return why a training counts as diverged, in words.

    Args:
        losses: of each step so far.
        step: the last of them.
    """
    known = [loss for loss in losses if is_number(loss)]
    if len(known) < len(losses) or len(known) < 2 * WINDOW:
        return f"loss was no number at step {step}"
    start, end = sum(known[:WINDOW]) / WINDOW, sum(known[-WINDOW:]) / WINDOW
    return f"training loss rose from {start:.4g} to {end:.4g} by step {step}"


def stand_in(losses: Sequence[float], chance: float) -> float:
    """Return the loss that stands for one that is no number, so that a diverged training can be compared.

    It is the loss at which the training counts as diverged, or the highest loss the training had.

    Args:
        losses: of each step of the training.
        chance: loss of a model that knows nothing.
    """
    known = [loss for loss in losses if is_number(loss)]
    return max([_limit(known, chance), *known])


def _limit(losses: Sequence[float], chance: float) -> float:
    first = losses[:WINDOW]
    return FACTOR * max(sum(first) / len(first) if first else chance, chance)
