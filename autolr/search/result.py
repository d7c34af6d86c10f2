"""What a search returns, in Python or from its folder."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autolr import display
from autolr.candidate import Candidate
from autolr.documents import Document
from autolr.errors import RunError
from autolr.recipe import Recipe
from autolr.search import records
from autolr.search.claims import CLAIM
from autolr.search.folder import RunFolder
from autolr.search.records import RepeatRecord, SemifinalRecord, TrialRecord
from autolr.study import Study

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial


class Phase(Document):
    """A visit to a phase of the search: what it took."""

    phase: str
    seconds: float
    trained_tokens: int = 0
    evaluated_tokens: int = 0


@dataclass(frozen=True)
class SearchResult:
    """A search, finished or under way.

    Attributes:
        folder: where it is kept.
        study: what was searched.
        trials: every trial, in the order of their numbers.
        repeats: every training of the confirmation.
        phases: time and tokens, phase by phase.
        recipe: the result; None until the confirmation is through.
        finals: finalists and the rule of thumb, trained to the end of the full run.
        semifinals: the best of the trials, trained to half of the full run.
    """

    folder: Path
    study: Study
    trials: list[TrialRecord]
    repeats: list[RepeatRecord]
    phases: list[Phase]
    recipe: Recipe | None
    finals: list[RepeatRecord] = field(default_factory=list)
    semifinals: list[SemifinalRecord] = field(default_factory=list)

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
            repeats=records.parsed(run.confirm, RepeatRecord),
            phases=records.parsed(run.phases, Phase),
            recipe=Recipe.load(run.recipe) if run.recipe.is_file() else None,
            finals=records.parsed(run.finals, RepeatRecord),
            semifinals=records.parsed(run.semifinals, SemifinalRecord),
        )

    def _repr_html_(self) -> str:
        """Return the search as a notebook shows it: the verdict, the counts, and who was confirmed."""
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
        heads = ["who", "candidate", "select loss", "confirm loss", "above the winner (90 %)"]
        confirmed = [
            (
                score.label,
                score.candidate.describe(),
                f"{display.loss(score.select_loss)}",
                f"{display.loss(score.confirm_loss)}",
                f"{display.gap(score.gain.mean)} ({display.gap(score.gain.low)} to {display.gap(score.gain.high)})"
                if score.gain
                else "winner",
            )
            for score in evidence.scores
        ]
        return display.table(evidence.verdict, rows) + display.grid(heads, confirmed)

    def to_json(self) -> str:
        """Return the search as JSON; of finals and repeats all but the losses of single examples and steps."""
        single = {"losses", "select_losses", "unseen_losses"}
        content = {
            "folder": str(self.folder),
            "study": self.study.model_dump(mode="json"),
            "trials": [trial.model_dump(mode="json") for trial in self.trials],
            "semifinals": [one.model_dump(mode="json") for one in self.semifinals],
            "finals": [final.model_dump(mode="json", exclude=single) for final in self.finals],
            "repeats": [repeat.model_dump(mode="json", exclude=single) for repeat in self.repeats],
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
    """Tell whether a trial's candidate is known: not while it waits, or is being proposed."""
    return bool(trial.params) and (trial.state.is_finished() or CLAIM in trial.user_attrs)


def _record(trial: FrozenTrial, extra: dict[str, object], others: dict[str, Any]) -> TrialRecord:
    attributes = trial.user_attrs
    others = {**others, "targets": "qkv"} if attributes.get("rule") == "qkv" else others
    outcome = attributes.get("outcome", "interrupted") if trial.state.is_finished() else "running"
    steps = sorted(trial.intermediate_values)
    return TrialRecord.model_validate(
        {
            "curve": extra.get("curve", []),
            "tokens": extra.get("tokens", 0),
            "seconds": extra.get("seconds", 0.0),
            "number": trial.number,
            "candidate": Candidate(**{**others, **trial.params}),
            "rule": attributes.get("rule"),
            "outcome": outcome,
            "score": trial.intermediate_values[steps[-1]] if steps and outcome != "diverged" else None,
            "rungs": trial.intermediate_values,
            "metric": attributes.get("metric"),
        }
    )
