"""The pruner: ends trials that will hardly be the best, whatever the order in which trials report."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from optuna.pruners import BasePruner
from optuna.search_space import intersection_search_space
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial

from autolr.tuner.propose.encoding import Encoding
from autolr.tuner.propose.surrogate import Surrogate, curves_of

DRAWS = 4000
# What is decided after a trial ends: a standard deviation, in units of the better half. Found on the design part of
# studies.benchmarks.search_quality.replay: without it the best was pruned in 7 % of the searches, with it in 1 %.
BEYOND_THE_END_SD = 0.5


class ChancePruner(BasePruner):
    """Prunes a trial if its chance of being the best, by all curves so far, is below a threshold.

    MedianPruner and successive halving compare losses at one rung, so early reporters meet weaker rivals, and they
    end a fixed share of trials however close the losses are. This pruner asks how the curves may still end. While
    nobody has reached the end, early losses foretell little and few trials are pruned; each finished trial adds to
    what they foretell.

    A decision takes four steps:

    1. Fit a `Surrogate` to the curves of all trials.
    2. Draw the ends of all trials jointly, 4000 times, from its posterior.
    3. Add what is decided only after the end of a trial: y_i = f(x_i) + ε_i, ε_i ~ N(0, (scale / 2)²).
    4. Count how often each trial is the best: p_i = P(y_i = min_j y_j). Prune a trial if p_i < `chance`.

    The decision depends on the set of reports, not on their order: let all trials of a group report first, then ask
    for each. Ending runs by their probability of beating the best goes back to Domhan, Springenberg and Hutter
    ("Speeding up automatic hyperparameter optimization of deep neural networks by extrapolation of learning curves",
    IJCAI 2015), who extrapolate each curve alone; here the curves of similar candidates inform each other.

    Caveats: with more than 320 reports the surrogate drops some trials that ended badly, and they are no longer
    compared. Parameters that not all trials have are ignored. A report that is NaN always prunes.

    Example:
        ```python
        import optuna

        from autolr.tuner.propose.pruner import ChancePruner

        def objective(trial):
            rate = trial.suggest_float("rate", 1e-5, 1e-1, log=True)
            for step in (8, 16, 32):
                loss = (rate / 3e-3 - 1) ** 2 / (rate / 3e-3) / 50 + 1 / step
                trial.report(loss, step)
                if trial.should_prune():
                    raise optuna.TrialPruned
            return loss

        study = optuna.create_study(
            sampler=optuna.samplers.RandomSampler(seed=0), pruner=ChancePruner(rungs=(8, 16), length=32, chance=0.01)
        )
        study.optimize(objective, n_trials=24)
        pruned = [trial for trial in study.trials if trial.state == optuna.trial.TrialState.PRUNED]
        print(f"{len(pruned)} of 24 pruned; {study.pruner.reason(study, pruned[-1])}")
        ```

    Args:
        rungs: steps at which trials may be pruned.
        length: steps of a trial, where it is judged.
        chance: of being the best, below which a trial ends.
        min_scores: candidates with a score that pruning takes. Fewer than other uses need: while the surrogate knows
            little, the chances of all trials are far above the threshold.
    """

    def __init__(self, rungs: tuple[int, ...], length: int, chance: float = 0.001, min_scores: int = 6) -> None:
        if not 0 < chance < 1:
            raise ValueError(f"chance must be between 0 and 1, both excluded ({chance})")
        self.rungs = rungs
        self.length = length
        self.chance = chance
        self.min_scores = min_scores
        self._judged: tuple[Surrogate, dict[int, float]] | None = None

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Return True if `trial` ends at the rung at which it has just reported."""
        step = trial.last_step
        if step is None or step not in self.rungs:
            return False
        if math.isnan(trial.intermediate_values[step]):
            return True
        return self._chances(study).get(trial.number, 1.0) < self.chance

    def reason(self, study: Study, trial: FrozenTrial) -> str:
        """Return why a trial that this pruner ended was ended, in a sentence for users."""
        return f"{place_at_rung(study, trial)}: a chance below {self.chance:g} of being the best"

    def _chances(self, study: Study) -> dict[int, float]:
        """Return each trial's chance of being the best, by number; empty with too few scores."""
        trials = [t for t in study.get_trials(deepcopy=False) if t.intermediate_values]
        space = {n: d for n, d in intersection_search_space(trials, include_pruned=True).items() if not d.single()}
        if not space:
            return {}
        encoding = Encoding(space)
        # In an order of their own, or the draws would depend on who reported first.
        trials = sorted((t for t in trials if encoding.holds(t)), key=lambda t: tuple(encoding.encode(t.params)))
        surrogate = Surrogate.from_curves(
            encoding, curves_of(trials, study.direction), minimum=self.min_scores, last=float(self.length)
        )
        if surrogate is None:
            return {}
        if self._judged is None or self._judged[0] is not surrogate:
            self._judged = (surrogate, _chances_of_being_best(surrogate, encoding, trials))
        return self._judged[1]


def _chances_of_being_best(
    surrogate: Surrogate, encoding: Encoding, trials: Sequence[FrozenTrial]
) -> dict[int, float]:
    reports = sum(len(trial.intermediate_values) for trial in trials)
    # Of very many trials the surrogate has left out some that ended badly: none of them is the best.
    kept = set(map(tuple, surrogate.points))
    trials = [t for t in trials if not t.state.is_finished() or tuple(encoding.encode(t.params)) in kept]
    rng = np.random.default_rng(reports)
    draws = surrogate.draw(np.array([encoding.encode(t.params) for t in trials]), DRAWS, rng)
    draws += BEYOND_THE_END_SD * surrogate.scale * rng.standard_normal(draws.shape)
    best = np.bincount(draws.argmin(1), minlength=len(trials)) / DRAWS
    return {trial.number: float(share) for trial, share in zip(trials, best, strict=True)}


def place_at_rung(study: Study, trial: FrozenTrial) -> str:
    """Return a trial's place among all that have reported at its last step: `place 3 of 8 at the rung of step 24`."""
    step = trial.last_step
    assert step is not None
    sign = -1.0 if study.direction == StudyDirection.MAXIMIZE else 1.0
    reports = [t.intermediate_values[step] for t in study.get_trials(deepcopy=False) if step in t.intermediate_values]
    place = 1 + sum(sign * value < sign * trial.intermediate_values[step] for value in reports)
    return f"place {place} of {len(reports)} at the rung of step {step}"
