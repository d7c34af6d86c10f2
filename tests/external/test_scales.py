"""Losses of any unit: the same search, the same winner, and gains in that unit; what is no number is named."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import autolr
from autolr.errors import RunError
from autolr.report.page import write_report
from tests.external.test_tune import OPTIONS, loss_of

EXAMPLES = np.random.default_rng(0).normal(0, 0.05, 20)
SMALL = {**OPTIONS, "trials": 10}


def training(scale: float = 1.0, shift: float = 0.0, kind=float):
    """Return a training function whose losses are `shift + scale * loss`, as numbers of the type `kind`."""

    def train(candidate, report):
        for step in range(5, 45, 5):
            report(step, kind(shift + scale * loss_of(candidate, step, report.seed)))
            if report.should_stop():
                break
        return [kind(shift + scale * (loss_of(candidate, step, report.seed) + noise)) for noise in EXAMPLES]

    return train


def gains(result) -> dict[str, float]:
    return {score.label: score.gain.mean for score in result.recipe.evidence.scores if score.gain}


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    return autolr.tune(training(), out=tmp_path_factory.mktemp("usual") / "run", **SMALL)


@pytest.mark.parametrize("power", [-40, 10, 100], ids=["1e-12", "1e3", "1e30"])
def test_another_unit_is_the_same_search(usual, tmp_path, power):
    scale = 2.0**power  # exact in every float
    found = autolr.tune(training(scale), out=tmp_path / "run", **SMALL)
    assert [trial.candidate for trial in found.ended()] == [trial.candidate for trial in usual.ended()]
    assert found.recipe.candidate == usual.recipe.candidate
    assert gains(found) == pytest.approx({label: scale * gain for label, gain in gains(usual).items()}, rel=1e-9)
    assert "is significantly better than the default" in found.recipe.evidence.verdict
    assert "0.0000" not in found.recipe.evidence.verdict
    assert "is significantly better than the default" in write_report(found).read_text(encoding="utf-8")


def test_negative_losses(usual, tmp_path):
    found = autolr.tune(training(shift=-1000.0), out=tmp_path / "run", **SMALL)
    assert found.recipe.evidence.scores[0].test_loss < -990
    assert found.recipe.candidate.lr_v == pytest.approx(usual.recipe.candidate.lr_v, rel=0.2)
    assert gains(found)["default"] == pytest.approx(gains(usual)["default"], rel=0.1)


def test_losses_that_are_all_equal(tmp_path):
    def same(candidate, report):
        report(report.steps, 7.0)
        return [7.0, 7.0]

    result = autolr.tune(same, out=tmp_path / "run", **SMALL)
    assert len(result.ended()) == SMALL["trials"]
    assert all(gain == 0 for gain in gains(result).values())
    assert write_report(result).is_file()


def test_a_training_that_explodes_does_not_hide_the_others(tmp_path):
    def train(candidate, report):
        huge = 1e30 if candidate.lr_v > 4e-3 else 1.0
        return training(huge)(candidate, report)

    result = autolr.tune(train, out=tmp_path / "run", **SMALL)
    assert result.recipe.candidate.lr_v < 4e-3
    assert result.recipe.evidence.scores[0].test_loss < 2


@pytest.mark.parametrize("kind", [np.float32, np.float64, torch.tensor, lambda x: np.array(x)])
def test_numbers_of_any_library(tmp_path, kind):
    def train(candidate, report):
        report(report.steps, kind(1.0 + candidate.lr_v))
        return kind(2.0 + candidate.lr_v) if report.is_tested else None

    result = autolr.tune(train, out=tmp_path / "run", **{**SMALL, "trials": 2})
    assert all(r.losses == [pytest.approx(2.0 + r.candidate.lr_v, rel=1e-6)] for r in result.over_seeds)
    arrays = autolr.tune(training(kind=kind), out=tmp_path / "each", **{**SMALL, "trials": 2})
    assert all(len(r.losses) == len(EXAMPLES) for r in arrays.over_seeds)


@pytest.mark.parametrize("returned", ["15", {0: 1.0}, {1.0}, [[1.0, 2.0]], [], object(), b"1"])
def test_what_is_no_number_is_refused(tmp_path, returned):
    def train(candidate, report):
        report(report.steps, 1.0)
        return returned

    with pytest.raises(TypeError, match="one number or a list with one for each example"):
        autolr.tune(train, out=tmp_path / "run", **{**SMALL, "trials": 2})


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 2])
def test_an_example_without_a_loss_is_named(tmp_path, wrong, place):
    def train(candidate, report):
        report(report.steps, 1.0 + candidate.lr_v)
        losses = [1.0, 1.0, 1.0]
        losses[place] = wrong
        return losses

    with pytest.raises(RunError, match=rf"finalist 1 .*seed 1.* {wrong} as the loss of example {place} of 3"):
        autolr.tune(train, out=tmp_path / "run", **{**SMALL, "trials": 2})
    with pytest.raises(RunError, match=f"{wrong} as the loss of the mean"):
        autolr.tune(lambda c, r: (r(40, 1.0), wrong)[1], out=tmp_path / "mean", **{**SMALL, "trials": 2})
    with pytest.raises(TypeError, match=r"report\(40, 'low'\): the loss must be one number, not str"):
        autolr.tune(lambda c, r: r(40, "low"), out=tmp_path / "word", **{**SMALL, "trials": 2})


def test_a_repeat_that_diverges_is_as_bad_as_the_worst_and_said(tmp_path):
    def train(candidate, report):
        if report.is_tested and candidate.ratio == 1 and candidate.lr_v == 1e-3 and report.seed == 2:
            report(5, math.nan)
            return None
        return training(-1.0, shift=-5.0)(candidate, report)  # losses below 0, where 100 or 0 would be wrong

    result = autolr.tune(train, out=tmp_path / "run", **SMALL)
    highest = max(loss for trial in result.trials for loss in trial.curve)
    repeats = [r for r in result.over_seeds if r.diverged]
    assert len(repeats) == 1 and set(repeats[0].losses) == {highest} and highest < 0
    scores = result.recipe.evidence.scores
    assert [score.diverged for score in scores if "default" in score.label.split(" + ")] == [1]
    assert "1 of its trainings diverged" in result.recipe.evidence.verdict
    assert result.recipe.candidate.describe() != repeats[0].candidate.describe()
