"""Who is promoted from stage to stage, who wins, and the evidence that this leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from autolr.progress.jobs import Job
from autolr.rundir import records
from autolr.rundir.records import Phase, Record, TrialRecord
from autolr.rundir.result import SearchResult
from autolr.schema.candidate import Candidate
from autolr.schema.recipe import Cost, Evidence
from autolr.tuner.judge import verdict
from autolr.tuner.propose import baselines
from autolr.tuner.propose.encoding import Encoding
from autolr.tuner.propose.space import SearchSpace
from autolr.tuner.propose.surrogate import Surrogate
from autolr.tuner.stages import Judge, Stage, deciding, jobs, training_id, trial_key
from autolr.tuner.work import Work


@dataclass(frozen=True)
class Selection:
    """What a search's folder says, at one moment, of who wins.

    Attributes:
        work: the search.
        result: as far as it has come.
        tried: candidates of the trials, the best first.
    """

    work: Work
    result: SearchResult
    tried: Sequence[Candidate]

    @classmethod
    def read(cls, work: Work) -> Selection:
        """Return the selection after the trials, from the folder of its search."""
        result = SearchResult.load(work.folder.path)
        tried = best_of(result.trials, len(result.trials), work.space, baselines.default(work.space))
        return cls(work, result, tried)

    def read_again(self) -> Selection:
        """Return the selection with the trainings that are there by now; its trials are over."""
        folder = self.work.folder
        trainings, phases = records.parsed(folder.trainings, Record), records.parsed(folder.phases, Phase)
        return replace(self, result=replace(self.result, trainings=trainings, phases=phases))

    def promoted(self, stage: Stage) -> list[Candidate]:
        """Return who is promoted into a stage, the best first."""
        ranked = self.ranking(self._before(stage))
        if stage.judged_on is Judge.HELD_OUT:  # a stage on the way: trials that were pruned hardly have a chance
            finished = {trial.candidate for trial in self.result.trials if trial.outcome == "finished"}
            ranked = [one for one in ranked if one in finished]
        return ranked[: stage.promote]

    def entrants(self, stage: Stage, winner: Candidate | None = None) -> dict[Candidate, str]:
        """Return who trains in a stage, under their labels: the promoted, and the stage's baselines.

        Nobody trains if no trial has a score, or if the next stage would promote all of them anyway.

        Args:
            stage: after the trials.
            winner: joins the baselines that depend on it.
        """
        best = self.promoted(stage)
        if not best or (stage.judged_on is Judge.HELD_OUT and len(best) <= self._after(stage).promote):
            return {}
        word = "promoted" if stage.judged_on is Judge.HELD_OUT else "finalist"
        labels = {candidate: [f"{word} {place}"] for place, candidate in enumerate(best, 1)}
        for baseline in stage.baselines:
            candidate = baseline.candidate(self.work.space, winner)
            if candidate is not None:
                labels.setdefault(candidate, []).append(baseline.value)
        return {candidate: " + ".join(names) for candidate, names in labels.items() if candidate not in self._unfit}

    def records(self, stage: Stage, winner: Candidate | None = None) -> list[Record]:
        """Return the trainings of a stage that are there, of those who belong in it, under their labels."""
        labels, seeds = self.entrants(stage, winner), stage.seeds_of(self.work.study.seed)
        ids = {training_id(candidate, seed, stage.steps) for candidate in labels for seed in seeds}
        found = [one for one in self.result.trainings if one.id in ids and not one.infeasible]
        return [one.model_copy(update={"label": labels[one.candidate]}) for one in found]

    def missing(self, stage: Stage) -> list[Job]:
        """Return the trainings of a stage that are still to be done."""
        return self._missing(stage, self.entrants(stage, self.winner))

    def ranking(self, stage: Stage) -> list[Candidate]:
        """Return the candidates that the stage may promote, the best first: its baselines compete, but are not."""
        if stage is self.work.stages[0]:
            return list(self.tried)
        promoted = self.promoted(stage)
        own = [record for record in self.records(stage) if record.candidate in promoted]
        if not own:
            return self.ranking(self._before(stage))
        loss = verdict.judged_by(own)
        ranked = [one.candidate for one in sorted(own, key=lambda one: (one.diverged, loss(one)))]
        if stage.judged_on is Judge.HELD_OUT:
            return ranked
        return list(dict.fromkeys([verdict.choose(own, {one.targets for one in ranked}), *ranked]))

    @cached_property
    def winner(self) -> Candidate | None:
        """The best finalist or the default, whichever is better, or the best of several seeds; None before that."""
        stage = deciding(self.work.stages)
        entrants = self.entrants(stage)
        if not entrants or self._missing(stage, entrants):
            return None
        through = self.records(stage)
        if stage.seeds > 1:
            return verdict.choose(through, self.work.study.space.targets)
        best = {self.ranking(stage)[0], baselines.default(self.work.space)}
        contending = [record for record in through if record.candidate in best]
        loss = verdict.judged_by(contending)
        return min(contending, key=lambda record: (record.diverged, loss(record))).candidate

    @property
    def finals(self) -> list[Record]:
        """The trainings of one seed that chose the winner; none where several seeds did."""
        stage = deciding(self.work.stages)
        return self.records(stage) if stage.seeds == 1 else []

    @property
    def over_seeds(self) -> list[Record]:
        """The trainings with several seeds."""
        return self.records(self.work.stages[-1], self.winner)

    def evidence(self, full_runs: float, more: str = "") -> Evidence:
        """Return the recipe's evidence, once all stages are through.

        Args:
            full_runs: what was trained, in full runs.
            more: to be said after the verdict.
        """
        outcomes = [trial.outcome for trial in self.result.ended()]
        names = ["finished", "pruned", "diverged", *(["infeasible"] if "infeasible" in outcomes else [])]
        phases, winner = self.result.phases, self.winner
        assert winner is not None
        scores = verdict.scores(self.over_seeds, winner)
        ends = verdict.at_the_end(self.finals, winner, self.work.stages[-1].steps, self.work.space.steps)
        return Evidence(
            verdict=verdict.sentence(scores) + ends + more,
            trials={"total": len(outcomes), **{name: outcomes.count(name) for name in names}},  # type: ignore[arg-type]
            seeds=self.work.study.search.seeds,
            finals=verdict.final_scores(self.finals),
            scores=scores,
            cost=Cost(
                device_seconds=round(sum(phase.seconds for phase in phases), 1),
                trained_tokens=sum(phase.trained_tokens for phase in phases),
                evaluated_tokens=sum(phase.evaluated_tokens for phase in phases),
                full_run_equivalents=round(full_runs, 2),
            ),
        )

    @cached_property
    def _unfit(self) -> set[Candidate]:
        """The candidates that did not fit the device's memory."""
        trials = {trial.candidate for trial in self.result.trials if trial.outcome == "infeasible"}
        return trials | {record.candidate for record in self.result.trainings if record.infeasible}

    def _missing(self, stage: Stage, entrants: dict[Candidate, str]) -> list[Job]:
        done = {record.id for record in self.result.trainings}
        furthest_last = sorted(self.result.trials, key=lambda trial: max(trial.rungs, default=0))
        tried = {trial.candidate: trial_key(trial.number) for trial in furthest_last}
        return jobs(self.work.stages, stage, entrants, self.work.space, self.work.study.seed, done, tried)

    def _before(self, stage: Stage) -> Stage:
        return self.work.stages[self.work.stages.index(stage) - 1]

    def _after(self, stage: Stage) -> Stage:
        return self.work.stages[self.work.stages.index(stage) + 1]


def best_of(
    trials: Sequence[TrialRecord], count: int, space: SearchSpace, apart: Candidate | None = None
) -> list[Candidate]:
    """Return the best candidates of the trials, best first; a baseline outside the space is none of them.

    Nor is the one `apart`, which is compared with them in any case, unless it is all there is.

    Finished trials come before pruned ones, and those pruned late before those pruned early. Among equals it is not
    the lowest score that counts, which is half luck, but what the surrogate of all curves lets expect. That holds for
    the full run too: from a quarter on the best rate hardly moves (studies/research/oracle/optimum_drift.py).
    """
    usable = [t for t in trials if t.score is not None and t.outcome in ("finished", "pruned")]
    usable = [t for t in usable if space.holds(t.candidate)]
    ranked = sorted(usable, key=lambda t: (-max(t.rungs), t.score, t.number))
    ranked = [t for t in ranked if t.candidate != apart] or ranked
    encoding = Encoding(space.distributions)
    surrogate = Surrogate.from_curves(encoding, [(t.candidate.model_dump(), t.rungs) for t in usable])
    if surrogate is not None:
        alike = [t for t in ranked if max(t.rungs) == max(ranked[0].rungs)]
        places = surrogate.ranked(np.array([encoding.encode(t.candidate.model_dump()) for t in alike]))
        ranked = [*(alike[place] for place in places), *ranked[len(alike) :]]
    return list(dict.fromkeys(trial.candidate for trial in ranked))[:count]
