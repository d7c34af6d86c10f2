"""Trains a search's jobs by a function of the user's, one after another, for the engine that also drives packs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from autolr.divergence import diverged, first_without_number, is_number
from autolr.errors import RunError
from autolr.external.handle import Report, Steps, judged
from autolr.progress.callbacks import Callback
from autolr.progress.jobs import Job, Running
from autolr.rundir import records
from autolr.rundir.folder import RunFolder
from autolr.rundir.records import Record, TrialRecord
from autolr.schema.candidate import Candidate
from autolr.tuner.engine import Room
from autolr.tuner.execute.loop import CheckpointStore, Source
from autolr.tuner.execute.scoring import Score
from autolr.tuner.stages import Judge, Stage
from autolr.tuner.work import Work

# Trains a candidate; returns losses of examples that no choice has seen, one mean of them, or None.
TrainFunction = Callable[[Candidate, Report], float | Sequence[float] | None]


@dataclass(frozen=True)
class FunctionDriver:
    """Trains jobs by a function; it begins each anew, since nobody but the function knows how to resume it."""

    function: TrainFunction

    @contextmanager
    def room(self, work: Work, stage: Stage, count: int) -> Iterator[Room]:
        """Return where the trainings of a stage happen."""
        ends = Returned(work.folder, is_tested=stage.judged_on is Judge.SPLITS)
        yield Room(Reported(), ends, _OneByOne(self.function, ends).drive)


@dataclass(frozen=True)
class _OneByOne:
    """Calls the function for one job after another."""

    function: TrainFunction
    ends: Returned

    def drive(self, source: Source, callback: Callback) -> None:
        """Train a source's jobs until there are none; first those that were under way when it was interrupted."""
        for _, job in source.resumed(CheckpointStore()):
            if job is not None:
                self._train(job, source, callback)
        while (job := source.next()) is not None:
            self._train(job, source, callback)

    def _train(self, job: Job, source: Source, callback: Callback) -> None:
        slot = Steps(job.config)
        running = Running(job, slot)  # type: ignore[arg-type]
        rungs = list(source.rungs)
        callback.stepped([running], 1)

        def reached(loss: float) -> None:
            running.score = loss if is_number(loss) else running.score
            callback.stepped([running], 1)
            if diverged(slot.losses):
                running.outcome = "diverged"
            at = slot.step
            while running.outcome is None and rungs and at >= rungs[0]:
                slot.step = rungs.pop(0)  # the first report from a rung on is the rung's
                source.reached([running])
            slot.step = at
            if running.outcome is not None:
                report.stop()

        report = Report(slot, reached, is_tested=self.ends.is_tested)
        start = time.perf_counter()
        try:
            returned = self.function(job.candidate, report)
        finally:
            running.seconds = round(time.perf_counter() - start, 3)
        if running.outcome is None:
            if not slot.done:
                raise _too_short(slot)
            self.ends.returned[running] = returned
            source.reached([running])
        if source.ended(running):
            callback.ended(running)


class Reported:
    """Scores trials by the loss that they reported last."""

    evaluated_tokens = 0

    def score(self, group: Sequence[Running]) -> list[Score]:
        """Return the score of each trial."""
        return [Score(one.slot.losses[-1]) for one in group]


class Returned:
    """Scores trainings by what the function returned, and by the loss that they reported last.

    Args:
        folder: holds the records of the others, which must be of as many examples.
        is_tested: whether what the function returns counts in this stage.
    """

    evaluated_tokens = 0

    def __init__(self, folder: RunFolder, *, is_tested: bool) -> None:
        self.folder = folder
        self.is_tested = is_tested
        self.returned: dict[Running, Any] = {}

    def score(self, running: Sequence[Running]) -> list[bool]:
        """Return that all losses are finite: the function must not return others."""
        return [True for _ in running]

    def record(self, one: Running) -> dict[str, Any]:
        """Return what the record of a training says of its losses.

        Raises:
            RunError: the function returned more or fewer losses than before, or one is no number.
        """
        is_lost = one.outcome == "diverged"
        validation = self._worst(one) if is_lost else one.slot.losses[-1]
        found: dict[str, Any] = {"validation_loss": validation, "validation_metric": validation}
        returned = self.returned.pop(one, None)
        if not self.is_tested:
            return found
        losses = [validation] * (self._examples() or 1) if is_lost else judged(returned, validation)
        if not is_lost:
            self._check(one.job, losses)
        mean = sum(losses) / len(losses)
        return {**found, "test_loss": mean, "test_metric": mean, "losses": losses}

    def _examples(self) -> int | None:
        """Return how many losses the other trainings have returned."""
        done = records.parsed(self.folder.trainings, Record)
        return next((len(record.losses) for record in done if record.losses and not record.diverged), None)

    def _worst(self, one: Running) -> float:
        """Return the highest loss that was ever reported: it stands for that of a training that diverged."""
        curves = [trial.curve for trial in records.parsed(self.folder.curves, TrialRecord)]
        curves += [record.curve for record in records.parsed(self.folder.trainings, Record)]
        curves.append([loss for loss in one.slot.losses if is_number(loss)])
        return max(loss for curve in curves for loss in curve)

    def _check(self, job: Job, losses: list[float]) -> None:
        known, count = self._examples(), len(losses)
        if known not in (None, count):
            raise RunError(
                f"the training function returned {count} losses, and {known} before; it must judge every training on "
                "the same examples"
            )
        place = first_without_number(losses)
        if place is not None:
            what = f"example {place} of {count} (counted from 0)" if count > 1 else "the mean"
            raise RunError(
                f"{job.label} ({job.candidate.describe()}, seed {job.config.seed}): the training function returned "
                f"{losses[place]} as the loss of {what}, though the losses it reported are finite. Leave out "
                "examples without anything to predict; if the training has diverged, report that: report(step, nan)"
            )


def _too_short(slot: Steps) -> RunError:
    return RunError(
        f"the training function returned after step {slot.step} of {slot.config.length}, though it was not to stop: "
        "it must report its last step, or return because report.should_stop() says so"
    )
