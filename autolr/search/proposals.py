"""What a search tries next: the rules first, then winners of earlier searches, then what the sampler proposes.

The best rate of LoRA hardly depends on the rank ("LoRA Without Regret", Schulman et al., 2025): so the rule of thumb
is tried at the largest rank as well, which tells what a larger rank is worth before anything else is known.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from autolr.candidate import Candidate
from autolr.search import prior, pruning
from autolr.search.loop import Watcher
from autolr.search.sampler import CurveSampler
from autolr.search.space import SearchSpace
from autolr.study import Study

COUNTED = (TrialState.COMPLETE, TrialState.PRUNED)
# Name of the rule of thumb there; where the largest does not fit the memory, at the largest that may.
AT_THE_LARGEST_RANK = "rule at the largest rank"


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
        priors=prior.priors(study.search.prior, space),
        counts=lambda trial: trial.user_attrs.get("rule") != "qkv",
    )
    trials.pruner = pruning.make_pruner(study.search, length)
    return sampler


def candidate_of(trial: optuna.Trial | FrozenTrial, space: SearchSpace) -> Candidate:
    """Return what a trial trains; that of the rule qkv trains W_k as well, whatever the space's targets."""
    return space.rule("qkv") if trial.user_attrs.get("rule") == "qkv" else space.candidate(trial.params)


def enqueue(trials: optuna.Study, study: Study, space: SearchSpace, watcher: Watcher) -> None:
    """Put the rules and the winners of earlier searches first, each once."""
    there = trials.get_trials(deepcopy=False)
    present = {trial.user_attrs.get("rule") for trial in there}
    known = {trial.user_attrs.get("prior") for trial in there}
    for name in study.baselines:
        # winner_lr is known only when there is a winner: it joins at the confirmation.
        if name == "winner_lr" or name in present:
            continue
        candidate = space.rule(name)
        # Beside a space of fixed targets W_k may be trained as well; as a choice it must be one of them.
        targets = space.fixed.get("targets", candidate.targets)
        if space.holds(candidate.model_copy(update={"targets": targets})):
            trials.enqueue_trial(space.params(candidate), user_attrs={"rule": name})
        else:
            watcher.note(
                f"{name} ({candidate.describe()}) is outside the space: it joins the confirmation, not the search"
            )
    large = at_the_largest_rank(space.rule("rule"), space.distributions)
    if large and AT_THE_LARGEST_RANK not in present and space.holds(large):
        trials.enqueue_trial(space.params(large), user_attrs={"rule": AT_THE_LARGEST_RANK})
    for number, found in enumerate(study.search.prior):
        if number not in known:
            trials.enqueue_trial(space.params(prior.carried(found, space)), user_attrs={"prior": number})


def at_the_largest_rank(rule: Candidate, distributions: Mapping[str, BaseDistribution]) -> Candidate | None:
    """Return a rule of thumb at the largest rank of a space; None where it has that rank already."""
    rank = max(getattr(distributions.get("rank"), "choices", (0,)))
    return rule.model_copy(update={"rank": rank}) if rank > rule.rank else None


def propose(trials: optuna.Study, space: SearchSpace) -> optuna.Trial | None:
    """Return the next trial; None where every point of a space of choices has been tried."""
    points = space.points()
    if points is not None and not trials.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        seen = list(_tried(trials))
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


def _tried(trials: optuna.Study) -> Iterator[dict[str, object]]:
    for trial in trials.get_trials(deepcopy=False, states=(*COUNTED, TrialState.RUNNING)):
        if trial.user_attrs.get("rule") != "qkv":
            yield trial.params
