"""The pruner: the set of scores decides, not their order."""

from __future__ import annotations

import itertools

import optuna
import pytest

from autolr.search.pruner import ChancePruner, RungPruner
from tests.search.test_sampler import SPACE, loss, search

RUNG = 10
SCORES = [0.5, 0.1, 0.9, 0.3]


def pruned(scores: list[float], direction: str = "minimize", **options) -> set[float]:
    study = optuna.create_study(direction=direction, pruner=RungPruner((RUNG,), **options))
    trials = [study.ask() for _ in scores]
    for trial, score in zip(trials, scores, strict=True):
        trial.report(score, RUNG)
    return {score for trial, score in zip(trials, scores, strict=True) if trial.should_prune()}


@pytest.mark.parametrize("order", itertools.permutations(SCORES))
def test_trials_that_report_together_are_judged_alike_in_any_order(order):
    assert pruned(list(order)) == {0.5, 0.9}
    assert pruned(list(order), "maximize") == {0.1, 0.3}


def test_the_share_kept_is_rounded_up_and_ties_stay():
    assert pruned([1.0, 2.0, 3.0, 4.0, 5.0]) == {4.0, 5.0}
    assert pruned([1.0, 2.0, 3.0, 4.0], keep=0.25) == {2.0, 3.0, 4.0}
    assert pruned([1.0] * 6) == set()


def test_few_scores_and_other_steps_prune_nobody():
    assert pruned([1.0, 2.0, 3.0]) == set()
    study = optuna.create_study(pruner=RungPruner((RUNG,), min_scores=1))
    for score in (1.0, 2.0, 3.0):
        trial = study.ask()
        trial.report(score, RUNG + 1)
        assert not trial.should_prune()


def test_a_later_trial_is_measured_against_all_before_it():
    study = optuna.create_study(pruner=RungPruner((RUNG,)))
    for score in (1.0, 2.0, 3.0, 4.0):
        trial = study.ask()
        trial.report(score, RUNG)
        study.tell(trial, score)
    for score, expected in ((1.5, False), (3.5, True), (float("nan"), True)):
        trial = study.ask()
        trial.report(score, RUNG)
        assert trial.should_prune() is expected


def test_keep_must_be_a_share():
    with pytest.raises(ValueError, match="keep"):
        RungPruner((1,), keep=0)


LENGTH = 128
EARLY = 24


def reported(study: optuna.Study, points: list[dict]) -> list[optuna.Trial]:
    trials = []
    for params in points:
        study.enqueue_trial(params)
        trials.append(study.ask(SPACE))
        trials[-1].report(loss(params, EARLY), EARLY)
    return trials


def spread(count: int) -> list[dict]:
    return [{"lr_v": 3e-4 * 60 ** (i / count), "ratio": 1.0 + i % 3, "rank": 16} for i in range(count)]


def test_what_will_hardly_be_the_best_ends_and_the_best_never_does():
    study = optuna.create_study(pruner=ChancePruner((EARLY,), LENGTH))
    study.add_trials(search(optuna.samplers.RandomSampler(seed=0), 2))
    points = spread(12)
    trials = reported(study, points)
    pruned = [trial.should_prune() for trial in trials]
    losses = [loss(params, LENGTH) for params in points]
    assert not pruned[losses.index(min(losses))]
    assert pruned[losses.index(max(losses))]
    assert sum(pruned) >= 6
    kept = [value for value, gone in zip(losses, pruned, strict=True) if not gone]
    assert max(kept) < min(value for value, gone in zip(losses, pruned, strict=True) if gone) + 0.02


def test_the_order_of_the_reports_does_not_matter():
    found = []
    for points in (spread(10), spread(10)[::-1]):
        study = optuna.create_study(pruner=ChancePruner((EARLY,), LENGTH))
        trials = reported(study, points)
        found.append({trial.params["lr_v"]: trial.should_prune() for trial in trials})
    assert found[0] == found[1]


def test_few_scores_prune_nobody_and_no_number_ends():
    study = optuna.create_study(pruner=ChancePruner((EARLY,), LENGTH))
    trials = reported(study, spread(4))
    assert not any(trial.should_prune() for trial in trials)
    trial = study.ask(SPACE)
    trial.report(float("nan"), EARLY)
    assert trial.should_prune()
    with pytest.raises(ValueError, match="chance"):
        ChancePruner((1,), 2, chance=1.0)
