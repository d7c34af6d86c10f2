"""The sampler: proposes candidates from all learning curves, those of pruned trials included.

A Gaussian process sees every rung of every trial, as a point (candidate, step). Rungs of one
trial are close to each other in step, so a pruned curve says about the end as much as curves
that went on have shown it to say. Proposals maximise the expected improvement at the last rung,
weighted by a prior around the rule of thumb that fades as trials come in (Hvarfner et al.,
"πBO", ICLR 2022). Trials under way count as if they ended as expected, so that many free slots
get different candidates.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.search_space import intersection_search_space
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import norm, qmc

from autolr.search.surrogate import Surrogate

Array = np.ndarray[Any, np.dtype[np.float64]]

# How far from a prior's centre the best is expected, in natural logarithms: a factor of 3.
PRIOR_SD = math.log(3.0)
# Weight of the prior in trials: after so many, half of it is left for what they say.
PRIOR_WEIGHT = 8.0
CANDIDATES = 2048
LOCAL = 256
PROMISING = 128


class Prior(NamedTuple):
    """Where the best is expected, before any trial: a value, and a standard deviation in natural logarithms."""

    centre: float
    sd: float = PRIOR_SD


class CurveSampler(BaseSampler):
    """Learns from curves, and proposes well for many free slots at once.

    Args:
        seed: of all draws. The proposal depends on it, on the trial's number, and on the trials there are.
        space: what is searched; None: what all trials have in common, as Optuna's samplers do.
        priors: for some dimensions, where the best is expected: `{"lr_v": Prior(1e-3)}`.
        startup: candidates with a curve before the surrogate is asked; until then candidates are spread evenly under
            the prior.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        space: Mapping[str, BaseDistribution] | None = None,
        priors: Mapping[str, Prior] | None = None,
        startup: int = 4,
    ) -> None:
        self.seed = seed
        self.space = dict(space) if space is not None else None
        self.priors = dict(priors or {})
        self.startup = startup
        self._fitted: tuple[Any, Surrogate] | None = None
        self._known: Sequence[FrozenTrial] | None = None

    @contextmanager
    def knowing(self, trials: Sequence[FrozenTrial]) -> Iterator[None]:
        """Propose from these trials in the meantime: all of the study, by one who keeps others from adding any."""
        self._known = trials
        try:
            yield
        finally:
            self._known = None

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the dimensions that are proposed together: all."""
        if self.space is not None:
            return dict(self.space)
        return {
            name: distribution
            for name, distribution in intersection_search_space(study.get_trials(deepcopy=False)).items()
            if not distribution.single()
        }

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Propose a candidate."""
        if not search_space:
            return {}
        encoding = Encoding(search_space, self.priors)
        known = self._known if self._known is not None else study.get_trials(deepcopy=False)
        trials = [t for t in known if t.number != trial.number and encoding.holds(t)]
        told = [t for t in trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
        running = [t for t in trials if t.state == TrialState.RUNNING]
        rng = np.random.default_rng([self.seed, trial.number])
        sign = 1.0 if study.direction == StudyDirection.MINIMIZE else -1.0
        points, steps, values = observations(told + running, encoding, sign)
        if len(set(map(tuple, points))) < self.startup:
            return encoding.decode(encoding.spread(trial.number, self.seed))
        surrogate = self._fit(points, steps, values)
        # A trial under way is taken to end as its curve so far and its neighbours promise.
        ahead = np.array([encoding.encode(t.params) for t in running]).reshape(len(running), len(encoding))
        surrogate = surrogate.imagine(ahead)
        return encoding.decode(self._best(surrogate, encoding, rng, len(told)))

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draw a single dimension under the prior: where there is nothing yet to learn from."""
        encoding = Encoding({param_name: param_distribution}, self.priors)
        return encoding.decode(encoding.spread(trial.number, self.seed))[param_name]

    def _fit(self, points: Array, steps: Array, values: Array) -> Surrogate:
        key = (points.tobytes(), steps.tobytes(), values.tobytes())
        if self._fitted is None or self._fitted[0] != key:
            self._fitted = (key, Surrogate.fit(points, steps, values))
        return self._fitted[1]

    def _best(self, surrogate: Surrogate, encoding: Encoding, rng: np.random.Generator, told: int) -> Array:
        everywhere = encoding.draw(rng, CANDIDATES)
        # Around the best so far the surrogate is sure enough for small steps to matter.
        best = surrogate.best_points(4)
        near = best[rng.integers(len(best), size=LOCAL)] + 0.08 * rng.standard_normal((LOCAL, best.shape[1]))
        candidates = encoding.snap(np.concatenate([everywhere, near]))
        improvement = surrogate.log_expected_improvement(candidates)
        score = improvement + encoding.log_prior(candidates) * PRIOR_WEIGHT / (PRIOR_WEIGHT + told)
        promising = candidates[np.argsort(-score)[:PROMISING]]
        # The best of one possible surface, drawn anew for each slot: many slots look in many places.
        pick: Array = promising[int(np.argmin(surrogate.draw(promising, rng)))]
        return pick


class _Axis(NamedTuple):
    """What of a dimension is looked up for every trial.

    Attributes:
        corners: choices that get a column each, from `column` on; None: the dimension has one.
    """

    name: str
    column: int
    corners: Sequence[Any] | None
    is_log: bool
    low: float
    length: float

    @classmethod
    def of(cls, name: str, column: int, distribution: BaseDistribution) -> _Axis:
        if _is_nominal(distribution):
            return cls(name, column, distribution.choices, False, 0.0, 1.0)  # type: ignore[attr-defined]
        low, high = _bounds(distribution)
        return cls(name, column, None, _is_log(distribution), low, max(high - low, 1e-12))


class Encoding:
    """Candidates as points of the unit cube.

    Ranges are scaled, in their logarithm where they are searched so; choices of positive numbers lie in their
    logarithm as well, so that rank 8 is between 4 and 16; other choices get a corner each.
    """

    def __init__(self, space: Mapping[str, BaseDistribution], priors: Mapping[str, Prior]) -> None:
        self.space = dict(sorted(space.items()))
        self.priors = {name: value for name, value in priors.items() if name in self.space}
        self.columns: dict[str, slice] = {}
        at = 0
        for name, distribution in self.space.items():
            width = len(distribution.choices) if _is_nominal(distribution) else 1  # type: ignore[attr-defined]
            self.columns[name] = slice(at, at + width)
            at += width
        self.width = at
        self._axes = [_Axis.of(name, self.columns[name].start, each) for name, each in self.space.items()]

    def __len__(self) -> int:
        return self.width

    def holds(self, trial: FrozenTrial) -> bool:
        """Tell whether a trial is a point of this space."""
        return all(
            name in trial.params and distribution._contains(distribution.to_internal_repr(trial.params[name]))
            for name, distribution in self.space.items()
        )

    def encode(self, params: Mapping[str, Any]) -> Array:
        """Return the point of a candidate."""
        point = np.zeros(self.width)
        for axis in self._axes:
            value = params[axis.name]
            if axis.corners is not None:
                point[axis.column + axis.corners.index(value)] = 1.0
            else:
                point[axis.column] = ((math.log(value) if axis.is_log else float(value)) - axis.low) / axis.length
        return point

    def decode(self, point: Array) -> dict[str, Any]:
        """Return the candidate nearest to a point."""
        params: dict[str, Any] = {}
        for name, distribution in self.space.items():
            columns = self.columns[name]
            if isinstance(distribution, CategoricalDistribution):
                if _is_nominal(distribution):
                    params[name] = distribution.choices[int(np.argmax(point[columns]))]
                else:
                    low, high = _bounds(distribution)
                    value = low + float(point[columns.start]) * (high - low)
                    params[name] = min(distribution.choices, key=lambda c: abs(_scaled(distribution, c) - value))
                continue
            assert isinstance(distribution, (FloatDistribution, IntDistribution))
            low, high = _bounds(distribution)
            value = low + float(np.clip(point[columns.start], 0, 1)) * (high - low)
            value = math.exp(value) if distribution.log else value
            value = min(max(value, distribution.low), distribution.high)
            if isinstance(distribution, IntDistribution) or distribution.step is not None:
                step = distribution.step or 1
                value = distribution.low + round((value - distribution.low) / step) * step
            params[name] = int(value) if isinstance(distribution, IntDistribution) else float(value)
        return params

    def snap(self, points: Array) -> Array:
        """Move points onto legal candidates."""
        snapped = np.clip(points, 0.0, 1.0)
        for name, distribution in self.space.items():
            if not isinstance(distribution, CategoricalDistribution):
                continue
            columns = self.columns[name]
            if _is_nominal(distribution):
                snapped[:, columns] = np.eye(columns.stop - columns.start)[snapped[:, columns].argmax(1)]
            else:
                legal = np.array([self.encode_one(name, choice) for choice in distribution.choices])
                nearest = np.abs(snapped[:, columns] - legal).argmin(1)
                snapped[:, columns.start] = legal[nearest]
        return snapped

    def encode_one(self, name: str, value: Any) -> float:
        """Return the coordinate of a value of a dimension that is no corner."""
        low, high = _bounds(self.space[name])
        return (_scaled(self.space[name], value) - low) / max(high - low, 1e-12)

    def draw(self, rng: np.random.Generator, count: int) -> Array:
        """Return points spread evenly over the cube."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            points: Array = qmc.Sobol(self.width, rng=rng).random(count)
        return self.snap(points)

    def spread(self, number: int, seed: int) -> Array:
        """Return point `number` of a sequence that fills the cube evenly under the prior."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            point: Array = qmc.Sobol(self.width, rng=np.random.default_rng([seed, 17])).random(number + 1)[-1]
        for name in self.priors:
            columns, (centre, sd) = self.columns[name], self._prior(name)
            low, high = norm.cdf([(0 - centre) / sd, (1 - centre) / sd])
            point[columns.start] = centre + sd * norm.ppf(low + point[columns.start] * (high - low))
        snapped: Array = self.snap(point[None])[0]
        return snapped

    def log_prior(self, points: Array) -> Array:
        """Return the logarithm of the prior's density, up to a constant."""
        total = np.zeros(len(points))
        for name in self.priors:
            centre, sd = self._prior(name)
            total -= 0.5 * ((points[:, self.columns[name].start] - centre) / sd) ** 2
        return total

    def _prior(self, name: str) -> tuple[float, float]:
        low, high = _bounds(self.space[name])
        centre, sd = self.priors[name]
        # In a range that is not logarithmic the factor upwards counts.
        above = _scaled(self.space[name], centre * math.exp(sd)) - _scaled(self.space[name], centre)
        return self.encode_one(name, centre), above / max(high - low, 1e-12)


def observations(trials: Sequence[FrozenTrial], encoding: Encoding, sign: float) -> tuple[Array, Array, Array]:
    """Return points, steps and losses of all rungs of all trials; losses that are no numbers are left out."""
    points, steps, values = [], [], []
    for trial in trials:
        point = encoding.encode(trial.params)
        for step, value in sorted(trial.intermediate_values.items()):
            if math.isfinite(value):
                points.append(point)
                steps.append(float(step))
                values.append(sign * value)
    return np.array(points).reshape(len(points), len(encoding)), np.array(steps), np.array(values)


def _is_nominal(distribution: BaseDistribution) -> bool:
    if not isinstance(distribution, CategoricalDistribution):
        return False
    return not all(isinstance(c, (int, float)) and not isinstance(c, bool) and c > 0 for c in distribution.choices)


def _scaled(distribution: BaseDistribution, value: Any) -> float:
    return math.log(value) if _is_log(distribution) else float(value)


def _is_log(distribution: BaseDistribution) -> bool:
    return isinstance(distribution, CategoricalDistribution) or distribution.log  # type: ignore[attr-defined]


def _bounds(distribution: BaseDistribution) -> tuple[float, float]:
    if isinstance(distribution, CategoricalDistribution):
        values = [_scaled(distribution, choice) for choice in distribution.choices]
        return min(values), max(values)
    return _scaled(distribution, distribution.low), _scaled(distribution, distribution.high)  # type: ignore[attr-defined]
