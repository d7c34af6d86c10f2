"""The search's trials, as a source of jobs: Optuna proposes them, and each is scored and judged at its rungs."""

from __future__ import annotations

import math
import time
import warnings

import optuna
from optuna.trial import FrozenTrial, TrialState

from autolr import divergence
from autolr.progress.jobs import Job, Running
from autolr.rundir import records
from autolr.rundir.records import TrialRecord
from autolr.tuner.execute.loop import CheckpointStore, Source
from autolr.tuner.execute.scoring import RungScorer, Score
from autolr.tuner.propose import baselines, pruning, queue
from autolr.tuner.propose.optuna_trials import COUNTED, END, OptunaTrials, claim
from autolr.tuner.stages import resumable, trial_key
from autolr.tuner.work import Work

# Of so many trials for each that is promoted the ends are kept, the best by their own scores: who is promoted is
# decided by all curves, and one whose end was not kept is trained from the start.
ENDS_KEPT = 3


class Trials(Source):
    """The trials of a search.

    A new search enqueues the baselines first. One that is resumed counts what has ended, and resumes what was under
    way. Workers propose, claim and record one after another, each of them knowing what the others did.

    Args:
        work: what is searched.
        scorer: scores trials at rungs and at their end.
        spent: seconds that earlier sittings of this search took.
    """

    def __init__(self, work: Work, scorer: RungScorer, spent: float = 0.0) -> None:
        self.work = work
        self.study = work.study
        self.scorer = scorer
        self.claims = work.claims
        self.stage = work.stages[0]
        self.rungs = work.study.search.rung_steps(self.stage.steps)
        self.trained_tokens = 0
        time_left = math.inf if self.study.budget.time is None else self.study.budget.time - spent
        self.deadline = time.monotonic() + time_left
        self.trials = OptunaTrials(work.claims, work.space)
        self.optuna = work.claims.study
        self.sampler = queue.equip(self.optuna, self.study, work.space, self.stage.steps)
        self._live: dict[int, optuna.Trial] = {}
        self._unscored: dict[Running, int] = {}  # the place of an example that has no loss
        with self.claims.lock():
            self._name_axis()
            queue.enqueue(self.optuna, self.study, work.space, work.callback)

    @property
    def evaluated_tokens(self) -> int:
        """Tokens that were scored."""
        return self.scorer.evaluated_tokens

    def resumed(self, keeper: CheckpointStore) -> list[tuple[int, Job | None]]:
        """Return the trials that this worker had under way, and those that were claimed by nobody yet."""
        found: list[tuple[int, Job | None]] = []
        with self.claims.lock():
            under_way = self.trials.under_way()
            for trial in (trial for trial in under_way if claim(trial)[0] == self.claims.me):
                job = self._job(self.trials.resume(trial))
                found.append((max(claim(trial)[1], keeper.clock(job) or 0), job))
            ended = [trial for trial in self.trials.counted() if claim(trial)[0] == self.claims.me]
            if ended:
                found.append((max(int(trial.user_attrs.get(END, 0)) for trial in ended), None))
            # One that is unclaimed was just being proposed, after all that is claimed and all that has ended.
            last = max((clock for clock, _ in found), default=0)
            proposed = [trial for trial in under_way if claim(trial)[0] is None]
            return found + [(last, self._job(self.trials.take(trial, last))) for trial in proposed]

    def waiting(self) -> bool:
        """Return True if there are trials under way."""
        return bool(self.trials.under_way())

    def next(self) -> Job | None:
        """Take a trial that a worker has left behind, or ask for the next candidate.

        None if the budget is spent, or the space is used up.
        """
        with self.claims.lock():
            there = self.trials.all()
            under_way = [trial for trial in there if trial.state == TrialState.RUNNING]
            left = self.trials.left_behind([trial for trial in under_way if trial.number not in self._live])
            if left:
                return self._job(self.trials.take(left[0], self.clock))
            return None if self._is_over(there, len(under_way)) else self._proposed(there)

    def reached(self, running: list[Running]) -> None:
        """Score those at a rung or at their end; all report before any is judged."""
        for step in sorted({one.slot.step for one in running}):
            group = [one for one in running if one.slot.step == step]
            for one, score in zip(group, self.scorer.score(group), strict=True):
                self._report(one, step, score)
        for one in [one for one in running if one.outcome is None]:
            if one.slot.done:
                one.outcome = "finished"
            elif self._live[one.job.number].should_prune():
                one.outcome = "pruned"

    def ended(self, running: Running) -> bool:
        """Keep a trial's curve, then tell Optuna. One that diverged, or did not fit the memory, counts as pruned."""
        trial, outcome = self._live.pop(running.job.number), running.outcome
        assert outcome is not None
        self.trained_tokens += running.trained_tokens
        with self.claims.lock():
            if self.trials.is_lost(trial):
                return False  # this worker was silent for so long that another has taken the trial over
            record = TrialRecord(
                number=trial.number,
                candidate=running.job.candidate,
                baseline=trial.user_attrs.get("baseline"),
                outcome=outcome,
                curve=records.curve(running.slot.losses),
                tokens=running.trained_tokens,
                seconds=running.seconds,
            )
            records.append(self.work.folder.curves, record)
            trial.set_user_attr(END, self.clock)
            trial.set_user_attr("outcome", outcome)
            if outcome == "finished":
                self.optuna.tell(trial, running.score)
            else:
                trial.set_user_attr("reason", self._reason(running))
                self.optuna.tell(trial, state=TrialState.PRUNED)
        if outcome == "infeasible":
            self.work.callback.note(f"{running.job.label} ({running.job.candidate.describe()}): {running.slot.unfit}")
        return True

    def is_beginning(self, running: Running) -> bool:
        """Return True if a later stage may resume a trial: the default's, or one of the best so far."""
        kept = ENDS_KEPT * resumable(self.work.stages, self.stage.steps)
        if not resumable(self.work.stages, self.stage.steps):
            return False
        is_default = running.job.candidate == baselines.default(self.work.space)
        if running.outcome != "finished":
            return running.outcome == "pruned" and is_default
        score = running.score if running.score is not None else math.inf
        done = self.optuna.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return is_default or sum(trial.value is not None and trial.value < score for trial in done) < kept

    def _is_over(self, there: list[FrozenTrial], under_way: int) -> bool:
        ended = sum(trial.state in COUNTED for trial in there)
        return ended + under_way >= self.study.budget.trials or time.monotonic() > self.deadline

    def _proposed(self, there: list[FrozenTrial]) -> Job | None:
        with self.sampler.knowing(there):
            asked = queue.propose(self.optuna, self.work.space, there)
        if asked is None:
            return None
        self.trials.claim(asked, self.clock)
        return self._job(asked)

    def _job(self, trial: optuna.Trial) -> Job:
        candidate = self.work.space.candidate(trial.params)
        self._live[trial.number] = trial
        label = trial.user_attrs.get("baseline") or f"trial {trial.number}"
        config = self.work.space.slot(candidate, self.study.seed, self.stage.steps)
        return Job(label, candidate, config, trial.number, trial_key(trial.number))

    def _report(self, one: Running, step: int, score: Score) -> None:
        if score.without is not None:
            one.outcome, self._unscored[one] = "diverged", score.without
            return
        one.score = score.loss
        self.trials.report(self._live[one.job.number], step, score.loss, score.metric)

    def _reason(self, running: Running) -> str:
        """Return why a trial ended before its time."""
        step = running.slot.step
        if running.slot.unfit:
            return running.slot.unfit
        if running in self._unscored:
            return f"example {self._unscored.pop(running)} of those held out had no finite loss at step {step}"
        if running.outcome == "diverged":
            return divergence.describe(running.slot.losses, step)
        return pruning.reason(self.optuna, self.trials.all()[running.job.number])

    def _name_axis(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            if self.optuna.metric_names is None:
                self.optuna.set_metric_names(["validation loss"])
