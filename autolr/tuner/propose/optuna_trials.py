"""The search's trials in Optuna's storage, each of which belongs to one worker at a time.

The one place that needs what Optuna keeps to itself: a trial's id in the storage. Its `ask` makes new trials alone,
and `get_trials` reads them all, so there is no public way to resume one that another process began, or to read one.
"""

from __future__ import annotations

from collections.abc import Sequence

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from autolr.rundir.records import CLAIM
from autolr.tuner.propose.space import SearchSpace
from autolr.tuner.workers.leases import Leases

# Trials that count towards the budget: finished, pruned, diverged.
COUNTED = (TrialState.COMPLETE, TrialState.PRUNED)
# Attribute of a trial: its worker's clock when it ended.
END = "end"


class OptunaTrials:
    """Reads trials and takes them over; the lock of the claims must be held to do so.

    Args:
        claims: on the search, whose study holds the trials.
        space: gives the parameters of trials that died while they were being proposed.
    """

    def __init__(self, claims: Leases, space: SearchSpace) -> None:
        self.claims = claims
        self.study = claims.study
        self.space = space

    def all(self) -> list[FrozenTrial]:
        """Return all trials; with many workers it is most of what asking for one takes."""
        return self.study.get_trials(deepcopy=False)

    def counted(self) -> list[FrozenTrial]:
        """Return the trials that count towards the budget."""
        return self.study.get_trials(deepcopy=False, states=COUNTED)

    def under_way(self) -> list[FrozenTrial]:
        """Return the trials that somebody trains, or has left behind."""
        return self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))

    def left_behind(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """Return those trials under way whose worker is gone."""
        signs = self.study.user_attrs
        return [trial for trial in trials if not self.claims.alive(claim(trial)[0], signs)]

    def resume(self, trial: FrozenTrial) -> optuna.Trial:
        """Return a trial under way as one that reports can go to."""
        return optuna.Trial(self.study, trial._trial_id)

    def take(self, trial: FrozenTrial, clock: int) -> optuna.Trial:
        """Claim a trial under way; one that died while it was being proposed gets the rest of its parameters."""
        taken = self.resume(trial)
        for name, distribution in self.space.distributions.items():
            if isinstance(distribution, CategoricalDistribution):
                taken.suggest_categorical(name, distribution.choices)
            else:
                assert isinstance(distribution, FloatDistribution)
                taken.suggest_float(name, distribution.low, distribution.high, log=distribution.log)
        self.claim(taken, clock)
        return taken

    def claim(self, trial: optuna.Trial, clock: int) -> None:
        """Make a trial this worker's."""
        trial.set_user_attr(CLAIM, [self.claims.me, clock])

    def is_lost(self, trial: optuna.Trial) -> bool:
        """Return True if a trial has ended, or has become another worker's."""
        now = self._now(trial)
        return now.state.is_finished() or claim(now)[0] != self.claims.me

    def report(self, trial: optuna.Trial, step: int, loss: float, metric: float | None) -> None:
        """Report a trial's score; one that was reported before the worker was killed stays."""
        try:
            if metric is not None:
                trial.set_user_attr("metric", metric)
            if step not in self._now(trial).intermediate_values:
                trial.report(loss, step)
        except optuna.exceptions.UpdateFinishedTrialError:
            return  # another worker has taken the trial over, and ended it

    def _now(self, trial: optuna.Trial) -> FrozenTrial:
        return self.study._storage.get_trial(trial._trial_id)


def claim(trial: FrozenTrial) -> tuple[str | None, int]:
    """Return the worker that a trial belongs to, and its clock when it began; None: it was just being proposed."""
    worker, clock = trial.user_attrs.get(CLAIM, (None, -1))
    return worker, clock
