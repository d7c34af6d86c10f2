"""A complex task's change as a combination of basic tasks' changes (paper 2, section 4), beside a null."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import nnls

from autolr.errors import AutoLRError
from autolr.insight.activations import Array, Kind, Pattern
from autolr.insight.measures import bootstrap_weights, resampled
from autolr.schema.recipe import Interval

RESAMPLES, NULL_DRAWS = 200, 1000


class Change(NamedTuple):
    """A task's pattern before and after fine-tuning, on the same samples."""

    before: Pattern
    after: Pattern

    def of(self, kind: Kind = "absolute") -> Array:
        """Return ΔAP = after - before, [layers, heads]."""
        return self.after.of(kind) - self.before.of(kind)

    def drawn(self, kind: Kind, draws: int, rng: np.random.Generator) -> Array:
        """Return ΔAP of bootstrap draws over samples, [draws, layers, heads]."""
        weights = bootstrap_weights(len(self.before.losses), draws, rng)
        return resampled(self.after.each(kind) - self.before.each(kind), weights)


class Weight(NamedTuple):
    """What a basic task contributes.

    Attributes:
        ordinary: its α of ordinary least squares.
        share: its α of non-negative least squares, which serves as a proportion.
    """

    task: str
    ordinary: Interval
    share: Interval


class Combination(NamedTuple):
    """ΔAP_complex = Σ α_i ΔAP_basic_i + ε over all heads.

    Attributes:
        r2: share of the squares of ΔAP_complex that ordinary least squares explains: the model has no constant, so
            they are taken around 0, as the formula has it.
        r2_share: that of non-negative weights.
        null_heads: mean and the range of 95 % of R² where the heads of the basic tasks are permuted, each layer's
            among themselves, so that what layers have in common counts as null.
        null_unrelated: R² of combinations of unrelated tasks, as many at a time; empty where none were given.
        p: share of permutations that fit as well.
    """

    weights: list[Weight]
    r2: Interval
    r2_share: float
    null_heads: Interval
    null_unrelated: list[float]
    p: float


def combine(
    complex_task: Change,
    basic: Mapping[str, Change],
    unrelated: Sequence[Change] = (),
    kind: Kind = "absolute",
    seed: int = 0,
) -> Combination:
    """Write a task's change as a combination of basic tasks' changes.

    Args:
        complex_task: the task.
        basic: the tasks it may consist of.
        unrelated: tasks that have nothing to do with it: what they explain is a null.
        kind: see `Pattern.of`.
        seed: of permutations and draws.

    Raises:
        AutoLRError: there is no basic task, or they are measured on other heads.
    """
    if not basic:
        raise AutoLRError("a combination needs basic tasks: give their adapters beside that of the complex task")
    target = complex_task.of(kind)
    parts = [change.of(kind) for change in basic.values()]
    if any(part.shape != target.shape for part in (*parts, *(one.of(kind) for one in unrelated))):
        raise AutoLRError("patterns of different models cannot be combined: their heads are others")
    rng = np.random.default_rng(seed)
    alpha, r2 = least_squares(target, parts)
    share, r2_share = non_negative(target, parts)
    targets = complex_task.drawn(kind, RESAMPLES, rng)
    basics = np.stack([change.drawn(kind, RESAMPLES, rng) for change in basic.values()], 1)
    draws = [(target_drawn, list(drawn)) for target_drawn, drawn in zip(targets, basics, strict=True)]
    ordinary = [least_squares(*draw) for draw in draws]
    shares = [non_negative(*draw)[0] for draw in draws]
    null = [least_squares(target, [rng.permuted(part, axis=1) for part in parts])[1] for _ in range(NULL_DRAWS)]
    others = [change.of(kind) for change in unrelated]
    count = min(len(parts), len(others))
    return Combination(
        [
            Weight(
                name,
                _interval(alpha[place], [found[place] for found, _ in ordinary]),
                _interval(share[place], [found[place] for found in shares]),
            )
            for place, name in enumerate(basic)
        ],
        _interval(r2, [found for _, found in ordinary]),
        r2_share,
        _interval(float(np.mean(null)), null, 0.025),
        [least_squares(target, others[i : i + count])[1] for i in range(0, len(others) - count + 1)] if count else [],
        float(np.mean([one >= r2 for one in null])),
    )


def least_squares(target: Array, parts: Sequence[Array]) -> tuple[Array, float]:
    """Return ordinary least squares' weights, [parts], and R² around 0."""
    matrix = np.stack([part.ravel() for part in parts], 1)
    weights: Array = np.linalg.lstsq(matrix, target.ravel(), rcond=None)[0]  # type: ignore[assignment]
    return weights, _r2(target, matrix, weights)


def non_negative(target: Array, parts: Sequence[Array]) -> tuple[Array, float]:
    """Return non-negative least squares' weights, [parts], and R² around 0."""
    matrix = np.stack([part.ravel() for part in parts], 1)
    scale = float(np.abs(matrix).max()) or 1.0
    weights = nnls(matrix / scale, target.ravel() / scale)[0]
    return weights, _r2(target, matrix, weights)


def mixture(shares: Mapping[str, float], total: int) -> dict[str, int]:
    """Return how many samples of each basic task to train on first: N α_i / Σα (paper 2, section 5.1).

    The numbers add up to `total`, the largest remainders being rounded up.

    Raises:
        AutoLRError: no task has a share.
    """
    whole = sum(shares.values())
    if not whole > 0:
        raise AutoLRError("no basic task has a positive weight, so there is no mixture to advise")
    exact = {name: total * share / whole for name, share in shares.items()}
    found = {name: int(count) for name, count in exact.items()}
    left = total - sum(found.values())
    for name in sorted(exact, key=lambda name: found[name] - exact[name])[:left]:
        found[name] += 1
    return found


def _r2(target: Array, matrix: Array, weights: Array) -> float:
    rest = target.ravel() - matrix @ weights
    total = float((target**2).sum())
    return 1 - float((rest**2).sum()) / total if total else 0.0


def _interval(value: float, draws: Sequence[float], tail: float = 0.05) -> Interval:
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Interval(mean=float(value), low=float(low), high=float(high))
