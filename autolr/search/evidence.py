"""What a search's folder says for its recipe: who is in the finals, who won and is confirmed, and what it cost."""

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
        finals: trainings to the end of the full run, which chose the winner; nothing where there were none.
    """

    repeats: list[RepeatRecord]
    winner: Candidate
    scores: list[Score]
    finals: list[RepeatRecord]


def contenders(result: SearchResult, study: Study, space: SearchSpace) -> dict[Candidate, str]:
    """Return finalists and rules, under their labels; nobody where no trial has a score."""
    best = finalists(result.trials, study.search.finalists, space)
    return line_up(study, space, best, unfit=unfit(result)) if best else {}


def in_the_finals(result: SearchResult, study: Study, space: SearchSpace) -> dict[Candidate, str]:
    """Return who is trained to the end of the full run: the finalists and the rule of thumb, under their labels."""
    return {
        c: label for c, label in contenders(result, study, space).items() if _is_finalist(label) or _is_rule(label)
    }


def everyone(result: SearchResult, study: Study, space: SearchSpace) -> dict[Candidate, str]:
    """Return everyone who belongs in the confirmation, once it is known who won.

    After finals these are the best finalist and the rules; without, all finalists and the rules.
    """
    best = finalists(result.trials, study.search.finalists, space)
    finals = _finals(result, study, space)
    if finals:
        best = [_best_finalist(finals)]
    return line_up(study, space, best, _winner(result, study, space), unfit(result))


def unfit(result: SearchResult) -> set[Candidate]:
    """Return the candidates that did not fit the device's memory."""
    return {trial.candidate for trial in result.trials if trial.outcome == "infeasible"}


def confirmed(result: SearchResult, study: Study, space: SearchSpace) -> Confirmed:
    """Return what a confirmation that is through has found."""
    labels = everyone(result, study, space)
    repeats = [r.model_copy(update={"label": labels[r.candidate]}) for r in result.repeats if r.candidate in labels]
    winner = _winner(result, study, space)
    return Confirmed(repeats, winner, verdict.scores(repeats, winner), _finals(result, study, space))


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
        finals=verdict.final_scores(found.finals),
        scores=found.scores,
        cost=Cost(
            device_seconds=round(sum(phase.seconds for phase in result.phases), 1),
            trained_tokens=sum(phase.trained_tokens for phase in result.phases),
            evaluated_tokens=sum(phase.evaluated_tokens for phase in result.phases),
            full_run_equivalents=round(full_runs, 2),
        ),
    )


def _winner(result: SearchResult, study: Study, space: SearchSpace) -> Candidate:
    """Return who won: in the finals the best finalist or the rule; without, the best of all who were confirmed."""
    finals = _finals(result, study, space)
    if not finals:
        first = contenders(result, study, space)
        return verdict.choose([record for record in result.repeats if record.candidate in first], study.space.targets)
    best = _best_finalist(finals)
    return min((r for r in finals if r.candidate == best or _is_rule(r.label)), key=lambda r: r.select_loss).candidate


def _best_finalist(finals: list[RepeatRecord]) -> Candidate:
    own = [record for record in finals if _is_finalist(record.label)]
    return verdict.choose(own, {record.candidate.targets for record in own})


def _finals(result: SearchResult, study: Study, space: SearchSpace) -> list[RepeatRecord]:
    """Return the finals that are through of those who belong in them now, under their labels."""
    labels = in_the_finals(result, study, space)
    return [r.model_copy(update={"label": labels[r.candidate]}) for r in result.finals if r.candidate in labels]


def _is_finalist(label: str) -> bool:
    return label.startswith("finalist")


def _is_rule(label: str) -> bool:
    return "rule" in label.split(" + ")
