"""Who contends for a search's recipe: finalists and rules, the finals, the winner, and the evidence it leaves."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from autolr.candidate import Candidate
from autolr.recipe import Cost, Evidence, Score
from autolr.search import verdict
from autolr.search.confirm import best_of, line_up
from autolr.search.records import RepeatRecord
from autolr.search.result import SearchResult
from autolr.search.space import SearchSpace
from autolr.study import Study


@dataclass(frozen=True)
class Contest:
    """What a search's folder says, at one moment, of who wins; everything is worked out once.

    Attributes:
        result: of the search, as far as it has come.
        study: that is searched.
        space: gives the rules their candidates.
    """

    result: SearchResult
    study: Study
    space: SearchSpace

    @cached_property
    def semifinalists(self) -> list[Candidate]:
        """The best candidates of the trials, best first, of those that finished: others have hardly a chance."""
        trials = self.result.trials
        finished = {trial.candidate for trial in trials if trial.outcome == "finished"}
        best = best_of(trials, len(trials), self.space, self._rule)
        return [one for one in best if one in finished][: self.study.search.semifinalists]

    @cached_property
    def finalists(self) -> list[Candidate]:
        """The best of the semifinals, best first; without them, of the trials; nobody where no trial has a score."""
        count = self.study.search.finalists
        through = [record for record in self.result.semifinals if record.candidate in self.semifinalists]
        if not through:
            return best_of(self.result.trials, count, self.space, self._rule)
        ranked = sorted(through, key=lambda record: (record.diverged, record.loss))
        return [record.candidate for record in ranked[:count]]

    @cached_property
    def contenders(self) -> dict[Candidate, str]:
        """Finalists and rules, under their labels; nobody where no trial has a score."""
        return line_up(self.study, self.space, self.finalists, unfit=self._unfit) if self.finalists else {}

    @property
    def in_the_finals(self) -> dict[Candidate, str]:
        """Those trained to the end of the full run: the finalists and the rule of thumb, under their labels."""
        return {c: label for c, label in self.contenders.items() if c in self.finalists or c == self._rule}

    @cached_property
    def finals(self) -> list[RepeatRecord]:
        """The finals that are through of those who belong in them, under their labels."""
        return _under(self.in_the_finals, self.result.finals)

    @cached_property
    def winner(self) -> Candidate:
        """In the finals the best finalist or the rule of thumb; without, the best of all who were confirmed."""
        if not self.finals:
            return verdict.choose(_under(self.contenders, self.result.repeats), self.study.space.targets)
        best = {self._best_finalist, self._rule}
        contending = [record for record in self.finals if record.candidate in best]
        loss = verdict.judged_by(contending)
        return min(contending, key=lambda record: (record.diverged, loss(record))).candidate

    @cached_property
    def confirmed(self) -> dict[Candidate, str]:
        """Everyone who belongs in the confirmation, once it is known who won, under their labels.

        After finals these are the best finalist and the rules; without, all finalists and the rules.
        """
        best = [self._best_finalist] if self.finals else self.finalists
        return line_up(self.study, self.space, best, self.winner, self._unfit)

    @cached_property
    def repeats(self) -> list[RepeatRecord]:
        """The repeats of everyone who belongs in the confirmation, under their labels."""
        return _under(self.confirmed, self.result.repeats)

    @cached_property
    def scores(self) -> list[Score]:
        """By *confirm*, with their distances to the winner."""
        return verdict.scores(self.repeats, self.winner)

    def evidence(self, full_runs: float, more: str = "") -> Evidence:
        """Return what stands in the recipe, once the confirmation is through.

        Args:
            full_runs: what was trained, in full runs.
            more: to be said after the verdict.
        """
        outcomes = [trial.outcome for trial in self.result.ended()]
        names = ["finished", "pruned", "diverged", *(["infeasible"] if "infeasible" in outcomes else [])]
        phases = self.result.phases
        return Evidence(
            verdict=verdict.sentence(self.scores) + more,
            trials={"total": len(outcomes), **{name: outcomes.count(name) for name in names}},  # type: ignore[arg-type]
            repeats=self.study.search.repeats,
            finals=verdict.final_scores(self.finals),
            scores=self.scores,
            cost=Cost(
                device_seconds=round(sum(phase.seconds for phase in phases), 1),
                trained_tokens=sum(phase.trained_tokens for phase in phases),
                evaluated_tokens=sum(phase.evaluated_tokens for phase in phases),
                full_run_equivalents=round(full_runs, 2),
            ),
        )

    @property
    def _rule(self) -> Candidate | None:
        """The rule of thumb, where it is in the comparison."""
        return self.space.rule("rule") if "rule" in self.study.baselines else None

    @property
    def _unfit(self) -> set[Candidate]:
        """The candidates that did not fit the device's memory."""
        return {trial.candidate for trial in self.result.trials if trial.outcome == "infeasible"}

    @property
    def _best_finalist(self) -> Candidate:
        own = [record for record in self.finals if record.candidate in self.finalists]
        return verdict.choose(own, {record.candidate.targets for record in own})


def _under(labels: dict[Candidate, str], records: list[RepeatRecord]) -> list[RepeatRecord]:
    """Return the records of these candidates, under their labels."""
    return [r.model_copy(update={"label": labels[r.candidate]}) for r in records if r.candidate in labels]
