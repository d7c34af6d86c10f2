"""The search's trials: Optuna asks and is told; rungs are scored on *select*."""

from __future__ import annotations

import math
import time
import warnings

import optuna
from optuna.trial import TrialState
from torch import Tensor

from autolr.data.batches import TokenSet
from autolr.data.prepared import Prepared
from autolr.pack.divergence import WINDOW, first_without_number, is_number
from autolr.pack.pack import Pack
from autolr.search import proposals, pruning, records
from autolr.search.claims import CLAIM, Claims
from autolr.search.confirm import trial_key
from autolr.search.folder import RunFolder
from autolr.search.held_out import judges
from autolr.search.loop import Job, Keeper, Running, Source, Watcher
from autolr.search.proposals import COUNTED
from autolr.search.records import TrialRecord
from autolr.search.space import SearchSpace
from autolr.search.subset import Subset
from autolr.study import Study

# Attribute of the Optuna study: examples that each rung is scored on.
EXAMPLES = "rung_examples"
# Attribute of a trial: its worker's clock when it ended.
END = "end"
# Of so many trials for each that goes on the ends are kept, the best by their own scores: who goes on is chosen by
# all curves, and one whose end was not kept is trained from the start.
ENDS_KEPT = 3


class Trials(Source):
    """The trials of a search, as a source of jobs for the loop.

    A new search enqueues the rules first. One that goes on counts what has ended, and goes on with what was under
    way. Workers propose, claim and record one after another, each of them knowing what the others did.

    Args:
        study: what is searched.
        space: its space for the model.
        length: steps of a trial.
        folder: where trials are kept.
        pack: scores them.
        data: its *select* split judges them, and what they do not come to of *train*.
        watcher: is told what happens.
        claims: on the search's trials.
        spent: seconds that earlier sittings of this search took.
    """

    def __init__(
        self,
        study: Study,
        space: SearchSpace,
        length: int,
        folder: RunFolder,
        pack: Pack,
        data: Prepared,
        watcher: Watcher,
        claims: Claims,
        spent: float = 0.0,
    ) -> None:
        self.study = study
        self.space = space
        self.length = length
        self.folder = folder
        self.pack = pack
        self.data = data
        self.watcher = watcher
        self.claims = claims
        self.rungs = study.search.rung_steps(length)
        self.evaluated_tokens = 0
        self.trained_tokens = 0
        self.deadline = math.inf if study.budget.time is None else time.monotonic() + study.budget.time - spent
        self.optuna = claims.study
        self.sampler = proposals.equip(self.optuna, study, space, length)
        self.subset = Subset(judges(study, data, length), study.training.batch_size, study.seed)
        self._live: dict[int, optuna.Trial] = {}
        self._unscored: dict[Running, int] = {}  # the place of an example that has no loss
        with claims.lock():
            self._name_axis()
            proposals.enqueue(self.optuna, study, space, watcher)

    def counted(self) -> list[optuna.trial.FrozenTrial]:
        """Return the trials that count towards the budget: finished, pruned, diverged."""
        return self.optuna.get_trials(deepcopy=False, states=COUNTED)

    def resumed(self, keeper: Keeper) -> list[tuple[int, Job | None]]:
        """Return the trials that this worker had under way, and those that were claimed by nobody yet."""
        found: list[tuple[int, Job | None]] = []
        proposed = []
        with self.claims.lock():
            for trial in self.optuna.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                owner, clock = _claim(trial)
                if owner == self.claims.me:
                    job = self._job(optuna.Trial(self.optuna, trial._trial_id))
                    found.append((max(clock, keeper.clock(job) or 0), job))
                elif owner is None:
                    proposed.append(trial)
            mine = [trial for trial in self.counted() if _claim(trial)[0] == self.claims.me]
            if mine:
                found.append((max(int(trial.user_attrs.get(END, 0)) for trial in mine), None))
            # One that is unclaimed was just being proposed, after all that is claimed and all that has ended.
            last = max((clock for clock, _ in found), default=0)
            return found + [(last, self._job(self._claimed(trial, last))) for trial in proposed]

    def waiting(self) -> bool:
        """Tell whether there are trials under way."""
        return bool(self.optuna.get_trials(deepcopy=False, states=(TrialState.RUNNING,)))

    def next(self) -> Job | None:
        """Take a trial that a worker has left behind, or ask for the next candidate.

        None when the budget is spent, or the space is used up.
        """
        with self.claims.lock():
            there = self.optuna.get_trials(deepcopy=False)  # once: with many workers it is most of what asking takes
            under_way = [trial for trial in there if trial.state == TrialState.RUNNING]
            signs = self.optuna.user_attrs
            for trial in under_way:
                if trial.number not in self._live and not self.claims.alive(_claim(trial)[0], signs):
                    return self._job(self._claimed(trial))
            ended = [trial for trial in there if trial.state in COUNTED]
            if len(ended) + len(under_way) >= self.study.budget.trials or time.monotonic() > self.deadline:
                return None
            with self.sampler.knowing(there):
                asked = self._ask(ended)
            if asked is None:
                return None
            asked.set_user_attr(CLAIM, [self.claims.me, self.clock])
            return self._job(asked)

    def _claimed(self, trial: optuna.trial.FrozenTrial, clock: int | None = None) -> optuna.Trial:
        """Claim a trial under way; one that died while it was being proposed gets the rest of its parameters."""
        claimed = optuna.Trial(self.optuna, trial._trial_id)
        for name, distribution in self.space.distributions.items():
            claimed._suggest(name, distribution)
        claimed.set_user_attr(CLAIM, [self.claims.me, self.clock if clock is None else clock])
        return claimed

    def _job(self, trial: optuna.Trial) -> Job:
        rule = trial.user_attrs.get("rule")
        candidate = proposals.candidate_of(trial, self.space)
        self._live[trial.number] = trial
        config = self.space.slot(candidate, self.study.seed, self.length)
        return Job(rule or f"trial {trial.number}", candidate, config, trial.number, trial_key(trial.number))

    def reached(self, running: list[Running]) -> None:
        """Score those at a rung or at their end; all report before any is judged."""
        # A high rate makes weights noisy; their running average predicts the end of the full run better.
        for step in sorted({one.slot.step for one in running}):
            self._score([one for one in running if one.slot.step == step])
        scored = [one for one in running if one.outcome is None]
        ended = [one for one in scored if one.slot.done]
        going = [one for one in scored if not one.slot.done]
        for one in ended:
            one.outcome = "finished"
        for one in going:
            if self._live[one.job.number].should_prune():
                one.outcome = "pruned"

    def ended(self, running: Running) -> bool:
        """Keep a trial's curve, then tell Optuna. One that diverged, or did not fit the memory, counts as pruned."""
        trial = self._live.pop(running.job.number)
        outcome = running.outcome
        assert outcome is not None
        self.trained_tokens += running.trained_tokens
        with self.claims.lock():
            now = self.optuna._storage.get_trial(trial._trial_id)
            if now.state.is_finished() or _claim(now)[0] != self.claims.me:
                return False  # this worker was silent for so long that another has taken the trial over
            record = TrialRecord(
                number=trial.number,
                candidate=running.job.candidate,
                rule=trial.user_attrs.get("rule"),
                outcome=outcome,
                curve=[float(f"{loss:.5g}") for loss in running.slot.losses if is_number(loss)],
                tokens=running.trained_tokens,
                seconds=running.seconds,
            )
            records.append(self.folder.curves, record)
            trial.set_user_attr(END, self.clock)
            trial.set_user_attr("outcome", outcome)
            if outcome != "finished":
                trial.set_user_attr("reason", self._reason(running))
            if outcome == "finished":
                self.optuna.tell(trial, running.score)
            else:
                self.optuna.tell(trial, state=TrialState.PRUNED)
        if outcome == "infeasible":
            self.watcher.note(f"{running.job.label} ({running.job.candidate.describe()}): {running.slot.unfit}")
        return True

    def is_beginning(self, running: Running) -> bool:
        """Tell whether a trial may go on after the search: the rule of thumb's, or one of the best so far."""
        search = self.study.search
        if not search.has_finals(self.length, self.space.steps):
            return False
        if running.outcome != "finished":
            return running.outcome == "pruned" and running.job.label == "rule"
        score = running.score if running.score is not None else math.inf
        done = self.optuna.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        better = sum(trial.value is not None and trial.value < score for trial in done)
        return running.job.label == "rule" or better < ENDS_KEPT * max(search.semifinalists, search.finalists)

    def _reason(self, running: Running) -> str:
        """Say why a trial ended before its time."""
        if running.slot.unfit:
            return running.slot.unfit
        step, losses = running.slot.step, [loss for loss in running.slot.losses if is_number(loss)]
        if running.outcome == "diverged":
            if running in self._unscored:
                return f"example {self._unscored.pop(running)} of those held out had no finite loss at step {step}"
            if len(losses) < len(running.slot.losses) or len(losses) < 2 * WINDOW:
                return f"loss was no number at step {step}"
            start, end = sum(losses[:WINDOW]) / WINDOW, sum(losses[-WINDOW:]) / WINDOW
            return f"training loss rose from {start:.4g} to {end:.4g} by step {step}"
        return pruning.reason(self.optuna, self.optuna.get_trials(deepcopy=False)[running.job.number])

    def _name_axis(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            if self.optuna.metric_names is None:
                self.optuna.set_metric_names(["select loss"])

    def _score(self, group: list[Running]) -> None:
        slots = [one.slot for one in group]

        def evaluate(data: TokenSet) -> tuple[Tensor, Tensor]:
            self.evaluated_tokens += len(slots) * sum(data.lengths())
            return self.pack.evaluate(slots, data, averaged=True)

        step = slots[0].step
        before = max((rung for rung in self.rungs if rung < step), default=0)
        if step in self.subset.counts:
            losses, said, labels = self.subset.score(evaluate, step, step - before)
        else:  # the first to come here choose the examples, for all workers
            with self.claims.lock():
                known = self.optuna.user_attrs.get(EXAMPLES, {})
                self.subset.counts |= {int(at): int(count) for at, count in known.items()}
                losses, said, labels = self.subset.score(evaluate, step, step - before)
                self.optuna.set_user_attr(EXAMPLES, {str(at): count for at, count in self.subset.counts.items()})
        for one, own, predictions in zip(group, losses, said, strict=True):
            place = first_without_number(own.tolist())
            if place is not None:
                one.outcome, self._unscored[one] = "diverged", place
                continue
            one.score = loss = float(own.mean())
            self._report(self._live[one.job.number], step, loss, self.pack.task.score(predictions, labels))

    def _report(self, trial: optuna.Trial, step: int, loss: float, metric: float) -> None:
        """Report a trial's score; one that was reported before the worker was killed stays."""
        try:
            trial.set_user_attr("metric", metric)
            if step not in self.optuna._storage.get_trial(trial._trial_id).intermediate_values:
                trial.report(loss, step)
        except optuna.exceptions.UpdateFinishedTrialError:
            return  # another worker has taken the trial over, and ended it

    def _ask(self, ended: list[optuna.trial.FrozenTrial]) -> optuna.Trial | None:
        trial = proposals.propose(self.optuna, self.space)
        while trial is not None and (lighter := self._lighter(trial, ended)) is not None:
            # What needs no less memory than a trial that did not fit would not fit either.
            kept = {key: value for key, value in trial.user_attrs.items() if key in ("rule", "prior")}
            self.optuna.enqueue_trial({**trial.params, "rank": lighter}, user_attrs=kept)
            self.optuna.tell(trial, state=TrialState.FAIL)
            trial = proposals.propose(self.optuna, self.space)
        return trial

    def _lighter(self, trial: optuna.Trial, ended: list[optuna.trial.FrozenTrial]) -> int | None:
        """Return a rank that may fit the memory, where trials that did not fit say that the trial's own does not."""
        ranks = getattr(self.space.distributions.get("rank"), "choices", ())
        unfit = [
            self.space.candidate(t.params)
            for t in ended
            if t.user_attrs.get("outcome") == "infeasible" and t.user_attrs.get("rule") != "qkv"
        ]
        if not unfit or "rank" not in trial.params or trial.user_attrs.get("rule") == "qkv":
            return None
        own = self.space.candidate(trial.params)
        least = min((other.rank for other in unfit if own.is_as_large_as(other)), default=None)
        return None if least is None else max((rank for rank in ranks if rank < least), default=None)


def _claim(trial: optuna.trial.FrozenTrial) -> tuple[str | None, int]:
    """Return the worker that a trial belongs to, and its clock when it began; None: it was just being proposed."""
    worker, clock = trial.user_attrs.get(CLAIM, (None, -1))
    return worker, clock
