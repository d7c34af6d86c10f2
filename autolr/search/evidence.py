"""What a search's folder says for its recipe: who was confirmed, who won, and what it cost."""

from __future__ import annotations

from dataclasses import dataclass

from autolr.candidate import Candidate
from autolr.recipe import Cost, Evidence, Score
from autolr.search import verdict
from autolr.search.confirm import finalists, line_up
from autolr.search.records import RepeatRecord
from autolr.search.result import SearchResult
from autolr.search.space import SearchSpace
from autolr.study import Study


@dataclass(frozen=True)
class Confirmed:
    """A confirmation that is through.

    Attributes:
        repeats: of all who belong in it, under their labels.
        winner: by *select*.
        scores: by *confirm*, with their distances to the winner.
    """

    repeats: list[RepeatRecord]
    winner: Candidate
    scores: list[Score]


def contenders(result: SearchResult, study: Study, space: SearchSpace) -> dict[Candidate, str]:
    """Return who is confirmed first, and under which label: finalists and rules; nobody where none has a score."""
    best = finalists(result.trials, study.search.finalists, space)
    return line_up(study, space, best, unfit=unfit(result)) if best else {}


def everyone(result: SearchResult, study: Study, space: SearchSpace) -> dict[Candidate, str]:
    """Return everyone who belongs in the confirmation, once all but the winner's own rule are through."""
    first = contenders(result, study, space)
    repeats = [record for record in result.repeats if record.candidate in first]
    winner = verdict.choose(repeats, study.space.targets)
    best = finalists(result.trials, study.search.finalists, space)
    return line_up(study, space, best, winner, unfit(result))


def unfit(result: SearchResult) -> set[Candidate]:
    """Return the candidates that did not fit the device's memory."""
    return {trial.candidate for trial in result.trials if trial.outcome == "infeasible"}


def confirmed(result: SearchResult, study: Study, space: SearchSpace) -> Confirmed:
    """Return what a confirmation that is through has found."""
    labels = everyone(result, study, space)
    repeats = [r.model_copy(update={"label": labels[r.candidate]}) for r in result.repeats if r.candidate in labels]
    winner = verdict.choose(repeats, study.space.targets)
    return Confirmed(repeats, winner, verdict.scores(repeats, winner))


def evidence(result: SearchResult, study: Study, found: Confirmed, full_runs: float, more: str = "") -> Evidence:
    """Return what stands in the recipe.

    Args:
        result: of the search.
        study: that was searched.
        found: by the confirmation.
        full_runs: what was trained, in full runs.
        more: to be said after the verdict.
    """
    outcomes = [trial.outcome for trial in result.ended()]
    names = ["finished", "pruned", "diverged", *(["infeasible"] if "infeasible" in outcomes else [])]
    return Evidence(
        verdict=verdict.sentence(found.scores) + more,
        trials={"total": len(outcomes), **{name: outcomes.count(name) for name in names}},  # type: ignore[arg-type]
        repeats=study.search.repeats,
        scores=found.scores,
        cost=Cost(
            device_seconds=round(sum(phase.seconds for phase in result.phases), 1),
            trained_tokens=sum(phase.trained_tokens for phase in result.phases),
            evaluated_tokens=sum(phase.evaluated_tokens for phase in result.phases),
            full_run_equivalents=round(full_runs, 2),
        ),
    )
