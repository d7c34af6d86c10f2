"""What a search returns, in Python or from its folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autolr import display
from autolr.errors import RunError
from autolr.rundir import records
from autolr.rundir.folder import RunFolder
from autolr.rundir.records import CLAIM, Phase, Record, TrialRecord
from autolr.schema.candidate import Candidate
from autolr.schema.recipe import Recipe
from autolr.schema.study import Study

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial


@dataclass(frozen=True)
class SearchResult:
    """A search, finished or under way.

    Attributes:
        folder: where it is kept.
        study: what was searched.
        trials: every trial, in the order of their numbers.
        trainings: every training after the trials, of all stages.
        phases: time and tokens, one visit to a stage each.
        recipe: the result; None until the last stage is through.
    """

    folder: Path
    study: Study
    trials: list[TrialRecord]
    trainings: list[Record]
    phases: list[Phase]
    recipe: Recipe | None

    @classmethod
    def load(cls, folder: str | Path) -> SearchResult:
        """Read a run folder.

        Raises:
            RunError: it is no run folder.
            DocumentError: its study or recipe is damaged.
        """
        run = RunFolder(folder)
        if not run.study.is_file():
            raise RunError(f"{folder}: is not a run folder (it has no study.yaml). Give the --out of a search.")
        study = Study.load(run.study)
        return cls(
            folder=run.path,
            study=study,
            trials=_trials(run, {**study.usual(), **study.fixed()}),
            trainings=records.parsed(run.trainings, Record),
            phases=records.parsed(run.phases, Phase),
            recipe=Recipe.load(run.recipe) if run.recipe.is_file() else None,
        )

    @property
    def ladder(self) -> dict[str, list[Record]]:
        """The trainings with the search's own seed, by stage, the shortest first."""
        own = [one for one in self.trainings if one.seed == self.study.seed and not one.infeasible]
        names = dict.fromkeys(one.stage for one in sorted(own, key=lambda one: one.steps))
        return {name: [one for one in own if one.stage == name] for name in names}

    @property
    def finals(self) -> list[Record]:
        """The trainings of one seed that the winner was chosen by; none where several seeds chose it."""
        return [one for stage in self.ladder.values() for one in stage if one.losses]

    @property
    def over_seeds(self) -> list[Record]:
        """The trainings with seeds of their own, which the verdict rests on."""
        return [one for one in self.trainings if one.seed != self.study.seed and not one.infeasible]

    def _repr_html_(self) -> str:
        """Return the search as a notebook shows it: the verdict, the counts, and who was compared."""
        outcomes = [trial.outcome for trial in self.ended()]
        named: list[records.Outcome] = [name for name in records.ENDED if name != "infeasible" or name in outcomes]
        counts = ", ".join(f"{outcomes.count(name)} {name}" for name in named)
        seconds = sum(phase.seconds for phase in self.phases)
        rows = [
            ("study", f"{self.study.name}: {self.study.model} on {self.study.data.source}"),
            ("trials", f"{len(outcomes)} of {self.study.budget.trials}: {counts}"),
            ("cost", f"{seconds:.0f} device-seconds"),
            ("folder", self.folder),
        ]
        evidence = self.recipe.evidence if self.recipe else None
        if evidence is None:
            return display.table("This search is not finished", rows)
        heads = ["who", "candidate", "validation loss", "test loss", "above the winner (90 %)"]
        compared = [
            (
                score.label,
                score.candidate.describe(),
                f"{display.loss(score.validation_loss)}",
                f"{display.loss(score.test_loss)}",
                f"{display.gap(score.gain.mean)} ({display.gap(score.gain.low)} to {display.gap(score.gain.high)})"
                if score.gain
                else "winner",
            )
            for score in evidence.scores
        ]
        return display.table(evidence.verdict, rows) + display.grid(heads, compared)

    def to_json(self) -> str:
        """Return the search as JSON; of trainings all but the losses of single examples and steps."""
        single = {"losses", "validation_losses", "unseen_losses"}
        content = {
            "folder": str(self.folder),
            "study": self.study.model_dump(mode="json"),
            "trials": [trial.model_dump(mode="json") for trial in self.trials],
            "trainings": [one.model_dump(mode="json", exclude=single) for one in self.trainings],
            "phases": [phase.model_dump(mode="json") for phase in self.phases],
            "recipe": self.recipe.model_dump(mode="json") if self.recipe else None,
        }
        return json.dumps(content, indent=1, ensure_ascii=False)

    def ended(self) -> list[TrialRecord]:
        """Return the trials that count: finished, pruned, diverged, or infeasible on the device."""
        return [trial for trial in self.trials if trial.outcome in records.ENDED]


def _trials(run: RunFolder, others: dict[str, Any]) -> list[TrialRecord]:
    curves = {content.get("number"): content for content in records.lines(run.curves)}
    needed = {name for name, field in Candidate.model_fields.items() if field.is_required()} - set(others)
    trials = [trial for trial in run.trials() if _is_proposed(trial) and needed <= set(trial.params)]
    return [_record(trial, curves.get(trial.number, {}), others) for trial in trials]


def _is_proposed(trial: FrozenTrial) -> bool:
    """Return True if a trial's candidate is known: not while it waits, or is being proposed."""
    return bool(trial.params) and (trial.state.is_finished() or CLAIM in trial.user_attrs)


def _record(trial: FrozenTrial, extra: dict[str, object], others: dict[str, Any]) -> TrialRecord:
    attributes = trial.user_attrs
    outcome = attributes.get("outcome", "interrupted") if trial.state.is_finished() else "running"
    steps = sorted(trial.intermediate_values)
    return TrialRecord.model_validate(
        {
            "curve": extra.get("curve", []),
            "tokens": extra.get("tokens", 0),
            "seconds": extra.get("seconds", 0.0),
            "number": trial.number,
            "candidate": Candidate(**{**others, **trial.params}),
            "baseline": attributes.get("baseline"),
            "outcome": outcome,
            "score": trial.intermediate_values[steps[-1]] if steps and outcome != "diverged" else None,
            "rungs": trial.intermediate_values,
            "metric": attributes.get("metric"),
        }
    )
