"""The pruner: the set of scores decides, not their order."""

from __future__ import annotations

import optuna
import pytest

from autolr.tuner.propose import pruner
from autolr.tuner.propose.pruner import ChancePruner
from tests.tuner.test_sampler import SPACE, loss, search

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
    study = optuna.create_study(pruner=ChancePruner((EARLY,), LENGTH, chance=0.02))
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
        study = optuna.create_study(pruner=ChancePruner((EARLY,), LENGTH, chance=0.02))
        trials = reported(study, points)
        found.append({trial.params["lr_v"]: trial.should_prune() for trial in trials})
    assert found[0] == found[1]


def test_few_scores_prune_nobody_and_no_number_ends():
    study = optuna.create_study(pruner=ChancePruner((EARLY,), LENGTH, chance=0.02))
    trials = reported(study, spread(4))
    assert not any(trial.should_prune() for trial in trials)
    trial = study.ask(SPACE)
    trial.report(float("nan"), EARLY)
    assert trial.should_prune()
    with pytest.raises(ValueError, match="chance"):
        ChancePruner((1,), 2, chance=1.0)


@pytest.mark.parametrize(("further", "near_ends"), [(pruner.BEYOND_THE_END_SD, False), (0.0, True)])
def test_what_the_rest_of_a_full_run_may_still_change_keeps_those_that_are_near(monkeypatch, further, near_ends):
    """However sure the ends of trials are, they are not the end of the full run."""
    monkeypatch.setattr(pruner, "BEYOND_THE_END_SD", further)
    study = optuna.create_study(pruner=ChancePruner((EARLY,), LENGTH))
    study.add_trials(search(optuna.samplers.RandomSampler(seed=0), 4, noise=0.0))
    points = [{"lr_v": rate, "ratio": 2.0, "rank": 16} for rate in (5e-3, 8e-3, 2e-2)]
    best, near, far = reported(study, points)
    assert not best.should_prune() and far.should_prune()
    assert near.should_prune() is near_ends


def test_a_smaller_chance_ends_fewer():
    found = []
    for chance in (0.2, 0.02, 0.0005):
        study = optuna.create_study(pruner=ChancePruner((EARLY,), LENGTH, chance=chance))
        study.add_trials(search(optuna.samplers.RandomSampler(seed=0), 2))
        found.append({t.params["lr_v"] for t in reported(study, spread(12)) if t.should_prune()})
    assert found[0] >= found[1] >= found[2]
    assert len(found[0]) > len(found[2]) > 0
