"""The trainings of a stage after the trials: who takes which, and what is written down of each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from autolr.errors import RunError
from autolr.progress.jobs import Job, Running
from autolr.rundir import records
from autolr.rundir.records import Record
from autolr.tuner.execute.loop import Source
from autolr.tuner.execute.scoring import EndScorer
from autolr.tuner.stages import Stage
from autolr.tuner.workers.leases import Alone


class Trainings(Source):
    """The trainings of a stage, as a source of jobs; each has no rung, and is scored at its end.

    Args:
        jobs: what is to be trained.
        path: the file of records they are added to.
        scorer: scores those that are through.
        claims: on the jobs; None: nobody else trains them.
        stage: that they belong to; None: of no search.
        save_every: steps between checkpoints of a job.
        resumed_later: whether later stages resume from the ends of these.
    """

    rungs: tuple[int, ...] = ()

    def __init__(
        self,
        jobs: Sequence[Job],
        path: Path,
        scorer: EndScorer,
        claims: Alone | None = None,
        stage: Stage | None = None,
        *,
        save_every: int = 0,
        resumed_later: bool = False,
    ) -> None:
        self.path = path
        self.scorer = scorer
        self.claims = claims or Alone()
        self.stage = stage
        self.save_every = save_every
        self.resumed_later = resumed_later
        self.trained_tokens = 0
        self._queue = list(jobs)
        self._taken: set[str] = set()

    @property
    def evaluated_tokens(self) -> int:
        """Tokens that were scored."""
        return self.scorer.evaluated_tokens

    def waiting(self) -> bool:
        """Return True if others train what is left."""
        self._forget_recorded()
        return bool(self._queue)

    def next(self) -> Job | None:
        """Take the next training that is no other worker's."""
        with self.claims.lock():
            self._forget_recorded()
            for job in self._queue:
                if job.key not in self._taken and self.claims.take(job.key):
                    self._taken.add(job.key)
                    return job
        return None

    def reached(self, running: list[Running]) -> None:
        """Score those that are through, and end them; one that gives an example no loss has diverged."""
        for one, is_whole in zip(running, self.scorer.score(running), strict=True):
            one.outcome = "finished" if is_whole else "diverged"

    def ended(self, running: Running) -> bool:
        """Record a training.

        Raises:
            RunError: a candidate that was trained before no longer fits the device.
        """
        job, is_unfit = running.job, running.outcome == "infeasible"
        # A baseline outside the space was never tried: that it does not fit is one thing more to report.
        if is_unfit and not self._is_baseline(job):
            raise RunError(f"{job.label} ({job.candidate.describe()}): {running.slot.unfit}; use another --device")
        self.trained_tokens += running.trained_tokens
        record = Record(
            stage=self.stage.name if self.stage else "",
            id=job.key,
            label=job.label,
            candidate=job.candidate,
            seed=job.config.seed,
            steps=job.config.length,
            diverged=running.outcome == "diverged",
            infeasible=is_unfit,
            curve=records.curve(running.slot.losses),
            tokens=running.trained_tokens,
            seconds=running.seconds,
            **({} if is_unfit else self.scorer.record(running)),
        )
        self._taken.discard(job.key)
        with self.claims.lock():
            if not self.claims.holds(job.key):
                return False  # this worker was silent for so long that another has taken the training over
            records.append(self.path, record)
        return True

    def is_beginning(self, running: Running) -> bool:
        """Return True if a later stage may resume from this training."""
        return self.resumed_later and running.outcome == "finished"

    def _is_baseline(self, job: Job) -> bool:
        return self.stage is not None and set(job.label.split(" + ")) <= set(self.stage.baselines)

    def _forget_recorded(self) -> None:
        """Forget the trainings that somebody has recorded."""
        there = {record.id for record in records.parsed(self.path, Record)}
        self._queue = [job for job in self._queue if job.key not in there]
