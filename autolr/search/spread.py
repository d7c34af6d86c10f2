"""How sure a mean difference is: over seeds and over examples, now and with more of either."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import stats

from autolr.recipe import Interval

LEVEL = 0.90
# A comparison is planned so that it finds the difference in this share of cases.
POWER = 0.80
MOST_SEEDS, MOST_EXAMPLES = 1000, 10**7

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Spread:
    """A mean of paired differences d[s, i] = mean + seed[s] + example[i] + rest, and the variances of its parts.

    Seeds and examples are crossed random effects. Differences of a single training each (`seeds` is 1) say
    something about other examples only.

    Attributes:
        mean: of all differences.
        seeds, examples: how many there are.
        by_seed: variance of one seed's mean over all examples, the rest in it included; 0 for one seed.
        by_example: variance of the examples themselves.
        rest: variance of a single difference that neither explains.
    """

    mean: float
    seeds: int
    examples: int
    by_seed: float
    by_example: float
    rest: float

    @classmethod
    def of(cls, differences: Array) -> Spread:
        """Take differences apart.

        Args:
            differences: on the same examples, [seeds, examples]; at least 2 of one of them. A single example is a
                mean over examples: what is said then holds for other seeds only.
        """
        d = np.asarray(differences, dtype=np.float64)
        seeds, examples = d.shape
        mean = float(d.mean())
        if seeds == 1:
            return cls(mean, 1, examples, 0.0, float(d.var(ddof=1)), 0.0)
        if examples == 1:
            return cls(mean, seeds, 1, float(d.var(ddof=1)), 0.0, 0.0)
        by_seed, by_example = d.mean(1), d.mean(0)
        left = d - by_seed[:, None] - by_example[None, :] + mean
        rest = float((left**2).sum()) / ((seeds - 1) * (examples - 1))
        own = max(0.0, float(by_example.var(ddof=1)) - rest / seeds)
        return cls(mean, seeds, examples, float(by_seed.var(ddof=1)), own, rest)

    @property
    def parts(self) -> tuple[float, float]:
        """Variances of the mean that come from the seeds, the rest included, and from the examples."""
        return self.by_seed / self.seeds, self.by_example / self.examples

    def half_width(self, level: float = LEVEL) -> float:
        """Return half the interval's width.

        Each part gets Student's quantile of its own, with `seeds - 1` and `examples - 1` degrees of freedom; the
        half-width is the root of their sum of squares. With few seeds it is wide, and rightly so.
        """
        of_seeds, of_examples = self.parts
        total = 0.0
        for variance, count in ((of_seeds, self.seeds), (of_examples, self.examples)):
            if variance > 0:
                total += float(stats.t.ppf((1 + level) / 2, count - 1)) ** 2 * variance
        return math.sqrt(total)

    def interval(self, level: float = LEVEL) -> Interval:
        """Return the mean with bounds that hold for other seeds and other examples."""
        half = self.half_width(level)
        return Interval(mean=self.mean, low=self.mean - half, high=self.mean + half)

    def power(self, size: float, level: float = LEVEL) -> float:
        """Return the chance that the interval excludes 0 where the true difference is `size`.

        The mean over its estimated error is taken for a noncentral t, with Satterthwaite's degrees of freedom.
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
        # Far out scipy's noncentral t gives no number; there it is the normal distribution.
        above = above if np.isfinite(above) else stats.norm.sf(bound - shift)
        return float(above) + (float(below) if np.isfinite(below) else 0.0)

    def detectable(self, level: float = LEVEL, power: float = POWER) -> float:
        """Return the smallest true difference that is found with this power."""
        low, high = 0.0, self.half_width(level) or 1e-12
        while self.power(high, level) < power:
            low, high = high, 2 * high
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (low, middle) if self.power(middle, level) >= power else (middle, high)
        return high

    def planned(self, seeds: int, examples: int) -> Spread:
        """Return what the spread would be with other numbers of seeds and examples."""
        of_seed = max(0.0, self.by_seed - self.rest / self.examples)
        return replace(self, seeds=seeds, examples=examples, by_seed=of_seed + self.rest / examples)

    def seeds_needed(self, size: float, level: float = LEVEL, power: float = POWER) -> int | None:
        """Return the seeds that find a difference of `size` on as many examples; None: no number of them does."""
        if self.seeds == 1:
            return None
        return _fewest(lambda n: self.planned(n, self.examples).power(size, level) >= power, 2, MOST_SEEDS)

    def examples_needed(self, size: float, level: float = LEVEL, power: float = POWER) -> int | None:
        """Return the examples that find a difference of `size` with as many seeds; None: no number of them does."""
        if self.seeds == 1:
            return _fewest(lambda n: replace(self, examples=n).power(size, level) >= power, 2, MOST_EXAMPLES)
        return _fewest(lambda n: self.planned(self.seeds, n).power(size, level) >= power, 2, MOST_EXAMPLES)


def p_value(values: Array) -> float:
    """Return the two-sided p-value of Student's test that the mean of `values` is 0."""
    values = np.asarray(values, dtype=np.float64)
    if np.ptp(values) == 0:
        return 1.0 if values[0] == 0 else 0.0
    return float(stats.ttest_1samp(values, 0.0).pvalue)


def _fewest(enough: Any, low: int, most: int) -> int | None:
    high = low
    while not enough(high):
        if high >= most:
            return None
        low, high = high, min(2 * high, most)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return high
