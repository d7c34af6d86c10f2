"""The sampler: proposes candidates from all learning curves, those of pruned trials included."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.search_space import intersection_search_space
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from autolr.tuner.propose.encoding import Array, Encoding, Prior
from autolr.tuner.propose.surrogate import Surrogate, curves_of

# Weight of the prior in trials: after so many, half of it is left.
PRIOR_WEIGHT = 8.0
# Candidates that are compared: all over the space, and around the best; those of which one is drawn.
ANYWHERE, NEARBY, PROMISING = 2048, 256, 128
# How many of the best candidates the nearby ones lie around, and how far, in units of the cube.
BEST, STEP = 4, 0.08


class CurveSampler(BaseSampler):
    """Proposes the candidate that improves most by a Gaussian process over (candidate, step).

    The process sees every rung of every curve, so pruned and running trials teach it as well. A prior pulls the
    first proposals towards where the best is expected. Many free slots get different candidates.

    A proposal takes six steps:

    1. Until `startup` candidates have a curve, take the next point of a Sobol sequence, warped by the prior.
    2. Fit a `Surrogate` to all curves.
    3. Let each running trial end as the surrogate expects, so that no slot proposes its neighbour (the "kriging
       believer" of Ginsbourger et al., 2010).
    4. Score 2048 points all over the space and 256 around the four best:
       score(x) = log EI(x) + log π(x) · 8 / (8 + n), with the prior π and n ended trials. LogEI is by Ament et al.
       (NeurIPS 2023); the fading prior is πBO (Hvarfner et al., ICLR 2022).
    5. Keep the 128 points with the highest scores.
    6. Draw one surface from the posterior and take the point where it is lowest (Thompson sampling).

    Caveats: trials teach only through `trial.report(value, step)`, all on one scale of steps. The dimensions
    must be the same in all trials. Of more than 320 reports the surrogate keeps the best half and a pick of the rest.

    Example:
        ```python
        import optuna
        from optuna.distributions import CategoricalDistribution, FloatDistribution

        from autolr.tuner.propose.encoding import Prior
        from autolr.tuner.propose.sampler import CurveSampler

        def objective(trial):
            rate = trial.suggest_float("rate", 1e-5, 1e-1, log=True)
            rank = trial.suggest_categorical("rank", [2, 4, 8])
            for step in (8, 32):
                loss = (rate / 3e-3 - 1) ** 2 / (rate / 3e-3) / 50 + 0.1 / rank + 1 / step
                trial.report(loss, step)
                if trial.should_prune():
                    raise optuna.TrialPruned
            return loss

        sampler = CurveSampler(seed=0, priors={"rate": Prior(1e-3)})
        study = optuna.create_study(sampler=sampler, pruner=optuna.pruners.MedianPruner())
        study.optimize(objective, n_trials=24)
        print(study.best_params)
        ```

    Args:
        seed: of all draws. A proposal depends on it, on the trial's number, and on the trials in the study.
        space: what is searched; None: what all trials have in common, as in Optuna's samplers.
        priors: where the best is expected, for some dimensions: `{"lr_v": Prior(1e-3)}`.
        startup: candidates with a curve before the surrogate is asked. It may be below the minimum of other uses:
            the prior and a random draw keep early proposals sensible.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        space: Mapping[str, BaseDistribution] | None = None,
        priors: Mapping[str, Prior] | None = None,
        startup: int = 4,
    ) -> None:
        self.seed = seed
        self.space = dict(space) if space is not None else None
        self.priors = dict(priors or {})
        self.startup = startup
        self._known: Sequence[FrozenTrial] | None = None

    @contextmanager
    def knowing(self, trials: Sequence[FrozenTrial]) -> Iterator[None]:
        """Propose from these trials without reading the study: the caller has just read them, under a lock."""
        self._known = trials
        try:
            yield
        finally:
            self._known = None

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the dimensions that are proposed together: all."""
        if self.space is not None:
            return dict(self.space)
        shared = intersection_search_space(study.get_trials(deepcopy=False))
        return {name: distribution for name, distribution in shared.items() if not distribution.single()}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Propose a candidate."""
        if not search_space:
            return {}
        encoding = Encoding(search_space, self.priors)
        known = self._known if self._known is not None else study.get_trials(deepcopy=False)
        trials = [t for t in known if t.number != trial.number and encoding.holds(t)]
        ended = [t for t in trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
        running = [t for t in trials if t.state == TrialState.RUNNING]
        curves = curves_of(ended + running, study.direction)
        surrogate = Surrogate.from_curves(encoding, curves, minimum=self.startup)
        if surrogate is None:
            return encoding.decode(encoding.spread(trial.number, self.seed))
        ahead = np.array([encoding.encode(t.params) for t in running]).reshape(len(running), len(encoding))
        rng = np.random.default_rng([self.seed, trial.number])
        return encoding.decode(_propose(surrogate.imagine(ahead), encoding, rng, len(ended)))

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draw a single dimension under the prior, before there is anything to learn from."""
        encoding = Encoding({param_name: param_distribution}, self.priors)
        return encoding.decode(encoding.spread(trial.number, self.seed))[param_name]


def _propose(surrogate: Surrogate, encoding: Encoding, rng: np.random.Generator, ended: int) -> Array:
    """Return the most promising point; `ended` trials have weakened the prior."""
    anywhere = encoding.draw(rng, ANYWHERE)
    # Around the best the surrogate is sure enough for small steps to matter.
    best = surrogate.best_points(BEST)
    nearby = best[rng.integers(len(best), size=NEARBY)] + STEP * rng.standard_normal((NEARBY, best.shape[1]))
    candidates = encoding.snap(np.concatenate([anywhere, nearby]))
    fading = PRIOR_WEIGHT / (PRIOR_WEIGHT + ended)
    score = surrogate.log_expected_improvement(candidates) + encoding.log_prior(candidates) * fading
    promising = candidates[np.argsort(-score)[:PROMISING]]
    # A surface of its own for each slot, so many slots look in many places.
    point: Array = promising[int(surrogate.draw(promising, 1, rng).argmin())]
    return point
