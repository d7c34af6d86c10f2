"""A surrogate of the learning curves: what a candidate's loss will be at a step, and how sure that is."""

from __future__ import annotations

import itertools
import math
import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.special import log_ndtr
from scipy.stats import norm
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

# Fewer trials than this give no surrogate.
ENOUGH = 8

Array = np.ndarray[Any, np.dtype[np.float64]]

# Of more observations than this the best half and an even pick of the others are kept: what the bad ones would add is
# how bad they are. Of so many as `LEARNED` the kernel is learned.
MOST, LEARNED = 320, 96
# Of more trials under way than this those that promise most are taken into account: near the others nobody looks.
UNDER_WAY = 64
# Rungs this factor apart in steps are a unit of the step axis apart.
STEP_UNIT = math.log(8.0)
# What is thought of the kernel before there are losses: over what length candidates are alike, and steps, how much of
# a loss is luck, and how far each may be off in its natural logarithm. On the design part of
# studies.benchmarks.search_quality.replay searches end 0.14 % above the best with it, and 0.17 % where lengths are
# learned freely.
LENGTH, STEP_LENGTH, NOISE = 0.5, 2.0, 0.05
LENGTH_SD, OTHER_SD = 0.5, 1.0


class _Process(GaussianProcessRegressor):  # type: ignore[misc]  # scikit-learn has no types
    """A Gaussian process that learns its kernel under a prior around the one it is given.

    The losses of a dozen trials say too little of lengths: the likeliest alone may be at a bound.
    """

    def log_marginal_likelihood(
        self, theta: Array | None = None, eval_gradient: bool = False, clone_kernel: bool = True
    ) -> Any:
        """Return the log of the posterior of `theta` up to a constant; its gradient as well where asked for."""
        found = super().log_marginal_likelihood(theta, eval_gradient, clone_kernel)
        if theta is None:
            return found
        doubt = np.full(len(theta), OTHER_SD)
        doubt[1:-2] = LENGTH_SD  # between the scale, and the length of steps and the noise
        away = (theta - self.kernel.theta) / doubt
        prior = -0.5 * float(away @ away)
        return (found[0] + prior, found[1] - away / doubt) if eval_gradient else found + prior


@dataclass(frozen=True)
class Surrogate:
    """A Gaussian process over (candidate, step).

    Losses of a rung are taken relative to what trials lose on the way from there to the last rung, so that all
    rungs speak about the end. Far above the middle losses count in their logarithm: how bad the bad ones are does
    not matter.

    Attributes:
        process: the fitted process, on standardised losses.
        points: candidates that were observed, [observations, dimensions] in the unit cube.
        last: the last rung, where candidates are judged.
        middle, scale: of the standardisation.
        offsets: loss from each rung to the last one, by step.
    """

    process: GaussianProcessRegressor
    inputs: Array
    targets: Array
    points: Array
    last: float
    middle: float
    scale: float
    offsets: dict[float, float]

    @classmethod
    def fit(cls, points: Array, steps: Array, values: Array, last: float | None = None) -> Surrogate:
        """Fit to observed rungs.

        Args:
            points: [observations, dimensions], in the unit cube.
            steps: of each observation.
            values: losses, lower is better.
            last: where candidates are judged, be anybody there or not; None: the last step observed.
        """
        last = max(float(steps.max()), last or 0.0)
        offsets = _offsets(points, steps, values)
        level = values + np.array([offsets[step] for step in steps])
        middle = float(np.median(level))
        below = level[level <= middle]
        scale = _size(below - middle) or _size(level - middle) or 1.0
        inputs = np.column_stack([points, np.log(steps / last) / STEP_UNIT])
        dimensions = points.shape[1]
        kernel = ConstantKernel(1.0, (0.1, 30.0)) * Matern(
            length_scale=[LENGTH] * dimensions + [STEP_LENGTH],
            length_scale_bounds=[(0.15, 5.0)] * dimensions + [(0.3, 20.0)],
            nu=2.5,
        ) + WhiteKernel(NOISE, (1e-3, 1.0))
        targets = _squash((level - middle) / scale)
        kept, learned = _thinned(level, MOST), _thinned(level, LEARNED)
        is_many = len(learned) < len(level)
        process = _Process(kernel, n_restarts_optimizer=0 if is_many else 1, random_state=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            process.fit(inputs[learned], targets[learned])
        inputs, targets, points = inputs[kept], targets[kept], points[kept]
        if is_many:
            process = GaussianProcessRegressor(process.kernel_, optimizer=None).fit(inputs, targets)
        return cls(process, inputs, targets, np.unique(points, axis=0), last, middle, scale, offsets)

    def imagine(self, points: Array) -> Surrogate:
        """Return the surrogate as if `points`, or the most promising of many, had ended as it expects them to."""
        if not len(points):
            return self
        inputs = np.column_stack([points, np.zeros(len(points))])
        process = GaussianProcessRegressor(self.process.kernel_, optimizer=None)
        expected = self.process.predict(inputs)
        if len(points) > UNDER_WAY:
            kept = np.argsort(expected, kind="stable")[:UNDER_WAY]
            points, inputs, expected = points[kept], inputs[kept], expected[kept]
        all_inputs = np.concatenate([self.inputs, inputs])
        all_targets = np.concatenate([self.targets, expected])
        process.fit(all_inputs, all_targets)
        return Surrogate(
            process,
            all_inputs,
            all_targets,
            np.unique(np.concatenate([self.points, points]), axis=0),
            self.last,
            self.middle,
            self.scale,
            self.offsets,
        )

    def predict(self, points: Array) -> tuple[Array, Array]:
        """Return mean and standard deviation of the loss at the last rung, noise of a single run left out.

        Beyond the middle of the observed losses both are on the squashed scale, and understate.
        """
        mean, deviation = self._posterior(points)
        return self.middle + self.scale * mean, self.scale * deviation

    def quantiles(self, points: Array, levels: Array) -> Array:
        """Return quantiles of the loss that one run of each point would have at the last rung.

        Args:
            points: [points, dimensions].
            levels: of the quantiles, between 0 and 1.

        Returns:
            [levels, points].
        """
        inputs = np.column_stack([points, np.zeros(len(points))])
        mean, deviation = self.process.predict(inputs, return_std=True)  # the noise of a run is in the deviation
        found: Array = self.middle + self.scale * _unsquash(mean + norm.ppf(levels)[:, None] * deviation)
        return found

    def unknown(self, points: Array) -> Array:
        """Return how little is known about points: 0 where they were observed, 1 as far from all that was."""
        _, deviation = self._posterior(points)
        share: Array = deviation / math.sqrt(self.process.kernel_.k1.k1.constant_value)
        return np.minimum(share, 1.0)

    def best_points(self, count: int) -> Array:
        """Return the observed candidates that are expected to be best."""
        best: Array = self.points[np.argsort(self._expected)[:count]]
        return best

    def ranked(self, points: Array) -> list[int]:
        """Return the places of points, the one that is expected to be best first."""
        places: list[int] = np.argsort(self.predict(points)[0], kind="stable").tolist()
        return places

    def log_expected_improvement(self, points: Array) -> Array:
        """Return the logarithm of the expected improvement on the best expected among those observed."""
        best = float(self._expected.min())
        mean, deviation = self._posterior(points)
        z = (best - mean) / deviation
        # log(φ(z) + z Φ(z)); for z far below 0 by its expansion φ(z) / z².
        log_density = -0.5 * z**2 - 0.5 * math.log(2 * math.pi)
        with np.errstate(divide="ignore", invalid="ignore"):
            inner = np.exp(log_density) + z * np.exp(log_ndtr(z))
            value = np.where(z > -5, np.log(np.maximum(inner, 1e-300)), log_density - 2 * np.log(np.abs(z)))
        result: Array = value + np.log(deviation)
        return result

    def draw(self, points: Array, rng: np.random.Generator) -> Array:
        """Return the losses of `points` on a surface drawn from what the surrogate thinks possible."""
        drawn: Array = self.draw_many(points, 1, rng)[0]
        return drawn

    def draw_many(self, points: Array, count: int, rng: np.random.Generator) -> Array:
        """Return such losses of `count` surfaces, [count, points]; far above the middle they are squashed."""
        inputs = np.column_stack([points, np.zeros(len(points))])
        mean, covariance = self.process.predict(inputs, return_cov=True)
        noise = self.process.kernel_.k2.noise_level
        root = np.linalg.cholesky(covariance + (1e-6 - noise) * np.eye(len(points)) + 1e-5 * np.eye(len(points)))
        drawn: Array = self.middle + self.scale * (mean + rng.standard_normal((count, len(points))) @ root.T)
        return drawn

    @cached_property
    def _expected(self) -> Array:
        """The mean at each point that was observed."""
        return self._posterior(self.points)[0]

    def _posterior(self, points: Array) -> tuple[Array, Array]:
        inputs = np.column_stack([points, np.zeros(len(points))])
        mean, deviation = self.process.predict(inputs, return_std=True)
        noise = self.process.kernel_.k2.noise_level
        return mean, np.sqrt(np.maximum(deviation**2 - noise, 1e-9))


def _thinned(level: Array, most: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return which observations to keep: all, or the best half of `most` and an even pick of the rest."""
    if len(level) <= most:
        return np.arange(len(level))
    ranked = np.argsort(level, kind="stable")
    best, rest = ranked[: most // 2], ranked[most // 2 :]
    even = rest[np.linspace(0, len(rest) - 1, most - most // 2).round().astype(int)]
    return np.sort(np.concatenate([best, even]))


def _squash(z: Array) -> Array:
    return np.where(z <= 1, z, 1 + np.log(np.maximum(z, 1.0)))


def _size(differences: Array) -> float:
    """Return the root of the mean square, whatever the unit: squares of losses such as 1e-200 are not computed."""
    largest = float(np.abs(differences).max())
    return largest * float(np.sqrt(np.mean((differences / largest) ** 2))) if largest else 0.0


def _offsets(points: Array, steps: Array, values: Array) -> dict[float, float]:
    """Return what trials lose from each rung to the last: the median over those that went on, rung by rung."""
    rungs = sorted(set(steps.tolist()))
    at = {
        rung: {tuple(point): value for point, step, value in zip(points, steps, values, strict=True) if step == rung}
        for rung in rungs
    }
    offsets = {rungs[-1]: 0.0}
    for rung, following in reversed(list(itertools.pairwise(rungs))):
        drops = [at[following][point] - value for point, value in at[rung].items() if point in at[following]]
        offsets[rung] = offsets[following] + (float(np.median(drops)) if drops else 0.0)
    return offsets


def _unsquash(z: Array) -> Array:
    return np.where(z <= 1, z, np.exp(np.minimum(z, 20.0) - 1))
