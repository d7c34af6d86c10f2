"""What several figures are computed from: plain numbers of a search, no drawing."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from autolr.rundir.folder import RunFolder
from autolr.rundir.records import Record, TrialRecord, by_candidate
from autolr.rundir.result import SearchResult
from autolr.schema.candidate import Candidate
from autolr.schema.space import has_ratio
from autolr.tuner.propose.encoding import Encoding
from autolr.tuner.propose.surrogate import Surrogate

SMOOTHING = 0.15
# Between two sittings nothing runs: a longer pause is drawn as one so long, in seconds.
PAUSE = 30.0
# What a damaged table of resources may raise, from reading to the last number.
UNREADABLE = (OSError, pa.ArrowException, AttributeError, KeyError, ValueError, TypeError)
# Of more rungs than this the surrogate gets each trial's last alone: its cost grows with their third power.
MOST_SEEN = 240
# A curve is drawn with at most so many points: they are smooth, and a page of 200 trials stays small.
MOST_POINTS = 100


class Curve(NamedTuple):
    """Smoothed training loss of a trial, step by step."""

    trial: TrialRecord
    steps: list[int]
    losses: list[float]


class Fit(NamedTuple):
    """The surrogate of all curves of a search, and how candidates are put to it."""

    encoding: Encoding
    surrogate: Surrogate

    def knows(self, candidate: Candidate) -> bool:
        """Return True if each choice of the candidate has been tried."""
        values = coordinates(candidate)
        choices = {n: d.choices for n, d in self.encoding.space.items() if isinstance(d, CategoricalDistribution)}
        return all(values[name] in tried for name, tried in choices.items())

    def points(self, candidates: list[Candidate]) -> np.ndarray:
        """Return candidates as points of the surrogate, [candidates, dimensions]."""
        return np.array([self.encoding.encode(coordinates(c)) for c in candidates])


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


def thinned(curve: Curve) -> Curve:
    """Return a curve of at most `MOST_POINTS` points, its first and last among them."""
    count = len(curve.steps)
    if count <= MOST_POINTS:
        return curve
    kept = sorted({round(i * (count - 1) / (MOST_POINTS - 1)) for i in range(MOST_POINTS)})
    return Curve(curve.trial, [curve.steps[i] for i in kept], [curve.losses[i] for i in kept])


def ratio_matters(result: SearchResult) -> bool:
    """Return True if any candidate of the study has a ratio."""
    return any(map(has_ratio, result.study.space.targets))


def coordinates(candidate: Candidate) -> dict[str, Any]:
    """Return a candidate as values of dimensions; if λ means nothing, `rate` instead of `lr_v` and `ratio`."""
    values: dict[str, Any] = candidate.model_dump()
    return {**values, "rate": candidate.rate}


def dimensions(result: SearchResult) -> dict[str, BaseDistribution]:
    """Return what the candidates of a search differ in, and how far they reach."""
    candidates = [coordinates(trial.candidate) for trial in result.trials]
    left_out = {"rate"} if ratio_matters(result) else {"lr_v", "ratio"}
    found: dict[str, BaseDistribution] = {}
    for name in candidates[0] if candidates else ():
        values = sorted({candidate[name] for candidate in candidates})
        if name in left_out or len(values) < 2:
            continue
        is_range = isinstance(values[0], float)
        found[name] = (
            FloatDistribution(values[0], values[-1], log=True) if is_range else CategoricalDistribution(values)
        )
    return found


def fit(result: SearchResult) -> Fit | None:
    """Fit the surrogate to all rungs of all trials, pruned ones too; None with too few trials."""
    space = dimensions(result)
    if not space:
        return None
    curves = [(coordinates(trial.candidate), trial.rungs) for trial in result.trials]
    if sum(len(losses) for _, losses in curves) > MOST_SEEN:
        scores = comparable_scores(result)
        ended = [trial for trial in result.trials if trial.number in scores]
        curves = [(coordinates(trial.candidate), {max(trial.rungs): scores[trial.number]}) for trial in ended]
    encoding = Encoding(space)
    surrogate = Surrogate.from_curves(encoding, curves)
    return Fit(encoding, surrogate) if surrogate is not None else None


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


def over_seeds(result: SearchResult) -> dict[Candidate, list[Record]]:
    """Return the trainings of each candidate that have seeds of their own, in the order of their seeds."""
    return by_candidate(result.over_seeds)


def judged(result: SearchResult) -> dict[Candidate, list[Record]]:
    """Return what the winner was chosen by: a training of each candidate to the end, or those with several seeds."""
    return by_candidate(result.finals or result.over_seeds)


def own_winner(result: SearchResult) -> Candidate | None:
    """Return the winner; None before the search is through."""
    evidence = result.recipe.evidence if result.recipe else None
    return next((score.candidate for score in evidence.scores if score.gain is None), None) if evidence else None


def resources(result: SearchResult) -> Any:
    """Return the samples in the run's resources.parquet by time, a data frame; raises one of `UNREADABLE`."""
    frame = pq.read_table(RunFolder(result.folder).resources).to_pandas()
    return frame.sort_values("time", kind="stable")


def machine(result: SearchResult) -> dict[str, Any]:
    """Return the description of the run's machine; empty without one."""
    return _read(RunFolder(result.folder).machine)


def full_run(result: SearchResult) -> dict[str, Any]:
    """Return the results of the full run in the folder; empty without one."""
    return _read(RunFolder(result.folder).train / "metrics.json")


def _read(path: Any) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
