"""A Gaussian process over learning curves: what a candidate's loss will be at a step, and how sure that is."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial
from scipy.special import log_ndtr
from scipy.stats import norm
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, Sum, WhiteKernel

from autolr.tuner.propose.encoding import Encoding

# Candidates with a curve that a conclusion needs: ranked finalists, a prediction, advice, contours in the report.
# The sampler and the pruner have minima of their own, lower ones: a poor proposal costs a trial, no conclusion.
MIN_TRIALS_FOR_SURROGATE = 8

Array = np.ndarray[Any, np.dtype[np.float64]]
# A candidate's parameters, and its loss at each step at which it was scored.
Curve = tuple[Mapping[str, Any], Mapping[int, float]]

# If there are more observations, the best half and an even pick of the others are kept: what bad losses would add is
# how bad they are. The kernel is learned from fewer still.
MAX_OBSERVATIONS, MAX_LEARNED_FROM = 320, 96
# If more trials are under way, only the most promising count: the sampler looks near no other.
MAX_UNDER_WAY = 64
# Two rungs whose steps differ by this factor are one unit apart on the step axis.
STEP_UNIT = math.log(8.0)
# Log-normal prior on the kernel: length scale over candidates, length scale over log-steps, noise share; and their
# standard deviations. With it, searches on the design part of studies.benchmarks.search_quality.replay end 0.14 %
# above the best; with freely learned length scales, 0.17 %.
LENGTH, STEP_LENGTH, NOISE = 0.5, 2.0, 0.05
LENGTH_SD, OTHER_SD = 0.5, 1.0


class CurveKernel(Sum):  # type: ignore[misc]  # scikit-learn has no types
    """The covariance of two losses, each of a candidate x at a step s; `Surrogate` has the formula.

    scikit-learn orders its logarithmic hyperparameters (`theta`) as here: amplitude, length scales, noise.
    """

    @classmethod
    def before_losses(cls, dimensions: int) -> CurveKernel:
        """Return the kernel at the centre of its prior, for points of so many dimensions."""
        matern = Matern(
            length_scale=[LENGTH] * dimensions + [STEP_LENGTH],
            length_scale_bounds=[(0.15, 5.0)] * dimensions + [(0.3, 20.0)],
            nu=2.5,
        )
        return cls(ConstantKernel(1.0, (0.1, 30.0)) * matern, WhiteKernel(NOISE, (1e-3, 1.0)))

    @property
    def amplitude(self) -> float:
        """Variance of the losses of candidates that are far apart, noise left out."""
        return float(self.k1.k1.constant_value)

    @property
    def length_scales(self) -> Array:
        """Length scale of each dimension of a candidate, and that of the steps."""
        scales: Array = self.k1.k2.length_scale
        return scales

    @property
    def noise(self) -> float:
        """Variance of a loss between runs of one candidate, and between rungs of one run."""
        return float(self.k2.noise_level)

    @property
    def prior_sd(self) -> Array:
        """Standard deviation of the prior, for each entry of `theta`."""
        dimensions = len(self.length_scales) - 1
        return np.array([OTHER_SD] + [LENGTH_SD] * dimensions + [OTHER_SD, OTHER_SD])


class _Process(GaussianProcessRegressor):  # type: ignore[misc]  # scikit-learn has no types
    """A Gaussian process whose kernel is the most probable under a prior around the one it is given.

    The losses of a dozen trials say too little about lengths: the most likely alone may be at a bound.
    """

    def log_marginal_likelihood(
        self, theta: Array | None = None, eval_gradient: bool = False, clone_kernel: bool = True
    ) -> Any:
        """Return the log posterior of `theta` up to a constant; with its gradient if asked for."""
        likelihood = super().log_marginal_likelihood(theta, eval_gradient, clone_kernel)
        if theta is None:
            return likelihood
        sd = self.kernel.prior_sd
        away = (theta - self.kernel.theta) / sd
        prior = -0.5 * float(away @ away)
        return (likelihood[0] + prior, likelihood[1] - away / sd) if eval_gradient else likelihood + prior


@dataclass(frozen=True)
class Surrogate:
    """A Gaussian process over (candidate, step), fitted to every rung of every curve.

    Two losses have the covariance

        k((x, s), (x', s')) = a · M(r) + n · [same loss],   M(r) = (1 + √5 r + 5r²/3) exp(-√5 r)
        r² = Σ_d ((x_d - x'_d) / l_d)² + ((t - t') / l_t)²,   t = log(s / last) / log 8

    with the amplitude a, a Matérn kernel M of smoothness 5/2, a length scale l_d for each dimension of the unit cube,
    l_t for the steps, and the noise n of a run. Rungs of one curve are near each other in t, so a curve that was cut
    short says as much about the end as complete curves have shown it to. The hyperparameters are the most probable
    under log-normal priors: l_d around 0.5, l_t around 2, n around 0.05.

    Losses become targets in three steps:

    1. A loss at a rung is shifted by what trials lose from there to the last rung (the median, from rung to rung).
    2. It is standardised: z = (loss - middle) / scale, with the median, and the root mean square below the median.
    3. Above z = 1 it is squashed to 1 + log z: how bad a bad candidate is does not matter.

    Freeze-thaw Bayesian optimization introduced Gaussian processes over partial learning curves (Swersky, Snoek,
    Adams, 2014, arXiv:1406.3896). Its kernel assumes exponential decay; this one, that near steps are alike.

    Caveats: exact inference costs the third power of the observations, so at most 320 are kept. Means far above the
    middle are understated, by the squashing.

    Example:
        ```python
        import numpy as np
        from optuna.distributions import FloatDistribution

        from autolr.tuner.propose.encoding import Encoding
        from autolr.tuner.propose.surrogate import Surrogate

        encoding = Encoding({"rate": FloatDistribution(1e-4, 1e-1, log=True)})
        loss = lambda rate, step: np.log10(rate / 3e-3) ** 2 + 8 / step
        rates = np.geomspace(1e-4, 1e-1, 10)
        # Half of the curves were cut short at step 8.
        curves = [({"rate": r}, {s: loss(r, s) for s in ((8, 32) if i % 2 else (8,))}) for i, r in enumerate(rates)]
        surrogate = Surrogate.from_curves(encoding, curves)
        mean, deviation = surrogate.predict(encoding.encode({"rate": 3e-3})[None])
        print(f"expected at step {surrogate.last:.0f}: {mean[0]:.2f} ± {deviation[0]:.2f}")
        ```

    Attributes:
        process: the fitted process, on targets.
        inputs, targets: what it was fitted to, [observations, dimensions + 1] and [observations].
        points: candidates that were observed, [candidates, dimensions] in the unit cube.
        last: the last rung, where candidates are judged.
        middle, scale: of the standardisation.
    """

    process: GaussianProcessRegressor
    inputs: Array
    targets: Array
    points: Array
    last: float
    middle: float
    scale: float

    @classmethod
    def from_curves(
        cls,
        encoding: Encoding,
        curves: Iterable[Curve],
        *,
        minimum: int = MIN_TRIALS_FOR_SURROGATE,
        last: float | None = None,
    ) -> Surrogate | None:
        """Fit to all rungs of all curves; losses that are no numbers are left out.

        Args:
            encoding: how candidates become points.
            curves: of all trials, those of pruned and running ones included.
            minimum: candidates with a loss that this takes.
            last: where candidates are judged, whether a curve gets there or not; None: the last step observed.

        Returns:
            The surrogate; the same one if asked again with the same curves. None with fewer candidates.
        """
        seen = [
            (encoding.encode(params), float(step), loss)
            for params, losses in curves
            for step, loss in sorted(losses.items())
            if math.isfinite(loss)
        ]
        if len({tuple(point) for point, _, _ in seen}) < max(1, minimum):
            return None
        points, steps, losses = (np.array(column, dtype=float) for column in zip(*seen, strict=True))
        return _fitted(len(encoding), points.tobytes(), steps.tobytes(), losses.tobytes(), last)

    @classmethod
    def fit(cls, points: Array, steps: Array, values: Array, last: float | None = None) -> Surrogate:
        """Fit to observed rungs.

        Args:
            points: [observations, dimensions], in the unit cube.
            steps: of each observation.
            values: losses, lower is better.
            last: where candidates are judged; None: the last step observed.
        """
        last = max(float(steps.max()), last or 0.0)
        offsets = _offsets(points, steps, values)
        level = values + np.array([offsets[step] for step in steps])
        middle = float(np.median(level))
        below = level[level <= middle]
        scale = _root_mean_square(below - middle) or _root_mean_square(level - middle) or 1.0
        inputs = np.column_stack([points, np.log(steps / last) / STEP_UNIT])
        targets = _squash((level - middle) / scale)
        kept, learned = _thinned(level, MAX_OBSERVATIONS), _thinned(level, MAX_LEARNED_FROM)
        is_many = len(learned) < len(level)
        kernel = CurveKernel.before_losses(points.shape[1])
        process = _Process(kernel, n_restarts_optimizer=0 if is_many else 1, random_state=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            process.fit(inputs[learned], targets[learned])
        inputs, targets, points = inputs[kept], targets[kept], points[kept]
        if is_many:
            process = GaussianProcessRegressor(process.kernel_, optimizer=None).fit(inputs, targets)
        return cls(process, inputs, targets, np.unique(points, axis=0), last, middle, scale)

    def imagine(self, points: Array) -> Surrogate:
        """Return the surrogate as if `points`, or the most promising of many, had ended as it expects them to."""
        if not len(points):
            return self
        expected = self.process.predict(_at_the_end(points))
        if len(points) > MAX_UNDER_WAY:
            kept = np.argsort(expected, kind="stable")[:MAX_UNDER_WAY]
            points, expected = points[kept], expected[kept]
        inputs = np.concatenate([self.inputs, _at_the_end(points)])
        targets = np.concatenate([self.targets, expected])
        process = GaussianProcessRegressor(self.process.kernel_, optimizer=None).fit(inputs, targets)
        observed = np.unique(np.concatenate([self.points, points]), axis=0)
        return replace(self, process=process, inputs=inputs, targets=targets, points=observed)

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
        # The noise of a run is in the deviation.
        mean, deviation = self.process.predict(_at_the_end(points), return_std=True)
        losses: Array = self.middle + self.scale * _unsquash(mean + norm.ppf(levels)[:, None] * deviation)
        return losses

    def unknown(self, points: Array) -> Array:
        """Return how little is known about points: 0 at an observed one, 1 far from all of them."""
        _, deviation = self._posterior(points)
        share: Array = deviation / math.sqrt(self.process.kernel_.amplitude)
        return np.minimum(share, 1.0)

    def best_points(self, count: int) -> Array:
        """Return the observed candidates that are expected to be best."""
        best: Array = self.points[np.argsort(self._expected)[:count]]
        return best

    def ranked(self, points: Array) -> list[int]:
        """Return the indices of points, in the order of their expected losses."""
        order: list[int] = np.argsort(self.predict(points)[0], kind="stable").tolist()
        return order

    def log_expected_improvement(self, points: Array) -> Array:
        """Return the logarithm of the expected improvement on the lowest expected loss of an observed candidate.

        log EI = log(φ(z) + z Φ(z)) + log σ with z = (best - mean) / σ. Far from the best EI is 0 in floating point
        and its logarithm is not, so candidates there still compare (Ament et al., "Unexpected Improvements to
        Expected Improvement for Bayesian Optimization", NeurIPS 2023).
        """
        best = float(self._expected.min())
        mean, deviation = self._posterior(points)
        z = (best - mean) / deviation
        # For z far below 0: φ(z) + z Φ(z) ≈ φ(z) / z².
        log_density = -0.5 * z**2 - 0.5 * math.log(2 * math.pi)
        with np.errstate(divide="ignore", invalid="ignore"):
            inner = np.exp(log_density) + z * np.exp(log_ndtr(z))
            value = np.where(z > -5, np.log(np.maximum(inner, 1e-300)), log_density - 2 * np.log(np.abs(z)))
        result: Array = value + np.log(deviation)
        return result

    def draw(self, points: Array, count: int, rng: np.random.Generator) -> Array:
        """Return losses at the last rung on `count` surfaces drawn from the posterior, [count, points].

        Far above the middle they are squashed.
        """
        mean, covariance = self.process.predict(_at_the_end(points), return_cov=True)
        noise = self.process.kernel_.noise
        root = np.linalg.cholesky(covariance + (1e-6 - noise) * np.eye(len(points)) + 1e-5 * np.eye(len(points)))
        drawn: Array = self.middle + self.scale * (mean + rng.standard_normal((count, len(points))) @ root.T)
        return drawn

    @cached_property
    def _expected(self) -> Array:
        """Expected target of each observed candidate."""
        return self._posterior(self.points)[0]

    def _posterior(self, points: Array) -> tuple[Array, Array]:
        """Return mean and standard deviation of targets at the last rung, noise left out."""
        mean, deviation = self.process.predict(_at_the_end(points), return_std=True)
        return mean, np.sqrt(np.maximum(deviation**2 - self.process.kernel_.noise, 1e-9))


def curves_of(trials: Iterable[FrozenTrial], direction: StudyDirection = StudyDirection.MINIMIZE) -> list[Curve]:
    """Return the curves of trials as losses: lower is better, whatever the study's direction."""
    sign = -1.0 if direction == StudyDirection.MAXIMIZE else 1.0
    return [(trial.params, {step: sign * v for step, v in trial.intermediate_values.items()}) for trial in trials]


@lru_cache(maxsize=4)
def _fitted(dimensions: int, points: bytes, steps: bytes, values: bytes, last: float | None) -> Surrogate:
    """Fit once: the sampler asks for several slots, and the pruner for several trials, with the same curves."""
    return Surrogate.fit(
        np.frombuffer(points).reshape(-1, dimensions), np.frombuffer(steps), np.frombuffer(values), last
    )


def _at_the_end(points: Array) -> Array:
    """Return inputs of the process: points at the last rung."""
    return np.column_stack([points, np.zeros(len(points))])


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


def _root_mean_square(differences: Array) -> float:
    """Return the root mean square in any unit: the square of a loss such as 1e-200 would be 0."""
    largest = float(np.abs(differences).max())
    return largest * float(np.sqrt(np.mean((differences / largest) ** 2))) if largest else 0.0


def _offsets(points: Array, steps: Array, values: Array) -> dict[float, float]:
    """Return what trials lose from each rung to the last: medians over trials that reached both, rung by rung."""
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
