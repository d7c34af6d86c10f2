"""Candidates as points of the unit cube, and the prior over them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial
from scipy.stats import norm, qmc

Array = np.ndarray[Any, np.dtype[np.float64]]

# Standard deviation of a prior in natural logarithms: the best may be a factor of 3 away from its centre.
PRIOR_SD = math.log(3.0)


class Prior(NamedTuple):
    """Where the best is expected before any trial: a value, and a standard deviation in natural logarithms."""

    centre: float
    sd: float = PRIOR_SD


class Encoding:
    """Maps the candidates of a search space to points of the unit cube and back.

    A range is scaled to [0, 1], in its logarithm if it is searched so. Choices of positive numbers are scaled in
    their logarithm as well, so rank 8 lies between 4 and 16. Other choices are one-hot: each gets a column.

    Args:
        space: the dimensions by name.
        priors: where the best is expected, for some of the dimensions.

    Attributes:
        space: the dimensions in the order of their names.
        columns: the columns of each dimension in a point.
    """

    def __init__(self, space: Mapping[str, BaseDistribution], priors: Mapping[str, Prior] | None = None) -> None:
        self.space = dict(sorted(space.items()))
        self.priors = {name: prior for name, prior in (priors or {}).items() if name in self.space}
        self._axes: dict[str, _Axis] = {}
        self.width = 0
        for name, distribution in self.space.items():
            self._axes[name] = axis = _Axis(distribution, self.width)
            self.width = axis.columns.stop
        self.columns = {name: axis.columns for name, axis in self._axes.items()}

    def __len__(self) -> int:
        return self.width

    def holds(self, trial: FrozenTrial) -> bool:
        """Return True if a trial is a point of this space."""
        return all(
            name in trial.params and distribution._contains(distribution.to_internal_repr(trial.params[name]))
            for name, distribution in self.space.items()
        )

    def encode(self, params: Mapping[str, Any]) -> Array:
        """Return the point of a candidate, [width]."""
        point = np.zeros(self.width)
        for name, axis in self._axes.items():
            axis.encode(params[name], point)
        return point

    def decode(self, point: Array) -> dict[str, Any]:
        """Return the candidate nearest to a point."""
        return {name: axis.decode(point) for name, axis in self._axes.items()}

    def snap(self, points: Array) -> Array:
        """Move points onto legal candidates, [points, width]."""
        snapped = np.clip(points, 0.0, 1.0)
        for axis in self._axes.values():
            axis.snap(snapped)
        return snapped

    def draw(self, rng: np.random.Generator, count: int) -> Array:
        """Return `count` points spread evenly over the cube."""
        return self.snap(_sobol(self.width, rng, count))

    def spread(self, number: int, seed: int) -> Array:
        """Return point `number` of a sequence that fills the cube evenly under the prior."""
        point = _sobol(self.width, np.random.default_rng([seed, 17]), number + 1)[-1]
        for name in self.priors:
            column, (centre, sd) = self.columns[name].start, self._prior(name)
            low, high = norm.cdf([(0 - centre) / sd, (1 - centre) / sd])
            point[column] = centre + sd * norm.ppf(low + point[column] * (high - low))
        snapped: Array = self.snap(point[None])[0]
        return snapped

    def log_prior(self, points: Array) -> Array:
        """Return the logarithm of the prior's density at each point, up to a constant."""
        total = np.zeros(len(points))
        for name in self.priors:
            centre, sd = self._prior(name)
            total -= 0.5 * ((points[:, self.columns[name].start] - centre) / sd) ** 2
        return total

    def _prior(self, name: str) -> tuple[float, float]:
        """Return the centre and the standard deviation of a prior as coordinates."""
        axis, (centre, sd) = self._axes[name], self.priors[name]
        # In a range that is not logarithmic the factor upwards counts.
        above = axis.scaled(centre * math.exp(sd)) - axis.scaled(centre)
        return axis.coordinate(centre), above / axis.length


class _Axis:
    """One dimension: its columns of the cube, and where its values lie on them.

    Attributes:
        choices: what it chooses from; None: it is a range.
        is_nominal: its choices have no order, and a column each.
        low, length: the lowest scaled value, and how far the highest is from it.
        legal: coordinates of the choices, if they have an order.
    """

    def __init__(self, distribution: BaseDistribution, start: int) -> None:
        self.distribution = distribution
        self.choices = distribution.choices if isinstance(distribution, CategoricalDistribution) else None
        self.is_nominal = self.choices is not None and not all(map(_is_positive_number, self.choices))
        self.is_log = self.choices is not None or distribution.log  # type: ignore[attr-defined]
        self.columns = slice(start, start + (len(self.choices) if self.choices and self.is_nominal else 1))
        if self.is_nominal:
            return
        ends = self.choices or (distribution.low, distribution.high)  # type: ignore[attr-defined]
        scaled = [self.scaled(end) for end in ends]
        self.low, self.length = min(scaled), max(max(scaled) - min(scaled), 1e-12)
        self.legal = np.array([self.coordinate(choice) for choice in self.choices or ()])

    def scaled(self, value: Any) -> float:
        return math.log(value) if self.is_log else float(value)

    def coordinate(self, value: Any) -> float:
        """Return where a value lies between the lowest (0) and the highest (1)."""
        return (self.scaled(value) - self.low) / self.length

    def encode(self, value: Any, point: Array) -> None:
        """Write a value into a point."""
        if self.choices is not None and self.is_nominal:
            point[self.columns.start + self.choices.index(value)] = 1.0
        else:
            point[self.columns.start] = self.coordinate(value)

    def decode(self, point: Array) -> Any:
        """Return the value nearest to a point."""
        if self.choices is not None:
            own = point[self.columns]
            return self.choices[int(own.argmax() if self.is_nominal else np.abs(self.legal - own).argmin())]
        distribution = self.distribution
        assert isinstance(distribution, (FloatDistribution, IntDistribution))
        value = self.low + float(np.clip(point[self.columns.start], 0, 1)) * self.length
        value = math.exp(value) if distribution.log else value
        value = min(max(value, distribution.low), distribution.high)
        if isinstance(distribution, IntDistribution) or distribution.step is not None:
            step = distribution.step or 1
            value = distribution.low + round((value - distribution.low) / step) * step
        return int(value) if isinstance(distribution, IntDistribution) else float(value)

    def snap(self, points: Array) -> None:
        """Move points onto the choices, in place."""
        own = points[:, self.columns]
        if self.is_nominal:
            points[:, self.columns] = np.eye(own.shape[1])[own.argmax(1)]
        elif self.choices is not None:
            points[:, self.columns.start] = self.legal[np.abs(own - self.legal).argmin(1)]


def _is_positive_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0


def _sobol(width: int, rng: np.random.Generator, count: int) -> Array:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it would rather draw a power of 2
        points: Array = qmc.Sobol(width, rng=rng).random(count)
    return points
