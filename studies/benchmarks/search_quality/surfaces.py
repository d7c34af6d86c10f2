"""Surfaces whose truth is known: what a trial of any candidate would see, and what its full run ends at.

All that is assumed and not measured about learning curves is here, in the constants below and in `CurveFamily`. It
serves tables that hold final losses only, and synthetic surfaces. `fitted_surfaces.py` has what oracles measured.
"""

from __future__ import annotations

import math
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from autolr.schema.candidate import Candidate

Array = np.ndarray[Any, np.dtype[np.float64]]
Shape = Callable[[Array], Array]

# A trial of `length` steps with a decay of its own has come as far at its end as the average of a full run had after
# this share of the steps: its rates were lower on the way. On our task the shares lie between 0.6 and 0.75.
SHORT_PROGRESS = 0.65
# Standard deviation of a full run's loss over seeds, relative (repeated cells of the sweep: 0.19 % root mean square),
# and the power of (horizon / step) by which earlier losses scatter more. Half of the variance is the run's and stays
# the same at all its steps, half is the step's.
FINAL_NOISE = 0.0015
EARLY_NOISE = 0.25
# Raw weights at the rate that is best in the end scatter this many times more at the start of the decay.
RAW_NOISE = 2.0

# Runs of `length` steps with a decay of their own have their best rate above the full run's, by (horizon / length) to
# a power from this range, drawn for each surface: 0.3 was measured on our task.
OWN_SHIFT = (0.2, 0.4)
# So do the first steps of a full run, by (horizon / step) to a power from this range: on our task averaged weights
# ranked candidates after a quarter as the end did (Spearman 0.96), and after an eighth less well (0.77).
PREFIX_SHIFT = (0.0, 0.2)
# What shorter trainings say differs from what the full run says by a smooth surface, whose standard deviation is this
# part of what the middle of the space is above the best, times (horizon / step - 1): then candidates of the whole
# space rank at 1/20, 1/8 and 1/4 of the steps about as on our task (Spearman of averaged losses 0.44, 0.77, 0.96).
DISAGREEMENT = 0.03
# All candidates start from one loss; the distance to the full run's falls as 1 / (1 + FALL * share of the steps).
FALL = 30.0
# Raw weights at the best rate lose this much more than their average at the start of the decay, relative; other
# rates in proportion.
ROUGHNESS = 0.02
# Width of the edge at which training diverges, in natural logarithms of the rate, and where it ends, in start losses.
EDGE = 0.08
DIVERGED = 1.2

RULE_RANK = 8


def encode(candidate: Candidate) -> Array:
    """Return a candidate as a point: logarithms of lr_v, ratio and rank."""
    return np.log([candidate.lr_v, candidate.ratio, candidate.rank])


def seed_of(*what: object) -> int:
    """Return a number that depends on `what` alone, and not on the process."""
    return zlib.crc32(repr(what).encode())


@dataclass(frozen=True)
class Bounds:
    """The space of a surface.

    Attributes:
        lr_v, ratio: ranges, searched in their logarithm.
        ranks: choices.
        rule: rate of the rule of thumb.
        steps: of the full run.
    """

    lr_v: tuple[float, float]
    ratio: tuple[float, float]
    ranks: tuple[int, ...]
    rule: float
    steps: int

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """The space as Optuna sees it."""
        return {
            "lr_v": FloatDistribution(*self.lr_v, log=True),
            "ratio": FloatDistribution(*self.ratio, log=True),
            "rank": CategoricalDistribution(list(self.ranks)),
        }

    @property
    def rule_candidate(self) -> Candidate:
        """The rule of thumb as a candidate: λ = 1 at its rate."""
        rank = min(self.ranks, key=lambda r: (abs(r - RULE_RANK), r))
        return Candidate(lr_v=min(max(self.rule, self.lr_v[0]), self.lr_v[1]), ratio=1.0, rank=rank)

    def grid(self, rates: int = 81, ratios: int = 41) -> Array:
        """Return an even grid of points, [points, 3]."""
        axes = [
            np.linspace(*np.log(self.lr_v), rates),
            np.linspace(*np.log(self.ratio), ratios),
            np.log(self.ranks),
        ]
        return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)

    def clip(self, points: Array) -> Array:
        """Move points into the ranges of lr_v and ratio."""
        low = np.log([self.lr_v[0], self.ratio[0], 1e-9])
        high = np.log([self.lr_v[1], self.ratio[1], 1e9])
        return np.clip(points, low, high)


class Surface(ABC):
    """What trials see and full runs end at, over a space.

    Attributes:
        name: of the surface; its family comes first.
        bounds: its space.
        about: where it comes from, for the rows.
    """

    def __init__(self, name: str, bounds: Bounds, about: dict[str, Any] | None = None) -> None:
        self.name = name
        self.bounds = bounds
        self.about = about or {}
        self._mean = lru_cache(maxsize=4096)(self._mean_of)

    @property
    def family(self) -> str:
        """The kind of surface."""
        return self.name.partition("/")[0]

    @abstractmethod
    def final_at(self, points: Array) -> Array:
        """Return losses that full runs end at, without noise, for points [points, 3]."""

    @abstractmethod
    def curve_at(self, point: Array, step: float, length: float, averaged: bool) -> float:
        """Return the loss on the way, without noise.

        Args:
            point: logarithms of the rates that are trained with, and of the rank.
            step: steps done.
            length: steps of the schedule; the horizon for a full run and its first steps.
            averaged: of the running average of the weights; otherwise of the weights as they are.
        """

    @abstractmethod
    def noise_at(self, point: Array, step: float, length: float, averaged: bool) -> float:
        """Return the relative standard deviation over seeds of the loss at a step."""

    def final(self, candidate: Candidate) -> float:
        """Return the loss that the candidate's full run ends at, without noise."""
        return float(self.final_at(encode(candidate)[None])[0])

    def loss(self, candidate: Candidate, step: int, seed: int, averaged: bool = False) -> float:
        """Return what a trial on the schedule of the full run sees at a step."""
        return self._seen(candidate, step, self.bounds.steps, seed, averaged)

    def short_loss(self, candidate: Candidate, length: int, seed: int, step: int | None = None) -> float:
        """Return what a trial of `length` steps with a decay of its own sees at its end, or at a step before.

        Args:
            candidate: with the rates that the trial trains at.
            length: of the trial.
            seed: of the repeat.
            step: where it is scored; its average is, on the way.
        """
        return self._seen(candidate, length if step is None else step, length, seed, averaged=True)

    @cached_property
    def best(self) -> tuple[Candidate, float]:
        """The best candidate of the space and its final loss."""
        points = self.bounds.grid()
        spacing = np.array([np.ptp(points[:, 0]) / 80, np.ptp(points[:, 1]) / 40, 0.0])
        losses = self.final_at(points)
        best, lowest = points[losses.argmin()], float(losses.min())
        # The neighbourhoods of several good points are looked at ever more closely.
        for start in points[np.argsort(losses)[:8]]:
            centre = start
            for zoom in range(6):
                steps = np.linspace(-1, 1, 11)
                around = np.stack(np.meshgrid(steps, steps, [0.0], indexing="ij"), -1).reshape(-1, 3)
                near = self.bounds.clip(centre + around * spacing * 0.4**zoom)
                found = self.final_at(near)
                centre = near[found.argmin()]
                if found.min() < lowest:
                    best, lowest = centre, float(found.min())
        lr_v, ratio, rank = np.exp(best)
        return Candidate(lr_v=float(lr_v), ratio=float(ratio), rank=round(float(rank))), lowest

    def excess(self, candidate: Candidate) -> float:
        """Return how much worse than the best the candidate's full run is, in percent; points outside may be 0."""
        return max(0.0, 100 * (self.final(candidate) / self.best[1] - 1))

    def _seen(self, candidate: Candidate, step: int, length: int, seed: int, averaged: bool) -> float:
        deviation, mean = self._mean(candidate, step, length, averaged)
        run = np.random.default_rng(seed_of(self.name, seed, candidate.lr_v, candidate.ratio, candidate.rank))
        of_run = run.standard_normal()
        of_step = np.random.default_rng([int(run.integers(2**31)), step]).standard_normal()
        return mean * math.exp(deviation * (of_run + of_step) / math.sqrt(2))

    def _mean_of(self, candidate: Candidate, step: int, length: int, averaged: bool) -> tuple[float, float]:
        point = encode(candidate)
        return self.noise_at(point, step, length, averaged), self.curve_at(point, step, length, averaged)

    def progress(self, step: float, length: float) -> float:
        """Return how far a full run is after as much learning as `step` steps of a schedule of `length`, in steps."""
        return step if length >= self.bounds.steps else step * (1 - (1 - SHORT_PROGRESS) * step / length)


class CurveFamily(Surface):
    """A surface of final losses with assumed curves: see the constants of this module.

    Args:
        name: of the surface; random parts of its curves depend on it alone.
        bounds: its space.
        shape: final losses of points [points, 3].
        start: loss before the first step.
        noise: relative standard deviation of the final loss.
        roughness: what raw weights lose against their average, at the best rate and the start of the decay.
        about: where it comes from.
    """

    def __init__(
        self,
        name: str,
        bounds: Bounds,
        shape: Shape,
        start: float,
        noise: float = FINAL_NOISE,
        roughness: float = ROUGHNESS,
        about: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(name, bounds, about)
        self.shape = shape
        self.start = start
        self.noise = noise
        self.roughness = roughness
        rng = np.random.default_rng(seed_of(name, "curves"))
        self.own_shift, self.prefix_shift = float(rng.uniform(*OWN_SHIFT)), float(rng.uniform(*PREFIX_SHIFT))
        # Waves about a decade of lr_v, two of the ratio and a range of ranks long.
        self._waves = rng.normal(0, 2.0, (4, 3)) / np.log([10.0, 64.0, 16.0])
        self._phases = rng.uniform(0, 2 * math.pi, 4)

    def final_at(self, points: Array) -> Array:
        return self.shape(points)

    def curve_at(self, point: Array, step: float, length: float, averaged: bool) -> float:
        share = self.progress(step, length) / self.bounds.steps
        power = self.own_shift if length < self.bounds.steps else self.prefix_shift
        seen = point - [power * math.log(self.bounds.steps / step), 0.0, 0.0]
        level = self.best[1]
        field = math.sqrt(2 / len(self._waves)) * float(np.cos(self._waves @ point + self._phases).sum())
        end = float(self.shape(seen[None])[0]) + DISAGREEMENT * (1 / share - 1) * self.spread * field
        fallen = (1 / (1 + FALL * share) - 1 / (1 + FALL)) / (1 - 1 / (1 + FALL))
        loss = end + (self.start - end) * fallen
        return loss if averaged else loss + level * self.roughness * self._heat(point) * (1 - step / length)

    @cached_property
    def spread(self) -> float:
        """What the middle of the space is above the best."""
        return float(np.median(self.shape(self.bounds.grid(41, 21)))) - self.best[1]

    def noise_at(self, point: Array, step: float, length: float, averaged: bool) -> float:
        noise = self.noise * (self.bounds.steps / step) ** EARLY_NOISE
        return noise if averaged else noise * (1 + RAW_NOISE * self._heat(point) * (1 - step / length))

    def _heat(self, point: Array) -> float:
        # The rate, in units of the best one; far above it training has diverged anyway.
        return min(float(np.exp(point[0])) / self.best[0].lr_v, 10.0)


def with_edge(shape: Shape, log_edge: float, end: float) -> Shape:
    """Return a shape that rises to `end` where the rate of W_v is above exp(`log_edge`)."""

    def edged(points: Array) -> Array:
        losses = shape(points)
        over = 1 / (1 + np.exp(-np.clip((points[:, 0] - log_edge) / EDGE, -50, 50)))
        return losses + np.maximum(end - losses, 0.0) * over

    return edged


def crossing(number: int, rungs: tuple[float, ...] = (0.05, 0.134, 0.267, 0.534)) -> CurveFamily:
    """Return a synthetic surface whose raw curves cross: the best rate is behind at every rung, and wins.

    Args:
        number: of the instance; everything is drawn from it.
        rungs: shares of the horizon at which the best rate trails a quarter of it.
    """
    rng = np.random.default_rng([number, 4])
    rule = float(rng.choice([3e-4, 1e-3, 2e-3]))
    bounds = Bounds((rule / 10, rule * 10), (0.5, 32.0), (4, 8, 16), rule, 480)
    level, start = rng.uniform(0.3, 0.8), rng.uniform(1.4, 2.0)
    lr_v = math.log(rule) + rng.uniform(-1, 1) * math.log(5)
    ratio = rng.uniform(0, math.log(16))
    # Relative loss per squared natural logarithm: from the flattest of the sweep's models to our task.
    low, above, of_ratio = rng.uniform(0.005, 0.04), rng.uniform(1, 3), rng.uniform(0.0005, 0.006)
    mixed = rng.uniform(-1, 1) * math.sqrt(low * of_ratio)
    of_rank = rng.uniform(0, 0.006)
    edge = lr_v + math.log(rng.uniform(4, 10))

    def bowl(points: Array) -> Array:
        v, r = points[:, 0] - lr_v, points[:, 1] - ratio
        k = (math.log(16) - points[:, 2]) / math.log(2)
        return level * (1 + np.where(v > 0, above, 1.0) * low * v**2 + of_ratio * r**2 + mixed * v * r + of_rank * k)

    shape = with_edge(bowl, edge, DIVERGED * start * level)
    surface = CurveFamily(f"crossing/{number}", bounds, shape, start * level)
    # Just rough enough for the raw losses of the best rate to be behind at all these rungs.
    fast, slow = crossing_pair(surface)
    behind = {
        share: surface.curve_at(encode(slow), share * bounds.steps, bounds.steps, averaged=True)
        - surface.curve_at(encode(fast), share * bounds.steps, bounds.steps, averaged=True)
        for share in rungs
    }
    needed = [loss / (0.75 * (1 - share) * surface.best[1]) for share, loss in behind.items()]
    surface.roughness = max(ROUGHNESS, 1.2 * max(needed))
    surface.about = {"roughness": round(surface.roughness, 4)}
    return surface


def crossing_pair(surface: Surface) -> tuple[Candidate, Candidate]:
    """Return the best candidate, and the same one at a quarter of its rates."""
    best = surface.best[0]
    return best, Candidate(lr_v=best.lr_v / 4, ratio=best.ratio, rank=best.rank)
