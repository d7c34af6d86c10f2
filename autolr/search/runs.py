"""The runs of a folder: what each has searched, found and cost, and what to search next."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from autolr import display
from autolr.documents import Document
from autolr.errors import AutoLRError, RunError
from autolr.search.folder import RunFolder
from autolr.search.result import SearchResult
from autolr.search.sampler import Encoding, observations
from autolr.search.surrogate import ENOUGH, Surrogate
from autolr.study import Range

# Of a range's logarithm, the share next to a bound in which a winner says that the best may lie outside.
EDGE = 0.1
# A range goes this factor beyond the bound at which the best lies, and keeps it on the other side of the best.
WIDER = 4.0
# A rank is dropped when it is the best with less than this chance.
UNLIKELY = 0.05
# More trials are not worth it when they are expected to gain less than this share of the loss.
LITTLE = 0.005
DRAWS, POINTS = 400, 192


class Run(Document):
    """A run in few words.

    Attributes:
        score: confirm loss of the recipe's short trials; of an unfinished search the best select loss.
        metric: of the recipe on confirm, by its name.
        problem: why it cannot be read; all else is empty then.
    """

    folder: str
    state: Literal["finished", "unfinished", "unreadable"]
    name: str = ""
    model: str = ""
    data: str = ""
    total: int = 0
    completed: int = 0
    pruned: int = 0
    diverged: int = 0
    infeasible: int = 0
    failed: int = 0
    score: float | None = None
    metric: dict[str, float] = {}
    candidate: str | None = None
    device_seconds: float = 0.0
    full_runs: float | None = None
    verdict: str | None = None
    problem: str | None = None


class Advice(Document):
    """What to search next on one model and data.

    Attributes:
        based_on: the run it is read from.
        reasons: what was seen, and what follows; one thing each.
        command: that starts the next study, or goes on; None: there is nothing left to search for.
    """

    model: str
    data: str
    based_on: str
    reasons: list[str]
    command: str | None


def runs(folder: str | Path) -> list[Run]:
    """Return the runs in a folder, or the run that it is, the newest last.

    Raises:
        RunError: there is none.
    """
    return [_run(path) for path in folders(folder)]


def folders(folder: str | Path, *, damaged: bool = False) -> list[Path]:
    """Return the run folders in a folder, or the run folder that it is; the newest last.

    Args:
        folder: holds them.
        damaged: also those that lack their study or their trials.

    Raises:
        RunError: there is none.
    """
    top = Path(folder)
    if not top.is_dir():
        raise RunError(f"{folder}: no such folder; give one that holds run folders")
    found = [
        path
        for path in (top, *top.iterdir())
        if (path / "study.yaml").is_file() + RunFolder(path).has_trials > (0 if damaged else 1)
    ]
    if not found:
        raise RunError(f"{folder}: holds no runs; a search writes one: autolr search --out {folder}/NAME")
    return sorted(found, key=lambda path: (_changed(path), path.name))


def newest(folder: Path) -> Path:
    """Return the run that was last at work.

    Raises:
        RunError: there is none.
    """
    return folders(folder)[-1]


def recommend(folder: str | Path) -> list[Advice]:
    """Return what to search next: for each model and data, read from their last run.

    Raises:
        RunError: there is no run, or none that can be read.
    """
    results = []
    for path in folders(folder):
        try:
            results.append(SearchResult.load(path))
        except AutoLRError:
            continue
    if not results:
        raise RunError(f"{folder}: none of its runs can be read")
    last = {(r.study.model, json.dumps(r.study.data.model_dump(mode="json"))): r for r in results}
    return [advise(result, results) for result in last.values()]


def advise(result: SearchResult, others: Sequence[SearchResult] = ()) -> Advice:
    """Return what to search after a search.

    Args:
        result: the search.
        others: earlier searches, whose winners a new one may begin from.
    """
    study, ended, place = result.study, len(result.ended()), shlex.quote(str(result.folder))
    about = {"model": study.model, "data": study.data.source, "based_on": str(result.folder)}
    if result.recipe is None:
        reasons = [f"the search is not finished: {ended} of {study.budget.trials} trials have ended"]
        return Advice(**about, reasons=reasons, command=f"autolr search --out {place}")
    learned = _learned(result)
    if learned is None:
        more = max(2 * study.budget.trials, 2 * ENOUGH)
        reasons = [f"too few trials with a score to learn from (at least {ENOUGH} are needed)"]
        return Advice(**about, reasons=reasons, command=f"autolr search --out {place} --trials {more}")
    encoding, surrogate = learned
    reasons, changes = _bounds(result, encoding)
    ranks, said = _ranks(result, encoding, surrogate)
    reasons += said
    if ranks is not None:
        changes.append(f"space.rank={json.dumps(ranks, separators=(',', ':'))}")
    gain, loss = _expected_gain(encoding, surrogate)
    enough = gain < LITTLE * abs(loss)
    reasons.append(
        f"{ended} trials are {'enough' if enough else 'too few'}: the best of another pack of them is expected to "
        f"gain {display.loss(gain)} of select loss on {display.loss(loss)}"
    )
    if not any(change.startswith(("space.lr_v", "space.ratio")) for change in changes) and enough:
        reasons.append("the best lies inside the space: there is nothing left to search for here")
        return Advice(**about, reasons=reasons, command=None)
    if not changes:
        more = study.budget.trials + max(8, study.budget.trials // 2)
        return Advice(**about, reasons=reasons, command=f"autolr search --out {place} --trials {more}")
    priors = _priors(result, others)
    reasons.append(f"begin from what {', '.join(path.name for path in priors)} found")
    words = [
        *("autolr", "search", str(result.folder / "study.yaml"), *changes),
        *(word for path in priors for word in ("--prior", str(path))),
        *("--out", str(_free(result.folder))),
    ]
    return Advice(**about, reasons=reasons, command=shlex.join(words))


def _run(path: Path) -> Run:
    try:
        result = SearchResult.load(path)
    except AutoLRError as error:
        return Run(folder=str(path), state="unreadable", problem=" ".join(str(error).splitlines()[:2]))
    outcomes = [trial.outcome for trial in result.trials]
    recipe = result.recipe
    evidence = recipe.evidence if recipe else None
    best = min((t.score for t in result.trials if t.score is not None and t.outcome == "finished"), default=None)
    winner = evidence.scores[0] if evidence else None
    return Run(
        folder=str(path),
        state="finished" if recipe else "unfinished",
        name=result.study.name,
        model=result.study.model,
        data=result.study.data.source,
        total=len(outcomes),
        completed=outcomes.count("finished"),
        pruned=outcomes.count("pruned"),
        diverged=outcomes.count("diverged"),
        infeasible=outcomes.count("infeasible"),
        failed=outcomes.count("interrupted"),
        score=winner.confirm_loss if winner else best,
        metric={recipe.metric: winner.confirm_metric} if winner and recipe else {},
        candidate=recipe.candidate.describe() if recipe else None,
        device_seconds=round(sum(phase.seconds for phase in result.phases), 1),
        full_runs=evidence.cost.full_run_equivalents if evidence else None,
        verdict=evidence.verdict if evidence else None,
    )


def _changed(path: Path) -> float:
    folder = RunFolder(path)
    files = (folder.study, folder.journal, folder.trainings, folder.recipe)
    return max((file.stat().st_mtime for file in files if file.is_file()), default=0.0)


def _learned(result: SearchResult) -> tuple[Encoding, Surrogate] | None:
    """Return the space as the search saw it, and a surrogate of all its curves; None with too few of them."""
    folder = RunFolder(result.folder)
    trials = [t for t in folder.trials() if t.intermediate_values]
    if len(trials) < ENOUGH:
        return None
    encoding = Encoding(trials[-1].distributions, {})
    known = [trial for trial in trials if encoding.holds(trial)]
    return encoding, Surrogate.fit(*observations(known, encoding, 1.0))


def _bounds(result: SearchResult, encoding: Encoding) -> tuple[list[str], list[str]]:
    """Return what is said of the winner's place in the ranges, and the overrides that follow."""
    assert result.recipe is not None
    reasons, changes = [], []
    for name in (name for name in ("lr_v", "ratio") if name in encoding.space):
        distribution: Any = encoding.space[name]
        low, high = getattr(distribution, "low", None), getattr(distribution, "high", None)
        if low is None or high is None or low >= high:
            continue
        value = float(getattr(result.recipe.candidate, name))
        place = math.log(value / low) / math.log(high / low)
        limit = 10.0 if name == "lr_v" else 1e4
        if place < EDGE:
            new, side = Range(low=low / WIDER, high=value * WIDER), "lower"
        elif place > 1 - EDGE:
            new, side = Range(low=value / WIDER, high=min(limit, high * WIDER)), "upper"
        else:
            continue
        reasons.append(
            f"the best {name}, {value:.3g}, lies at the {side} bound of {low:.3g} to {high:.3g}: look beyond"
        )
        changes.append(f"space.{name}={{low: {new.low:.3g}, high: {new.high:.3g}}}")
    return reasons, changes


def _ranks(result: SearchResult, encoding: Encoding, surrogate: Surrogate) -> tuple[list[int] | None, list[str]]:
    """Return the ranks worth searching, None for all of them, and why."""
    ranks = sorted(result.study.space.rank)
    if len(ranks) < 2:
        return None, []
    assert result.recipe is not None
    points = _points(encoding)
    drawn = surrogate.draw_many(np.array([encoding.encode(point) for point in points]), DRAWS, _rng())
    winners = [points[place]["rank"] for place in drawn.argmin(1)]
    chance = {rank: winners.count(rank) / DRAWS for rank in ranks}
    kept = [rank for rank in ranks if chance[rank] >= UNLIKELY or rank == result.recipe.candidate.rank]
    said = [
        f"rank {rank} is the best with {100 * chance[rank]:.0f}% chance: drop it"
        for rank in ranks
        if rank not in kept
    ]
    return (kept if said else None), said


def _expected_gain(encoding: Encoding, surrogate: Surrogate) -> tuple[float, float]:
    """Return what the best of eight more trials is expected to gain, and the best loss expected so far."""
    points = np.array([encoding.encode(point) for point in _points(encoding)])
    best = surrogate.best_points(1)
    drawn = surrogate.draw_many(np.concatenate([best, points]), DRAWS, _rng())
    chosen = np.argsort(-surrogate.log_expected_improvement(points))[:8]
    gains = np.maximum(0.0, drawn[:, 0] - drawn[:, 1 + chosen].min(1))
    return float(gains.mean()), float(surrogate.predict(best)[0][0])


def _points(encoding: Encoding) -> list[dict[str, Any]]:
    """Return points all over the space, the same whenever asked."""
    rng, found = _rng(), []
    for _ in range(POINTS):
        point: dict[str, Any] = {}
        for name, distribution in encoding.space.items():
            choices: Any = getattr(distribution, "choices", None)
            if choices is not None:
                point[name] = choices[int(rng.integers(len(choices)))]
            else:
                low, high = math.log(distribution.low), math.log(distribution.high)  # type: ignore[attr-defined]
                point[name] = math.exp(rng.uniform(low, high))
        found.append(point)
    return found


def _rng() -> np.random.Generator:
    return np.random.default_rng(0)


def _priors(result: SearchResult, others: Sequence[SearchResult]) -> list[Path]:
    """Return the runs a new search begins from: this one, and those of the same data or model that are finished."""
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
    number = 2
    while (new := folder.with_name(f"{folder.name}-{number}")).exists():
        number += 1
    return new
