"""What a search writes down for each trial, and for each training after the trials."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from pydantic import Field, ValidationError

from autolr.divergence import is_number
from autolr.schema.candidate import Candidate
from autolr.schema.yaml_io import Document

D = TypeVar("D", bound=Document)

# Those that count are `ENDED`; `infeasible` ones did not fit the device's memory.
Outcome = Literal["finished", "pruned", "diverged", "infeasible", "interrupted", "running"]
ENDED: tuple[Outcome, ...] = ("finished", "pruned", "diverged", "infeasible")


# Attribute of a trial in Optuna's storage: the worker that has it, and its clock when it took it. One without is just
# being proposed.
CLAIM = "claim"
# The stages that every search has: its first, and its last.
TRIALS, SEEDS = "trials", "seeds"


class Phase(Document):
    """A visit to a stage of the search: what it took."""

    phase: str
    seconds: float
    trained_tokens: int = 0
    evaluated_tokens: int = 0


class TrialRecord(Document):
    """One trial of the search.

    Attributes:
        number: Optuna's number of the trial.
        baseline: the one the candidate comes from, if any.
        outcome: how it ended.
        score: its validation loss, the last one measured; None where it never reached a rung.
        rungs: validation loss at each rung it reached, of the averaged weights.
        metric: the study's metric on *validation*, measured with the score.
        curve: training loss of each optimizer step.
        tokens: trained tokens, padding not counted.
        seconds: its share of the device's time.
    """

    number: int
    candidate: Candidate
    baseline: str | None = None
    outcome: Outcome
    score: float | None = None
    rungs: dict[int, float] = {}
    metric: float | None = None
    curve: list[float] = []
    tokens: int = 0
    seconds: float = 0.0


class Record(Document):
    """One training after the trials, of whatever stage.

    Trials are not among them: their candidate, rungs and outcome lie in Optuna's storage, which decides what is tried
    next, and `TrialRecord` adds only what that has no room for.

    Attributes:
        stage: its name; the same training is never recorded twice, whatever the stage.
        id: `stages.training_id`, which also names its checkpoint.
        label: `finalist 1`, ..., or the baseline's name; several where a candidate is both.
        steps: where it ended.
        infeasible: the candidate did not fit the device's memory; then there are no losses.
        validation_loss: mean over *validation*, of the averaged weights.
        test_loss: mean over *test*; None in a stage that does not look at it.
        losses: loss of each example of *test*, in the split's order.
        validation_losses: of each example of *validation*; of one seed they tell who is as good as the best.
        unseen_losses: of what else the training had not learned from: examples of *train*, or the last steps of a
            full run before it learned them.
        unseen_examples: of all these.
        curve: training loss of each step, those that it resumed too.
        tokens: trained tokens, padding not counted; those of what it resumed are not its own.
        seconds: its share of the device's time.
    """

    stage: str = ""
    id: str = ""
    label: str
    candidate: Candidate
    seed: int
    steps: int = 0
    diverged: bool = False
    infeasible: bool = False
    validation_loss: float = 0.0
    validation_metric: float = 0.0
    test_loss: float | None = None
    test_metric: float | None = None
    losses: list[float] = Field([], repr=False)
    validation_losses: list[float] = Field([], repr=False)
    unseen_losses: list[float] = Field([], repr=False)
    unseen_examples: int = 0
    curve: list[float] = Field([], repr=False)
    tokens: int = 0
    seconds: float = 0.0

    @property
    def held_out_loss(self) -> float:
        """Mean loss of the examples it had not learned from: those of *validation*, and others."""
        if not self.unseen_losses:
            return self.validation_loss
        validation, unseen = len(self.validation_losses), self.unseen_examples
        mean = sum(self.unseen_losses) / len(self.unseen_losses)
        return (validation * self.validation_loss + unseen * mean) / (validation + unseen)

    @property
    def held_out_examples(self) -> int:
        """How many examples these are."""
        return len(self.validation_losses) + self.unseen_examples

    @property
    def tested(self) -> float:
        """Mean loss over *test*, in a stage that looks at it."""
        assert self.test_loss is not None
        return self.test_loss


def curve(losses: Sequence[float]) -> list[float]:
    """Return losses of single steps as they are kept: those that are numbers, rounded."""
    return [float(f"{loss:.5g}") for loss in losses if is_number(loss)]


def by_candidate(trainings: Sequence[Record]) -> dict[Candidate, list[Record]]:
    """Return the trainings of each candidate, in the order of their seeds."""
    groups: dict[Candidate, list[Record]] = {}
    for record in sorted(trainings, key=lambda record: record.seed):
        groups.setdefault(record.candidate, []).append(record)
    return groups


def losses_of(group: Sequence[Record]) -> np.ndarray:
    """Return the losses of trainings on *test*, [trainings, examples]."""
    return np.array([record.losses for record in group])


def append(path: Path, record: Document) -> None:
    """Add a record to a file of JSON lines and see it to the disk.

    A line left incomplete by a crash or a full disk is ended first, so it cannot spoil this one.
    """
    line = record.model_dump_json() + "\n"
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                line = "\n" + line
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def lines(path: Path) -> Iterator[dict[str, object]]:
    """Yield the complete records of a file of JSON lines; an incomplete line is passed over."""
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            content = json.loads(line)
        except ValueError:
            continue
        if isinstance(content, dict):
            yield content


def parsed(path: Path, kind: type[D]) -> list[D]:
    """Return the records of one kind in a file of JSON lines; one cut off in a crash is passed over."""
    found = []
    for content in lines(path):
        try:
            found.append(kind.model_validate(content))
        except ValidationError:
            continue
    return found
