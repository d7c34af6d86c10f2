"""What a search tries next: the baselines first, then winners of earlier searches, then what the sampler proposes.

The best rate of LoRA hardly depends on the rank ("LoRA Without Regret", Schulman et al., 2025): so the default
is tried at the largest rank as well, which tells what a larger rank is worth before anything else is known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from autolr.progress.callbacks import Callback
from autolr.schema.candidate import Candidate
from autolr.schema.study import Study
from autolr.tuner.propose import baselines, pruning, warm_start
from autolr.tuner.propose.baselines import Baseline
from autolr.tuner.propose.optuna_trials import COUNTED
from autolr.tuner.propose.sampler import CurveSampler
from autolr.tuner.propose.space import SearchSpace

# What a large rank is worth, before anything else is known: the default baseline there, under this name. If that does
# not fit the memory, at the largest rank that may.
AT_THE_LARGEST_RANK = f"{Baseline.DEFAULT} at the largest rank"


def equip(trials: optuna.Study, study: Study, space: SearchSpace, length: int) -> CurveSampler:
    """Give a study of Optuna the search's sampler and pruner.

    Args:
        trials: of the search.
        study: says what is searched.
        space: its space for the model.
        length: steps of a trial.

    Returns:
        The sampler.
    """
    trials.sampler = sampler = CurveSampler(
        study.seed,
        space=space.distributions,
        priors=warm_start.priors(study.search.warm_start, space),
    )
    trials.pruner = pruning.make_pruner(study.search, length)
    return sampler


def enqueue(trials: optuna.Study, study: Study, space: SearchSpace, callback: Callback) -> None:
    """Put the baselines and the winners of earlier searches first, each once.

    A baseline outside the space is no trial: it trains in the stages that compare.
    """
    there = trials.get_trials(deepcopy=False)
    present = {trial.user_attrs.get("baseline") for trial in there}
    known = {trial.user_attrs.get("warm_start") for trial in there}
    for baseline in baselines.of(study):
        candidate = baseline.candidate(space)
        if candidate is None or baseline in present:  # it depends on the winner, or is there from before
            continue
        if space.holds(candidate):
            trials.enqueue_trial(space.params(candidate), user_attrs={"baseline": baseline.value})
        else:
            callback.note(f"{baseline} ({candidate.describe()}) is outside the space: compared, not searched")
    large = at_the_largest_rank(baselines.default(space), space.distributions)
    if large and AT_THE_LARGEST_RANK not in present and space.holds(large):
        trials.enqueue_trial(space.params(large), user_attrs={"baseline": AT_THE_LARGEST_RANK})
    for number, found in enumerate(study.search.warm_start):
        if number not in known:
            trials.enqueue_trial(space.params(warm_start.carried(found, space)), user_attrs={"warm_start": number})


def at_the_largest_rank(default: Candidate, distributions: Mapping[str, BaseDistribution]) -> Candidate | None:
    """Return a candidate at the largest rank of a space; None where it has that rank already."""
    rank = max(getattr(distributions.get("rank"), "choices", (0,)))
    return default.model_copy(update={"rank": rank}) if rank > default.rank else None


def propose(trials: optuna.Study, space: SearchSpace, known: Sequence[FrozenTrial]) -> optuna.Trial | None:
    """Return the next trial; None if every point of a space of choices has been tried.

    What needs no less memory than a trial that did not fit would not fit either: it is tried at a lower rank.

    Args:
        trials: of the search.
        space: its space for the model.
        known: all trials so far.
    """
    unfit = [space.candidate(trial.params) for trial in known if trial.user_attrs.get("outcome") == "infeasible"]
    while (trial := _propose(trials, space)) is not None:
        rank = _lighter(trial, unfit, space)
        if rank is None:
            return trial
        kept = {key: value for key, value in trial.user_attrs.items() if key in ("baseline", "warm_start")}
        trials.enqueue_trial({**trial.params, "rank": rank}, user_attrs=kept)
        trials.tell(trial, state=TrialState.FAIL)
    return None


def _propose(trials: optuna.Study, space: SearchSpace) -> optuna.Trial | None:
    points = space.points()
    if points is not None and not trials.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        seen = [trial.params for trial in trials.get_trials(deepcopy=False, states=(*COUNTED, TrialState.RUNNING))]
        unseen = [point for point in points if point not in seen]
        if not unseen:
            return None
        trial = trials.ask(space.distributions)
        if trial.params not in seen:
            return trial
        # The sampler proposed a point again; in a space of choices take another one.
        trials.tell(trial, state=TrialState.FAIL)
        trials.enqueue_trial(unseen[trial.number % len(unseen)])
    return trials.ask(space.distributions)


def _lighter(trial: optuna.Trial, unfit: Sequence[Candidate], space: SearchSpace) -> int | None:
    """Return a rank that may fit the memory, if trials that did not fit say that the trial's own does not."""
    if not unfit or "rank" not in trial.params:
        return None
    own = space.candidate(trial.params)
    least = min((other.rank for other in unfit if own.is_as_large_as(other)), default=None)
    ranks = getattr(space.distributions.get("rank"), "choices", ())
    return None if least is None else max((rank for rank in ranks if rank < least), default=None)
