"""What the figures show, computed from a search: plain numbers, no drawing."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from autolr.search.records import TrialRecord
from autolr.search.result import SearchResult

SMOOTHING = 0.15
SURFACE_MIN_TRIALS = 6


class Curve(NamedTuple):
    """Smoothed training loss of a trial, step by step."""

    trial: TrialRecord
    steps: list[int]
    losses: list[float]


class Target(NamedTuple):
    """How fast a trial reached the target loss; `fraction` of the rule's steps, None: never."""

    trial: TrialRecord
    fraction: float | None


class Surface(NamedTuple):
    """Fitted score over log10 rates: `z[i][j]` at `x[j]` = lr_q, `y[i]` = lr_v."""

    x: list[float]
    y: list[float]
    z: list[list[float]]


def smooth(losses: list[float]) -> list[float]:
    """Return the exponential running mean of `losses`, started from its first values' mean."""
    if not losses:
        return []
    mean = sum(losses[:3]) / len(losses[:3])
    out = []
    for loss in losses:
        mean += SMOOTHING * (loss - mean)
        out.append(mean)
    return out


def curves(result: SearchResult) -> list[Curve]:
    """Return the curve of every trial that has trained."""
    found = []
    for trial in result.trials:
        if trial.curve:
            losses = smooth(trial.curve)
            found.append(Curve(trial, list(range(1, len(losses) + 1)), losses))
    return found


def steps_to_target(result: SearchResult) -> tuple[float, list[Target]] | None:
    """Return the target loss and how soon each trial reached it; None without a λ = 1 rule trial.

    The target is the lowest smoothed loss of the rule's trial, the unit the step it came at.
    """
    all_curves = curves(result)
    rule = next((curve for curve in all_curves if curve.trial.rule == "rule"), None)
    if rule is None:
        return None
    target = min(rule.losses)
    unit = rule.losses.index(target) + 1
    found = []
    for curve in all_curves:
        reached = next((step for step, loss in zip(curve.steps, curve.losses, strict=True) if loss <= target), None)
        found.append(Target(curve.trial, reached / unit if reached else None))
    return target, found


def comparable_scores(result: SearchResult) -> dict[int, float]:
    """Return one score for every trial that has any, all on the scale of the last rung.

    A score from an earlier rung is shifted by the median change of the trials that went on.
    """
    trials = [trial for trial in result.trials if trial.rungs and trial.outcome in ("finished", "pruned")]
    if not trials:
        return {}
    rungs = sorted({rung for trial in trials for rung in trial.rungs})
    shift = {rungs[-1]: 0.0}
    for early, late in reversed(list(pairwise(rungs))):
        changes = [t.rungs[late] - t.rungs[early] for t in trials if early in t.rungs and late in t.rungs]
        shift[early] = shift[late] + (float(np.median(changes)) if changes else 0.0)
    return {trial.number: trial.rungs[max(trial.rungs)] + shift[max(trial.rungs)] for trial in trials}


def surface(result: SearchResult, points: int = 40) -> Surface | None:
    """Fit a Gaussian process to the scores over (log lr_q, log lr_v); None with too few trials."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

    scores = comparable_scores(result)
    trials = [t for t in result.trials if t.number in scores and t.candidate.targets in result.study.space.targets]
    if len(trials) < SURFACE_MIN_TRIALS:
        return None
    x = np.log10([[t.candidate.lr_q, t.candidate.lr_v] for t in trials])
    y = np.array([scores[t.number] for t in trials])
    if np.ptp(y) == 0 or np.ptp(x[:, 0]) == 0 or np.ptp(x[:, 1]) == 0:
        return None
    # A pruned trial's score is an extrapolation; one far off says no more than "bad".
    y = np.minimum(y, np.median(y) + 2 * np.ptp(np.quantile(y, [0.1, 0.9])))
    kernel = ConstantKernel(1.0) * RBF([0.5, 0.5], (0.2, 5.0)) + WhiteKernel(0.05, (1e-4, 1.0))
    model = GaussianProcessRegressor(kernel, normalize_y=True, n_restarts_optimizer=2, random_state=0)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(x, y)
    axes = [np.linspace(x[:, i].min() - 0.1, x[:, i].max() + 0.1, points) for i in (0, 1)]
    grid = np.stack(np.meshgrid(*axes), -1).reshape(-1, 2)
    z = model.predict(grid).reshape(points, points)
    return Surface((10 ** axes[0]).tolist(), (10 ** axes[1]).tolist(), z.tolist())


def best_so_far(result: SearchResult) -> list[tuple[int, float]]:
    """Return (trial number, best final score up to it) wherever a finished trial improves on it."""
    best, found = math.inf, []
    for trial in result.trials:
        if trial.outcome == "finished" and trial.score is not None and trial.score < best:
            best = trial.score
            found.append((trial.number, best))
    return found
