"""Pruning that does not look at the order in which trials report."""

from __future__ import annotations

import math

from optuna.pruners import BasePruner
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial


class RungPruner(BasePruner):
    """Keeps the best share of all trials that have reported at a rung.

    Trials of a pack reach a rung together. Let all of them report first and then ask for each:
    the answer depends on the set of scores at the rung, not on who came first. A later trial is
    measured against all who were at the rung before it. A score that is no number is pruned.

    Args:
        rungs: steps at which trials may be pruned.
        keep: share of the scores at a rung that goes on, rounded up.
        min_scores: below this number of scores at a rung nobody is pruned.
    """

    def __init__(self, rungs: tuple[int, ...], keep: float = 0.5, min_scores: int = 4) -> None:
        if not 0 < keep <= 1:
            raise ValueError(f"keep must lie in (0, 1]: {keep}")
        self.rungs = rungs
        self.keep = keep
        self.min_scores = min_scores

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Tell whether `trial` ends at the rung it has just reported at."""
        step = trial.last_step
        if step is None or step not in self.rungs:
            return False
        own = trial.intermediate_values[step]
        if math.isnan(own):
            return True
        sign = 1.0 if study.direction == StudyDirection.MINIMIZE else -1.0
        others = [
            sign * other.intermediate_values[step]
            for other in study.get_trials(deepcopy=False)
            if step in other.intermediate_values and not math.isnan(other.intermediate_values[step])
        ]
        if len(others) < self.min_scores:
            return False
        better = sum(value < sign * own for value in others)
        return better >= math.ceil(self.keep * len(others))
