"""Data selection: which samples of a pool use the heads as a target task does (paper 2, section 5.2)."""

from __future__ import annotations

import numpy as np

from autolr.errors import DataError
from autolr.insight.activations import Array


def nearest(pool: Array, target: Array, count: int) -> list[int]:
    """Return the samples of a pool that are most like the target's mean, the most alike first.

    Every sample is brought to length 1, so that it counts by direction and not by size; then those come first that
    lie farthest from the pool's mean towards the target's: what all samples of a model share says nothing of a task.

    Args:
        pool: what is known of each sample, [samples, ...]: its activations, or an embedding.
        target: of samples of the target task, [samples, ...].
        count: how many to take.

    Raises:
        DataError: the pool has fewer.
    """
    if count > len(pool):
        raise DataError(f"the pool has {len(pool)} samples, fewer than the {count} that are to be taken")
    flat, wanted = pool.reshape(len(pool), -1), target.reshape(len(target), -1)
    direction = _unit(wanted).mean(0) - _unit(flat).mean(0)
    likeness = _unit(flat) @ direction
    return [int(row) for row in np.argsort(-likeness, kind="stable")[:count]]


def _unit(rows: Array) -> Array:
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-30)  # type: ignore[no-any-return]
