"""The trials and the confirmation of a search around a function: one training after another."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import optuna
from optuna.trial import TrialState

from autolr.candidate import Candidate
from autolr.errors import RunError
from autolr.pack.divergence import diverged, first_without_number, is_number
from autolr.search import proposals, records
from autolr.search.claims import CLAIM, MAIN
from autolr.search.confirm import confirmation_jobs, missing
from autolr.search.folder import RunFolder
from autolr.search.loop import Job, Running, Watcher
from autolr.search.proposals import COUNTED
from autolr.search.records import RepeatRecord, TrialRecord
from autolr.search.result import Phase, SearchResult
from autolr.search.space import SearchSpace
from autolr.study import Study
from autolr.tune.report import Report, Steps, judged

# Trains a candidate; returns losses of examples that no choice has seen, one mean of them, or None.
TrainFunction = Callable[[Candidate, Report], float | Sequence[float] | None]


class Tuning:
    """A search's work around one function, kept in its run folder as that of any search.

    Args:
        function: trains one candidate.
        study: what is searched.
        space: its space.
        length: steps of a training.
        folder: where all is kept.
        watcher: is told what happens.
    """

    def __init__(
        self,
        function: TrainFunction,
        study: Study,
        space: SearchSpace,
        length: int,
        folder: RunFolder,
        watcher: Watcher,
    ) -> None:
        self.function = function
        self.study = study
        self.space = space
        self.length = length
        self.folder = folder
        self.watcher = watcher
        self.rungs = study.search.rung_steps(length)

    def search(self) -> None:
        """Run trials until the budget is spent; those that ended before count."""
        spent = sum(p.seconds for p in SearchResult.load(self.folder.path).phases if p.phase == "search")
        budget = self.study.budget
        deadline = math.inf if budget.time is None else time.monotonic() + budget.time - spent
        asked = self._trials()
        done = len(asked.get_trials(deepcopy=False, states=COUNTED))
        self.watcher.phase("search", budget.trials, done)
        with self._timed("search"):
            while done < budget.trials and time.monotonic() < deadline:
                trial = proposals.propose(asked, self.space)
                if trial is None:
                    break
                trial.set_user_attr(CLAIM, [MAIN, 0])
                self._try(asked, trial)
                done += 1

    def confirm(self, candidates: dict[Candidate, str]) -> None:
        """Train candidates again, several seeds each; those that are there are not repeated."""
        jobs = confirmation_jobs(self.study, self.space, candidates, self.length)
        left = missing(jobs, SearchResult.load(self.folder.path).repeats)
        if not left:
            return
        self.watcher.phase("confirmation", len(jobs), len(jobs) - len(left))
        with self._timed("confirmation"):
            for job in left:
                self._repeat(job)

    def _trials(self) -> optuna.Study:
        """Return the search's trials, the rules first, and what an interruption cut short again."""
        trials = self.folder.optuna(self.study)
        proposals.equip(trials, self.study, self.space, self.length)
        for trial in trials.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            trials.tell(trial.number, state=TrialState.FAIL)
            kept = {key: value for key, value in trial.user_attrs.items() if key in ("rule", "prior")}
            trials.enqueue_trial(trial.params, user_attrs=kept)
        proposals.enqueue(trials, self.study, self.space, self.watcher)
        return trials

    def _try(self, asked: optuna.Study, trial: optuna.Trial) -> None:
        """Train a trial's candidate, score it at the rungs and at its end, and tell Optuna."""
        candidate = proposals.candidate_of(trial, self.space)
        config = self.space.slot(candidate, self.study.seed, self.length)
        rule = trial.user_attrs.get("rule")
        running = self._running(Job(rule or f"trial {trial.number}", candidate, config, trial.number))
        left = [*self.rungs, self.length]

        def reached(loss: float) -> None:
            running.score = loss if is_number(loss) else running.score
            self.watcher.stepped([running], 1)
            if diverged(running.slot.losses):
                running.outcome = "diverged"
                report.stop()
                return
            while left and running.slot.step >= left[0]:
                at = left.pop(0)
                trial.report(loss, at)
                if at < self.length and trial.should_prune():
                    running.outcome = "pruned"
                    report.stop()
                    return

        report = Report(running.slot, reached)  # type: ignore[arg-type]
        self._call(running, report)
        if running.outcome is None and self.length in left:
            raise _too_short(running.slot, self.length)
        running.outcome = running.outcome or "finished"
        slot = running.slot
        record = TrialRecord(
            number=trial.number,
            candidate=candidate,
            rule=rule,
            outcome=running.outcome,
            curve=[float(f"{loss:.5g}") for loss in slot.losses if is_number(loss)],
            seconds=running.seconds,
        )
        records.append(self.folder.curves, record)
        trial.set_user_attr("outcome", running.outcome)
        if running.outcome == "finished":
            asked.tell(trial, running.score)
        else:
            asked.tell(trial, state=TrialState.PRUNED)
        self.watcher.ended(running)

    def _repeat(self, job: Job) -> None:
        """Train a candidate once more and keep what it says."""
        running = self._running(job)

        def reached(loss: float) -> None:
            running.score = loss
            self.watcher.stepped([running], 1)
            if diverged(running.slot.losses):
                running.outcome = "diverged"
                report.stop()

        report = Report(running.slot, reached, confirms=True)  # type: ignore[arg-type]
        returned = self._call(running, report)
        slot = running.slot
        if running.outcome is None and slot.step < self.length:
            raise _too_short(slot, self.length)
        if running.outcome == "diverged":
            select = self._worst()
            losses = [select] * (self._examples() or 1)
        else:
            select = slot.losses[-1]
            losses = judged(returned, select)
            self._check(job, losses)
        mean = sum(losses) / len(losses)
        records.append(
            self.folder.confirm,
            RepeatRecord(
                label=job.label,
                candidate=job.candidate,
                seed=job.config.seed,
                diverged=running.outcome == "diverged",
                select_loss=select,
                select_metric=select,
                confirm_loss=mean,
                confirm_metric=mean,
                losses=losses,
                curve=[float(f"{loss:.5g}") for loss in slot.losses if is_number(loss)],
                seconds=running.seconds,
            ),
        )
        running.outcome = running.outcome or "finished"
        self.watcher.ended(running)

    def _running(self, job: Job) -> Running:
        running = Running(job, Steps(job.config))  # type: ignore[arg-type]
        self.watcher.stepped([running], 1)
        return running

    def _call(self, running: Running, report: Report) -> Any:
        start = time.perf_counter()
        try:
            return self.function(running.job.candidate, report)
        finally:
            running.seconds = round(time.perf_counter() - start, 3)

    def _examples(self) -> int | None:
        """Return how many losses the other repeats have returned."""
        done = SearchResult.load(self.folder.path).repeats
        return next((len(record.losses) for record in done if not record.diverged), None)

    def _worst(self) -> float:
        """Return the highest loss that was ever reported: it stands for that of a training that diverged."""
        found = SearchResult.load(self.folder.path)
        curves = [trial.curve for trial in found.ended()] + [repeat.curve for repeat in found.repeats]
        return max(loss for curve in curves for loss in curve)

    def _check(self, job: Job, losses: list[float]) -> None:
        """Check what a training that reported numbers to its end has returned.

        Raises:
            RunError: there are more or fewer losses than before, or one is no number.
        """
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

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        """Write down what a phase took, also when it is interrupted."""
        start = time.perf_counter()
        try:
            yield
        finally:
            seconds = round(time.perf_counter() - start, 3)
            records.append(self.folder.phases, Phase(phase=name, seconds=seconds))


def _too_short(slot: Any, length: int) -> RunError:
    return RunError(
        f"the training function returned after step {slot.step} of {length}, though it was not to stop: it must "
        "report its last step, or return because report.should_stop() says so"
    )
