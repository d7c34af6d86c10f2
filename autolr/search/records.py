"""What a search writes down for each trial and each repeat of the confirmation."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import Field, ValidationError

from autolr.candidate import Candidate
from autolr.documents import Document

D = TypeVar("D", bound=Document)

# Those that count are `ENDED`; `infeasible` ones did not fit the device's memory.
Outcome = Literal["finished", "pruned", "diverged", "infeasible", "interrupted", "running"]
ENDED: tuple[Outcome, ...] = ("finished", "pruned", "diverged", "infeasible")


class TrialRecord(Document):
    """One trial of the search.

    Attributes:
        number: Optuna's number of the trial.
        rule: name of the rule of thumb the candidate comes from, if any.
        outcome: how it ended.
        score: its select loss, the last one measured; None where it never reached a rung.
        rungs: select loss at each rung it reached, of the averaged weights.
        metric: the study's metric on *select*, measured with the score.
        curve: training loss of each optimizer step.
        tokens: trained tokens, padding not counted.
        seconds: its share of the device's time.
    """

    number: int
    candidate: Candidate
    rule: str | None = None
    outcome: Outcome
    score: float | None = None
    rungs: dict[int, float] = {}
    metric: float | None = None
    curve: list[float] = []
    tokens: int = 0
    seconds: float = 0.0


class SemifinalRecord(Document):
    """A candidate of the search trained to half of the full run.

    Attributes:
        label: `semifinalist 1`, ..., the best of the trials first.
        loss: mean over the examples of `held_out.judges`, of the averaged weights.
        examples: how many these are.
        curve: training loss of each step, those of the trial that it went on with too.
        tokens: trained tokens, padding not counted; those of the trial that it went on with are the trial's.
    """

    label: str
    candidate: Candidate
    seed: int
    diverged: bool = False
    loss: float
    examples: int
    curve: list[float] = Field([], repr=False)
    tokens: int = 0
    seconds: float = 0.0


class RepeatRecord(Document):
    """One candidate trained once more: in the finals to its end, in the confirmation with a seed of its own.

    Attributes:
        label: `finalist 1`, ..., or the rule's name; several where a candidate is both.
        curve: training loss of each step, in the finals those of the trial that it went on with too.
        tokens: trained tokens, padding not counted; those of the trial that it went on with are the trial's.
        losses: loss of each example of *confirm*, in the split's order.
        select_losses: of each example of *select*; in the finals, of one seed, they tell who is as good as the best.
        unseen_losses: training losses of the last steps of a full run, of examples it had not learned from.
        unseen_examples: of all these steps.
    """

    label: str
    candidate: Candidate
    seed: int
    diverged: bool = False
    select_loss: float
    select_metric: float
    confirm_loss: float
    confirm_metric: float
    losses: list[float] = Field(repr=False)
    select_losses: list[float] = Field([], repr=False)
    unseen_losses: list[float] = Field([], repr=False)
    unseen_examples: int = 0
    curve: list[float] = Field([], repr=False)
    tokens: int = 0
    seconds: float = 0.0

    @property
    def held_out_loss(self) -> float:
        """Mean loss of the examples it had not learned from: those of *select*, and of its last steps."""
        if not self.unseen_losses:
            return self.select_loss
        select, unseen = len(self.select_losses), self.unseen_examples
        mean = sum(self.unseen_losses) / len(self.unseen_losses)
        return (select * self.select_loss + unseen * mean) / (select + unseen)


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
