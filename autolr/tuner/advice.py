"""What a search's curves say about candidates that were not tried, and about the next study."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autolr import display
from autolr.errors import AutoLRError, RunError
from autolr.rundir.folder import RunFolder
from autolr.rundir.index import folders
from autolr.rundir.result import SearchResult
from autolr.schema.candidate import Candidate
from autolr.schema.space import Range
from autolr.schema.yaml_io import Document
from autolr.tuner.propose.encoding import Array, Encoding
from autolr.tuner.propose.surrogate import MIN_TRIALS_FOR_SURROGATE, Surrogate, curves_of

# Probability that a prediction's interval holds the loss of a new trial.
COVERAGE = 0.90
# If more than this share of the uncertainty before the search is left, there is no prediction.
MAX_UNKNOWN = 0.8
# If the winner is in this outer share of a range (in its logarithm), the best may be outside.
EDGE = 0.1
# A range is extended by this factor beyond the bound at which the best is, and around the best on the other side.
WIDEN_BY = 4.0
# A rank is dropped if its chance of being the best is lower.
MIN_CHANCE_OF_RANK = 0.05
# More trials are not worth it if their expected gain is a smaller share of the loss.
MIN_GAIN = 0.005
MORE_TRIALS = 8
DRAWS, POINTS = 400, 192


@dataclass(frozen=True)
class Prediction:
    """The validation loss that a trial of a candidate would end at.

    Attributes:
        step: where trials end; the loss is that of the averaged weights there.
        loss: the median of the predicted distribution.
        low, high: a 90 % prediction interval: it holds the loss of a new trial with 90 % probability.
        nearest: the tried candidate that is most similar.
    """

    candidate: Candidate
    step: int
    loss: float
    low: float
    high: float
    nearest: Candidate

    def describe(self) -> str:
        """Return the prediction in one line."""
        return (
            f"{self.candidate.describe()}: validation loss {display.loss(self.loss)} at step {self.step} of a trial, "
            f"90% prediction interval {display.loss(self.low)} to {display.loss(self.high)}"
        )


class Advice(Document):
    """What to search next on one model and data.

    Attributes:
        based_on: the run it is read from.
        reasons: one observation each, and what follows from it.
        command: starts the next study or resumes this one; None: nothing is left to search for.
    """

    model: str
    data: str
    based_on: str
    reasons: list[str]
    command: str | None


class _Learned:
    """What a search has learned: its space, its trials with a score, and the surrogate of their curves."""

    def __init__(self, result: SearchResult) -> None:
        trials = RunFolder(result.folder).trials()
        scored = [t for t in trials if t.intermediate_values]
        self.count = len(scored)
        self.encoding = Encoding(scored[-1].distributions if scored else {})
        self.trials = [trial for trial in scored if self.encoding.holds(trial)]
        self.surrogate = Surrogate.from_curves(self.encoding, curves_of(self.trials))


def predict(result: SearchResult, candidate: Candidate) -> Prediction:
    """Predict what a trial of a candidate would score, from all curves of a search.

    Raises:
        RunError: the search has too few trials, or the candidate is outside its space or far from all tried ones.
    """
    space, kinds = result.study.space, result.study.method.kind
    if candidate.targets not in space.targets or candidate.kind not in kinds:
        searched = ", ".join([*space.targets, *kinds])
        raise RunError(f"{result.folder}: {candidate.describe()} was not searched, only {searched} was")
    learned = _Learned(result)
    encoding, surrogate = learned.encoding, learned.surrogate
    if surrogate is None:
        raise RunError(
            f"{result.folder}: {learned.count} trials have a score, a prediction needs {MIN_TRIALS_FOR_SURROGATE}. "
            f"Run more with: autolr search --out {result.folder} --trials {2 * MIN_TRIALS_FOR_SURROGATE}"
        )
    params = candidate.model_dump(include=set(encoding.space))
    for name in (name for name in ("lr_v", "ratio", "rank", "loraplus_lr_ratio") if name in encoding.space):
        low, high = _bounds(encoding, name)
        if not low <= params[name] <= high:
            raise RunError(
                f"{result.folder}: {name} {params[name]:g} is outside the searched range, {low:g} to {high:g}. "
                "Search a wider space."
            )
    point = encoding.encode(params)[None]
    tried = np.array([encoding.encode(trial.params) for trial in learned.trials])
    nearest_trial = learned.trials[int(np.linalg.norm(tried - point, axis=1).argmin())]
    nearest = candidate.model_copy(update=nearest_trial.params)
    if float(surrogate.unknown(point)[0]) > MAX_UNKNOWN:
        raise RunError(
            f"{result.folder}: {candidate.describe()} is far from all tried candidates (the nearest is "
            f"{nearest.describe()}), so the curves say nothing about it. Search on with more --trials."
        )
    levels = np.array([0.5, (1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    loss, low, high = surrogate.quantiles(point, levels)[:, 0].tolist()
    return Prediction(candidate, int(surrogate.last), loss, low, high, nearest)


def recommend(folder: str | Path) -> list[Advice]:
    """Return what to search next: for each model and data, from their last run.

    Raises:
        RunError: there is no run, or no run can be read.
    """
    results = []
    for path in folders(folder):
        try:
            results.append(SearchResult.load(path))
        except AutoLRError:
            continue
    if not results:
        raise RunError(f"{folder}: none of its runs can be read. Find out why with: autolr runs {folder} --check")
    last = {(r.study.model, json.dumps(r.study.data.model_dump(mode="json"))): r for r in results}
    return [advise(result, results) for result in last.values()]


def advise(result: SearchResult, others: Sequence[SearchResult] = ()) -> Advice:
    """Return what to search after a search.

    Args:
        result: the search.
        others: earlier searches, whose winners a new one may start from.
    """
    reasons, command = _reasons_and_command(result, others)
    study = result.study
    return Advice(
        model=study.model, data=study.data.source, based_on=str(result.folder), reasons=reasons, command=command
    )


def _reasons_and_command(result: SearchResult, others: Sequence[SearchResult]) -> tuple[list[str], str | None]:
    budget, ended = result.study.budget.trials, len(result.ended())
    resume = f"autolr search --out {shlex.quote(str(result.folder))}"
    if result.recipe is None:
        return [f"the search is not finished: {ended} of {budget} trials have ended"], resume
    learned = _Learned(result)
    if learned.surrogate is None:
        reason = f"too few trials with a score to learn from (at least {MIN_TRIALS_FOR_SURROGATE} are needed)"
        return [reason], f"{resume} --trials {2 * max(budget, MIN_TRIALS_FOR_SURROGATE)}"
    winner = result.recipe.candidate
    reasons, changes = _wider_ranges(winner, learned.encoding)
    is_inside = not changes
    ranks, dropped = _ranks_worth_searching(winner, sorted(result.study.space.rank), learned)
    if dropped:
        changes.append(f"space.rank={json.dumps(ranks, separators=(',', ':'))}")
    gain, loss = _expected_gain(learned)
    is_enough = gain < MIN_GAIN * abs(loss)
    reasons += [
        *dropped,
        f"{ended} trials are {'enough' if is_enough else 'too few'}: the best of {MORE_TRIALS} more should gain "
        f"{display.loss(gain)} (expected validation loss now: {display.loss(loss)})",
    ]
    if is_enough and is_inside:
        return [*reasons, "the best is inside the space: nothing is left to search for here"], None
    if not changes:
        return reasons, f"{resume} --trials {budget + max(8, budget // 2)}"
    priors = _related(result, others)
    words = [
        *("autolr", "search", str(result.folder / "study.yaml"), *changes),
        *(word for path in priors for word in ("--warm-start", str(path))),
        *("--out", str(_free(result.folder))),
    ]
    return [*reasons, f"start from the winners of {', '.join(path.name for path in priors)}"], shlex.join(words)


def _wider_ranges(winner: Candidate, encoding: Encoding) -> tuple[list[str], list[str]]:
    """Return why ranges should be wider, and the overrides that widen them."""
    reasons, changes = [], []
    for name in (name for name in ("lr_v", "ratio") if name in encoding.space):
        low, high = _bounds(encoding, name)
        if low >= high or hasattr(encoding.space[name], "choices"):
            continue
        value = float(getattr(winner, name))
        position = math.log(value / low) / math.log(high / low)
        limit = 10.0 if name == "lr_v" else 1e4
        if position < EDGE:
            new, side = Range(low=low / WIDEN_BY, high=value * WIDEN_BY), "lower"
        elif position > 1 - EDGE:
            new, side = Range(low=value / WIDEN_BY, high=min(limit, high * WIDEN_BY)), "upper"
        else:
            continue
        reasons.append(
            f"the best {name}, {value:.3g}, is at the {side} bound of {low:.3g} to {high:.3g}: look beyond"
        )
        changes.append(f"space.{name}={{low: {new.low:.3g}, high: {new.high:.3g}}}")
    return reasons, changes


def _ranks_worth_searching(winner: Candidate, ranks: list[int], learned: _Learned) -> tuple[list[int], list[str]]:
    """Return the ranks to keep, and why each other rank is dropped."""
    assert learned.surrogate is not None
    if len(ranks) < 2:
        return ranks, []
    candidates, points = _all_over(learned.encoding)
    drawn = learned.surrogate.draw(points, DRAWS, _rng())
    best = [candidates[index]["rank"] for index in drawn.argmin(1)]
    chance = {rank: best.count(rank) / DRAWS for rank in ranks}
    dropped = [rank for rank in ranks if chance[rank] < MIN_CHANCE_OF_RANK and rank != winner.rank]
    why = [f"rank {rank} is the best with {100 * chance[rank]:.0f}% chance: drop it" for rank in dropped]
    return [rank for rank in ranks if rank not in dropped], why


def _expected_gain(learned: _Learned) -> tuple[float, float]:
    """Return what the best of some more trials is expected to gain, and the lowest loss expected so far."""
    assert learned.surrogate is not None
    _, points = _all_over(learned.encoding)
    best = learned.surrogate.best_points(1)
    drawn = learned.surrogate.draw(np.concatenate([best, points]), DRAWS, _rng())
    chosen = np.argsort(-learned.surrogate.log_expected_improvement(points))[:MORE_TRIALS]
    gains = np.maximum(0.0, drawn[:, 0] - drawn[:, 1 + chosen].min(1))
    return float(gains.mean()), float(learned.surrogate.predict(best)[0][0])


def _bounds(encoding: Encoding, name: str) -> tuple[float, float]:
    """Return the lowest and the highest value of a dimension of numbers."""
    distribution: Any = encoding.space[name]
    choices = getattr(distribution, "choices", None) or (distribution.low, distribution.high)
    return float(min(choices)), float(max(choices))


def _all_over(encoding: Encoding) -> tuple[list[dict[str, Any]], Array]:
    """Return candidates all over the space and their points, the same ones at each call."""
    rng, candidates = _rng(), []
    for _ in range(POINTS):
        candidate: dict[str, Any] = {}
        for name, distribution in encoding.space.items():
            choices: Any = getattr(distribution, "choices", None)
            if choices is not None:
                candidate[name] = choices[int(rng.integers(len(choices)))]
            else:
                low, high = _bounds(encoding, name)
                candidate[name] = math.exp(rng.uniform(math.log(low), math.log(high)))
        candidates.append(candidate)
    return candidates, np.array([encoding.encode(candidate) for candidate in candidates])


def _rng() -> np.random.Generator:
    return np.random.default_rng(0)


def _related(result: SearchResult, others: Sequence[SearchResult]) -> list[Path]:
    """Return the runs that a new search starts from: this one, and finished ones of the same data or model."""
    study = result.study
    related = [
        other.folder
        for other in others
        if other.recipe is not None
        and other.folder != result.folder
        and (other.study.data.source == study.data.source or other.study.model == study.model)
    ]
    return [result.folder, *related[-2:]]


def _free(folder: Path) -> Path:
    """Return the first of `folder-2`, `folder-3`, ... that does not exist."""
    number = 2
    while (new := folder.with_name(f"{folder.name}-{number}")).exists():
        number += 1
    return new
