"""The searches that are compared: stock Optuna, a grid, the rule of thumb, and ours.

All but the grid try the rule of thumb first, ours then at the largest rank. Stock searches train one trial after
another, on the schedule of the full run, and see raw losses at rungs: the best case for pruners that judge by order.
Ours train the first part of full runs in two slots, as on a CPU, refilled at once, and see averaged losses; trials
that reach a rung in the same step all report before any is judged.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import optuna
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from autolr.schema.candidate import Candidate
from autolr.schema.study import Search
from autolr.tuner.propose.pruner import ChancePruner
from autolr.tuner.propose.queue import at_the_largest_rank
from studies.benchmarks.search_quality.ledger import Ledger
from studies.benchmarks.search_quality.surfaces import Surface

# Rungs of full-length trials, as shares of the horizon: those of the measured oracle.
RUNG_SHARES = (24 / 479, 64 / 479, 128 / 479, 256 / 479)
SLOTS = 2
# Rates of the paper's grid (RoBERTa, Figure 1): (lr_v, lr_q).
PAPER_POINTS = [
    (lr_v, lr_q) for lr_v in (1e-4, 2e-4, 4e-4, 8e-4, 1e-3, 2e-3) for lr_q in (2e-5, 5e-5, 1e-4, 2e-4, 4e-4, 8e-4)
]
# Our trials are this part of the full run, in whole cycles of batches: as `autolr search` has it.
PART, CYCLE = 0.25, 8
# Before, they were shorter and had a decay of their own; rates were carried to them by this power of the lengths.
OWN_PART, OWN_CARRY = 0.2, 0.3


def trial_length(steps: int) -> int:
    """Return the steps of our trials: the first part of a full run of so many."""
    return max(1, round(PART * steps / CYCLE)) * CYCLE


def full_rungs(steps: int) -> list[int]:
    """Return the steps at which a full-length trial is scored, its end included."""
    return [max(1, round(share * steps)) for share in RUNG_SHARES] + [steps]


def rule_params(surface: Surface) -> dict[str, Any]:
    """Return the rule of thumb as Optuna's parameters."""
    candidate = surface.bounds.rule_candidate
    return {"lr_v": candidate.lr_v, "ratio": candidate.ratio, "rank": candidate.rank}


def rule(surface: Surface, budget: float, seed: int) -> Ledger:
    """No search: one full run of the rule of thumb."""
    return full_runs([surface.bounds.rule_candidate], surface, budget, seed)


def grid(surface: Surface, budget: float, seed: int) -> Ledger:
    """The paper's 36 points around the rule's rate at full length, in an order of chance."""
    rule = surface.bounds.rule_candidate
    # Moved so that the middle of its rates of W_v is the rule's rate.
    factor = rule.lr_v / math.exp(float(np.mean([math.log(lr_v) for lr_v, _ in PAPER_POINTS])))
    points = [Candidate(lr_v=v * factor, ratio=v / q, rank=rule.rank) for v, q in PAPER_POINTS]
    np.random.default_rng(seed).shuffle(points)  # type: ignore[arg-type]
    return full_runs(points, surface, budget, seed)


def full_runs(candidates: list[Candidate], surface: Surface, budget: float, seed: int) -> Ledger:
    """Train given candidates to the end, one after another; the lowest loss wins."""
    ledger, lowest = Ledger(budget), math.inf
    for candidate in candidates:
        if not ledger.spend(1.0):
            break
        loss = surface.loss(candidate, surface.bounds.steps, seed)
        ledger.tried.append((candidate, False))
        if loss < lowest:
            lowest = loss
            ledger.recommend(candidate)
    return ledger


def stock(
    surface: Surface,
    budget: float,
    seed: int,
    sampler: Callable[[int], BaseSampler],
    pruner: Callable[[list[int]], BasePruner],
) -> Ledger:
    """Optuna with a sampler and a pruner; the best completed trial wins, else the best at the highest rung."""
    steps = surface.bounds.steps
    rungs = full_rungs(steps)
    # Hyperband takes its brackets from the name.
    study = optuna.create_study(study_name=f"search {seed}", sampler=sampler(seed), pruner=pruner(rungs))
    study.enqueue_trial(rule_params(surface))
    ledger = Ledger(budget)
    best = (0, math.inf)  # the highest rung anybody reached, and the lowest loss there
    while ledger.spent < budget:
        trial = study.ask(surface.bounds.distributions)
        candidate = Candidate(**trial.params)
        before, was_pruned = 0, False
        for rung in rungs:
            if not ledger.spend((rung - before) / steps):
                return ledger
            loss, before = surface.loss(candidate, rung, seed), rung
            trial.report(loss, rung)
            if (-rung, loss) < (-best[0], best[1]):
                best = (rung, loss)
                ledger.recommend(candidate)
            if rung < steps and trial.should_prune():
                was_pruned = True
                break
        ledger.tried.append((candidate, was_pruned))
        if was_pruned:
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, loss)
    return ledger


@dataclass(eq=False)
class Running:
    """A short trial in its slot: since when it trains, how many rungs are behind it, and the loss at the last."""

    trial: optuna.Trial
    candidate: Candidate
    since: int
    passed: int = 0
    loss: float = math.inf


def packed(
    surface: Surface,
    budget: float,
    seed: int,
    sampler: Callable[[Surface, int], BaseSampler],
    pick: Callable[[Surface, list[optuna.trial.FrozenTrial]], list[Candidate]],
    own_decay: bool = False,
    pruner: Callable[[tuple[int, ...], int], BasePruner] | None = None,
    finals: bool = False,
) -> Ledger:
    """Short trials side by side: the first part of full runs, or with a decay of their own and rates carried.

    With finals the last of the budget lets the best trials go on to half, and the best of them, and the rule's, to
    the end: the lowest loss wins.
    """
    steps, settings = surface.bounds.steps, Search()
    length = max(1, round(OWN_PART * steps / CYCLE)) * CYCLE if own_decay else trial_length(steps)
    rungs = settings.rung_steps(length)
    ends = [*rungs, length]
    later = [(round(steps * stage.to), stage.promote or 1) for stage in settings.stages[1:]]

    def seen(candidate: Candidate, step: int) -> float:
        if not own_decay:
            return surface.loss(candidate, step, seed, averaged=True)
        trained = candidate.model_copy(update={"lr_v": candidate.lr_v * (steps / length) ** OWN_CARRY})
        return surface.short_loss(trained, length, seed, step)

    study = optuna.create_study(sampler=sampler(surface, seed), pruner=(pruner or halves)(rungs, length))
    study.enqueue_trial(rule_params(surface))
    large = at_the_largest_rank(surface.bounds.rule_candidate, surface.bounds.distributions) if finals else None
    if large:
        study.enqueue_trial({**rule_params(surface), "rank": large.rank})
    ledger, running, now = Ledger(budget), [], 0
    reached: dict[Candidate, int] = {}  # how far each candidate has come

    def left(candidate: Candidate, until: int = steps) -> float:
        """Return what it costs to train a candidate on, in full runs."""
        return (until - reached.get(candidate, 0)) / steps

    while True:
        while len(running) < SLOTS:
            trial = study.ask(surface.bounds.distributions)
            running.append(Running(trial, Candidate(**trial.params), now))
        ahead = min(one.since + ends[one.passed] for one in running) - now
        kept = 0.0
        if finals:
            on = sum(count * (end - before) for (before, _), (end, count) in pairwise([(length, 0), *later]))
            kept = on / steps + left(surface.bounds.rule_candidate)
        if ledger.spent + len(running) * ahead / steps > budget - kept:
            break
        ledger.spend(len(running) * ahead / steps)
        now += ahead
        here = [one for one in running if one.since + ends[one.passed] == now]
        for one in here:
            one.loss = seen(one.candidate, ends[one.passed])
            one.trial.report(one.loss, ends[one.passed])
            reached[one.candidate] = ends[one.passed]
            one.passed += 1
        # All have reported: now they may be judged.
        pruned = [one for one in here if one.passed < len(ends) and one.trial.should_prune()]
        finished = [one for one in here if one.passed == len(ends)]
        for one in pruned + finished:
            running.remove(one)
            ledger.tried.append((one.candidate, one in pruned))
            if one in pruned:
                study.tell(one.trial, state=TrialState.PRUNED)
            else:
                study.tell(one.trial, one.loss)
        ledger.recommend(pick(surface, study.get_trials(deepcopy=False))[0])
    if finals:
        rule = surface.bounds.rule_candidate
        best = [one for one in pick(surface, study.get_trials(deepcopy=False)) if one != rule]
        *between, (_, count) = later
        for end, promoted in between:
            best = [one for one in best[:promoted] if ledger.spend(left(one, end))]
            reached |= dict.fromkeys(best, end)
            losses = {one: surface.loss(one, end, seed, averaged=True) for one in best}
            best.sort(key=losses.__getitem__)
        last = {one: surface.loss(one, steps, seed) for one in [*best[:count], rule] if ledger.spend(left(one))}
        ledger.recommend(min(last, key=last.__getitem__))
    return ledger


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
        """Return True if `trial` ends at the rung it has just reported at."""
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


def halves(rungs: tuple[int, ...], length: int) -> BasePruner:
    """Return the pruner that keeps the better half at a rung."""
    return RungPruner(rungs, 0.5)


def by_chance(rungs: tuple[int, ...], length: int) -> BasePruner:
    """Return the pruner that ends what will hardly be the best."""
    return ChancePruner(rungs, length)


def lowest_seen(surface: Surface, trials: list[optuna.trial.FrozenTrial]) -> list[Candidate]:
    """Return candidates by their loss at the highest rung that was reached, the lowest first."""
    seen = [trial for trial in trials if trial.intermediate_values]
    ranked = sorted(seen, key=lambda t: (-t.last_step, t.intermediate_values[t.last_step], t.number))
    return list(dict.fromkeys(Candidate(**trial.params) for trial in ranked))


def lowest_expected(surface: Surface, trials: list[optuna.trial.FrozenTrial]) -> list[Candidate]:
    """Return the search's finalists: of those that went furthest the lowest expected by all curves first."""
    from autolr.tuner.propose.encoding import Encoding
    from autolr.tuner.propose.surrogate import Surrogate, curves_of

    encoding = Encoding(surface.bounds.distributions)
    seen = [trial for trial in trials if trial.intermediate_values]
    surrogate = Surrogate.from_curves(encoding, curves_of(seen))
    if surrogate is None:
        return lowest_seen(surface, trials)
    furthest = max(trial.last_step for trial in seen)
    finalists = [trial for trial in seen if trial.last_step == furthest]
    points = np.array([encoding.encode(trial.params) for trial in finalists])
    return list(dict.fromkeys(Candidate(**finalists[place].params) for place in surrogate.ranked(points)))


def curve_sampler(surface: Surface, seed: int) -> BaseSampler:
    """Return our sampler as the search sets it up."""
    from autolr.tuner.propose.encoding import Prior
    from autolr.tuner.propose.sampler import CurveSampler

    return CurveSampler(seed, space=surface.bounds.distributions, priors={"lr_v": Prior(surface.bounds.rule)})


def tpe_in_slots(surface: Surface, seed: int) -> BaseSampler:
    """Return TPE for trials that run side by side."""
    return TPESampler(seed=seed)


def random_sampler(seed: int) -> BaseSampler:
    return RandomSampler(seed=seed)


def tpe(seed: int) -> BaseSampler:
    return TPESampler(seed=seed)


def gp(seed: int) -> BaseSampler:
    return GPSampler(seed=seed)


def unpruned(rungs: list[int]) -> BasePruner:
    return NopPruner()


def median(rungs: list[int]) -> BasePruner:
    return MedianPruner()


def hyperband(rungs: list[int]) -> BasePruner:
    return HyperbandPruner(min_resource=rungs[0], max_resource=rungs[-1])


def halving(rungs: list[int]) -> BasePruner:
    return SuccessiveHalvingPruner(min_resource=rungs[0])


Strategy = Callable[[Surface, float, int], Ledger]

STRATEGIES: dict[str, Strategy] = {
    "rule": rule,
    "grid": grid,
    "random": partial(stock, sampler=random_sampler, pruner=unpruned),
    "asha": partial(stock, sampler=random_sampler, pruner=halving),
    "tpe_asha": partial(stock, sampler=tpe, pruner=halving),
    "tpe_median": partial(stock, sampler=tpe, pruner=median),
    "tpe_hyperband": partial(stock, sampler=tpe, pruner=hyperband),
    "gp": partial(stock, sampler=gp, pruner=unpruned),
    "own_decay_tpe": partial(packed, sampler=tpe_in_slots, pick=lowest_seen, own_decay=True),
    "rung_tpe": partial(packed, sampler=tpe_in_slots, pick=lowest_seen),
    "halving_curves": partial(packed, sampler=curve_sampler, pick=lowest_expected),
    "ours": partial(packed, sampler=curve_sampler, pick=lowest_expected, pruner=by_chance, finals=True),
}
STOCK = ("random", "asha", "tpe_asha", "tpe_median", "tpe_hyperband", "gp")
# Ours with some of it left out: what each part is worth. They run where asked for.
ABLATIONS = ("own_decay_tpe", "rung_tpe", "halving_curves")
PACKED = (*ABLATIONS, "ours")


def available() -> list[str]:
    """Return the strategies that can run: ours needs its sampler."""
    try:
        from autolr.tuner.propose.sampler import CurveSampler  # noqa: F401
    except ImportError:
        return [name for name in STRATEGIES if name != "ours"]
    return list(STRATEGIES)
