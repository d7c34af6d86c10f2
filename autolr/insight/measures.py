"""What is said of a pattern, and of two of them (paper 2, section 3.2), with intervals over samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats
from scipy.cluster.hierarchy import dendrogram, linkage
from scipy.spatial.distance import squareform

from autolr.insight.activations import Array, Kind, Pattern
from autolr.schema.recipe import Interval

RESAMPLES = 400
Statistic = Callable[[Array], float]


def gini(pattern: Array) -> float:
    """Return how unevenly the heads are used: 0 all alike, towards 1 one alone. Of absolute values."""
    values = np.sort(np.abs(pattern).ravel())
    total = values.sum()
    if total == 0:
        return 0.0
    ranks = np.arange(1, len(values) + 1)
    return float((2 * (ranks * values).sum() / total - (len(values) + 1)) / len(values))


def variation(pattern: Array) -> float:
    """Return the coefficient of variation σ/μ of absolute values (σ over all heads, not estimated from a sample)."""
    return float(stats.variation(np.abs(pattern), axis=None)) if pattern.any() else 0.0


def kurtosis(pattern: Array) -> float:
    """Return the excess kurtosis of absolute values: μ4 / σ⁴ - 3, that of a normal distribution being 0."""
    values = np.abs(pattern)
    return float(stats.kurtosis(values, axis=None)) if np.ptp(values) else 0.0


def correlation(one: Array, other: Array) -> float:
    """Return Pearson's correlation over heads; 0 where one of them is the same everywhere."""
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return 0.0
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def mse(one: Array, other: Array) -> float:
    """Return the mean squared difference over heads."""
    return float(((one - other) ** 2).mean())


STATISTICS: dict[str, Statistic] = {"gini": gini, "variation": variation, "kurtosis": kurtosis}


def interval(
    patterns: Sequence[Pattern],
    statistic: Callable[..., float],
    kind: Kind = "absolute",
    draws: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Return a statistic of one or several patterns and its 90 % bootstrap interval over samples.

    Patterns of as many samples are of the same samples in the same order, and are drawn together.

    Args:
        patterns: what it is computed from, in its order.
        statistic: of patterns [layers, heads].
        kind: see `Pattern.of`.
        draws: of the bootstrap.
        seed: of the draws.
    """
    sizes = [len(pattern.losses) for pattern in patterns]
    rng = np.random.default_rng(seed)
    weights = {size: bootstrap_weights(size, draws, rng) for size in sorted(set(sizes))}
    drawn = [resampled(pattern.each(kind), weights[size]) for pattern, size in zip(patterns, sizes, strict=True)]
    values = [statistic(*(pattern[draw] for pattern in drawn)) for draw in range(draws)]
    low, high = np.quantile(values, [0.05, 0.95])
    return Interval(mean=statistic(*(pattern.of(kind) for pattern in patterns)), low=float(low), high=float(high))


def bootstrap_weights(samples: int, draws: int, rng: np.random.Generator) -> Array:
    """Return the share of each sample in bootstrap draws, [draws, samples]."""
    return rng.multinomial(samples, np.full(samples, 1 / samples), draws) / samples


def resampled(each: Array, weights: Array) -> Array:
    """Return the mean pattern of each draw, [draws, layers, heads], of patterns [samples, layers, heads]."""
    flat = weights @ each.reshape(len(each), -1)
    return flat.reshape(len(weights), *each.shape[1:])


def bounds(pattern: Pattern, kind: Kind = "absolute", draws: int = RESAMPLES, seed: int = 0) -> tuple[Array, Array]:
    """Return the ends of each head's 90 % bootstrap interval over samples, both [layers, heads]."""
    weights = bootstrap_weights(len(pattern.losses), draws, np.random.default_rng(seed))
    low, high = np.quantile(resampled(pattern.each(kind), weights), [0.05, 0.95], axis=0)
    return low, high


def ranked(pattern: Array) -> list[tuple[int, int]]:
    """Return (layer, head), both counted from 0, of all heads, the most used first."""
    order = np.argsort(-np.abs(pattern), axis=None, kind="stable")
    return [(int(place) // pattern.shape[1], int(place) % pattern.shape[1]) for place in order]


def distances(patterns: Sequence[Array]) -> Array:
    """Return how far patterns are apart: 1 - Pearson's correlation over heads, [patterns, patterns]."""
    count = len(patterns)
    distance = np.zeros((count, count))
    for i in range(count):
        for j in range(i):
            distance[i, j] = distance[j, i] = 1 - correlation(patterns[i], patterns[j])
    return distance


def tree(distances: Array, labels: Sequence[str]) -> dict[str, list[list[float]] | list[str]]:
    """Return the dendrogram of average linkage: `ivl` the leaves' labels, `icoord` and `dcoord` the lines."""
    joined = linkage(squareform(np.clip(distances, 0, None), checks=False), "average")
    drawn = dendrogram(joined, labels=list(labels), no_plot=True)
    return {key: drawn[key] for key in ("ivl", "icoord", "dcoord")}
