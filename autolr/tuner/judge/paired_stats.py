"""Confidence intervals and power of a mean paired difference over seeds and examples, now and with more of them."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import optimize, stats

from autolr.schema.recipe import Interval

# Confidence level of intervals: with other seeds and examples, this share of intervals so computed covers the truth.
LEVEL = 0.90
# Power of a planned comparison: the share of repetitions in which its interval excludes 0.
POWER = 0.80
MAX_SEEDS, MAX_EXAMPLES = 1000, 10**7

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class PairedDifference:
    """The mean of paired differences d[s, i] = mean + seed[s] + example[i] + rest[s, i], and its variance components.

    Seeds and examples are crossed random effects. With one seed the interval holds for other examples only.

    Attributes:
        mean: of all differences.
        seeds, examples: how many there are.
        by_seed: variance of one seed's mean over all examples, rest / examples included; 0 for one seed.
        by_example: variance of example[i].
        rest: variance of rest[s, i].
    """

    mean: float
    seeds: int
    examples: int
    by_seed: float
    by_example: float
    rest: float

    @classmethod
    def of(cls, differences: Array) -> PairedDifference:
        """Estimate the variance components of differences.

        Args:
            differences: on the same examples, [seeds, examples]; at least 2 seeds or examples. A single column may be
                a mean over examples: the interval then holds for other seeds only.
        """
        d = np.asarray(differences, dtype=np.float64)
        seeds, examples = d.shape
        mean = float(d.mean())
        if seeds == 1:
            return cls(mean, 1, examples, 0.0, float(d.var(ddof=1)), 0.0)
        if examples == 1:
            return cls(mean, seeds, 1, float(d.var(ddof=1)), 0.0, 0.0)
        by_seed, by_example = d.mean(1), d.mean(0)
        residual = d - by_seed[:, None] - by_example[None, :] + mean
        rest = float((residual**2).sum()) / ((seeds - 1) * (examples - 1))
        examples_alone = max(0.0, float(by_example.var(ddof=1)) - rest / seeds)
        return cls(mean, seeds, examples, float(by_seed.var(ddof=1)), examples_alone, rest)

    @property
    def parts(self) -> tuple[float, float]:
        """Variance of the mean that is due to seeds (the rest included), and that due to examples."""
        return self.by_seed / self.seeds, self.by_example / self.examples

    def half_width(self, level: float = LEVEL) -> float:
        """Return half the width of the confidence interval.

        Each part gets Student's quantile with its own degrees of freedom, `seeds - 1` and `examples - 1`; the
        half-width is the root of their sum of squares. With few seeds the interval is wide.
        """
        return math.sqrt(
            sum(
                float(stats.t.ppf((1 + level) / 2, count - 1)) ** 2 * variance
                for variance, count in zip(self.parts, (self.seeds, self.examples), strict=True)
                if variance > 0
            )
        )

    def interval(self, level: float = LEVEL) -> Interval:
        """Return the mean and its confidence interval over other seeds and other examples."""
        half = self.half_width(level)
        return Interval(mean=self.mean, low=self.mean - half, high=self.mean + half)

    def power(self, size: float, level: float = LEVEL) -> float:
        """Return the probability that the interval excludes 0 if the true difference is `size`.

        The mean over its standard error is treated as noncentral t, with Satterthwaite's degrees of freedom.
        """
        variance = sum(self.parts)
        if variance == 0:
            return float(size != 0)
        freedom = variance**2 / sum(
            part**2 / (count - 1)
            for part, count in zip(self.parts, (self.seeds, self.examples), strict=True)
            if part > 0
        )
        error = math.sqrt(variance)
        bound, shift = self.half_width(level) / error, abs(size) / error
        above, below = stats.nct.sf(bound, freedom, shift), stats.nct.cdf(-bound, freedom, shift)
        # Far out, where scipy's noncentral t returns NaN, the normal distribution replaces it.
        above = above if np.isfinite(above) else stats.norm.sf(bound - shift)
        return float(above) + (float(below) if np.isfinite(below) else 0.0)

    def detectable(self, level: float = LEVEL, power: float = POWER) -> float:
        """Return the smallest true difference that is found with this power; 0 if there is no variance."""
        width = self.half_width(level)
        if width == 0:
            return 0.0
        high = width
        while self.power(high, level) < power:
            high *= 2
        return float(optimize.brentq(lambda size: self.power(size, level) - power, 0.0, high, xtol=1e-9 * width))

    def planned(self, seeds: int, examples: int) -> PairedDifference:
        """Return what the spread would be with other numbers of seeds and examples."""
        seed_alone = max(0.0, self.by_seed - self.rest / self.examples)
        return replace(self, seeds=seeds, examples=examples, by_seed=seed_alone + self.rest / examples)

    def seeds_needed(self, size: float, level: float = LEVEL, power: float = POWER) -> int | None:
        """Return how many seeds find a difference of `size` on as many examples; None: not even 1000 do."""
        if self.seeds == 1:
            return None
        return _fewest(lambda n: self.planned(n, self.examples).power(size, level) >= power, MAX_SEEDS)

    def examples_needed(self, size: float, level: float = LEVEL, power: float = POWER) -> int | None:
        """Return how many examples find a difference of `size` with as many seeds; None: not even 10 million do."""
        if self.seeds == 1:
            return _fewest(lambda n: replace(self, examples=n).power(size, level) >= power, MAX_EXAMPLES)
        return _fewest(lambda n: self.planned(self.seeds, n).power(size, level) >= power, MAX_EXAMPLES)


def p_value(values: Array) -> float:
    """Return the two-sided p-value of Student's test that the mean of `values` is 0."""
    values = np.asarray(values, dtype=np.float64)
    if np.ptp(values) == 0:
        return 1.0 if values[0] == 0 else 0.0
    return float(stats.ttest_1samp(values, 0.0).pvalue)


def _fewest(is_enough: Callable[[int], bool], most: int) -> int | None:
    """Return the lowest number from 2 to `most` that is enough, if larger ones are as well; None: none is."""
    numbers = range(2, most + 1)
    index = bisect_left(numbers, True, key=is_enough)
    return numbers[index] if index < len(numbers) else None
