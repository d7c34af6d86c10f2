"""Pruning that does not look at the order in which trials report."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from optuna.pruners import BasePruner
from optuna.search_space import intersection_search_space
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial

from autolr.search.sampler import Encoding, observations
from autolr.search.surrogate import Surrogate

DRAWS = 4000
# What is decided after a trial's end: a standard deviation, in that of the better half of all ends. Found on the
# design part of studies.benchmarks.search_quality.replay: without it the best was pruned in 7 % of the searches, with
# it in 1 %.
FURTHER = 0.5


class ChancePruner(BasePruner):
    """Ends trials that will hardly be the best, by the surrogate of all curves.

    At a rung the surrogate draws how all trials may end, and what may still change beyond, in the rest of a full
    run. A trial goes on while the share of draws in which it is the best of all is at least `chance`. Before anybody
    has reached the end, little is known of how early losses foretell it, and few are pruned; with every finished
    trial more is. The answer depends on the set of reports, not on their order: let all trials of a pack report
    first, and then ask for each.

    Args:
        rungs: steps at which trials may be pruned.
        length: steps of a trial, where it is judged.
        chance: of being the best below which a trial ends.
        min_scores: below this number of trials with a score nobody is pruned.
    """

    def __init__(self, rungs: tuple[int, ...], length: int, chance: float = 0.001, min_scores: int = 6) -> None:
        if not 0 < chance < 1:
            raise ValueError(f"chance must lie in (0, 1): {chance}")
        self.rungs = rungs
        self.length = length
        self.chance = chance
        self.min_scores = min_scores
        self._judged: tuple[Any, dict[int, float]] | None = None

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Tell whether `trial` ends at the rung it has just reported at."""
        step = trial.last_step
        if step is None or step not in self.rungs:
            return False
        if math.isnan(trial.intermediate_values[step]):
            return True
        chances = self._chances(study)
        return chances.get(trial.number, 1.0) < self.chance

    def _chances(self, study: Study) -> dict[int, float]:
        trials = [t for t in study.get_trials(deepcopy=False) if t.intermediate_values]
        space = {n: d for n, d in intersection_search_space(trials, include_pruned=True).items() if not d.single()}
        encoding = Encoding(space, {})
        # In an order of their own, or the draws would depend on who came first.
        trials = sorted((t for t in trials if encoding.holds(t)), key=lambda t: tuple(encoding.encode(t.params)))
        if len(trials) < self.min_scores or not space:
            return {}
        sign = 1.0 if study.direction == StudyDirection.MINIMIZE else -1.0
        points, steps, values = observations(trials, encoding, sign)
        key = (points.tobytes(), steps.tobytes(), values.tobytes())
        if self._judged is None or self._judged[0] != key:
            surrogate = Surrogate.fit(points, steps, values, last=float(self.length))
            # Of very many trials the surrogate has left out some that ended badly: none of them is the best.
            kept = set(map(tuple, surrogate.points))
            trials = [t for t in trials if not t.state.is_finished() or tuple(encoding.encode(t.params)) in kept]
            own = np.array([encoding.encode(t.params) for t in trials])
            rng = np.random.default_rng(len(points))
            draws = surrogate.draw_many(own, DRAWS, rng)
            draws += FURTHER * surrogate.scale * rng.standard_normal(draws.shape)
            best = np.bincount(draws.argmin(1), minlength=len(trials)) / DRAWS
            self._judged = (key, {t.number: float(share) for t, share in zip(trials, best, strict=True)})
        return self._judged[1]
