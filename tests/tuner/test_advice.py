"""Predictions hold what a new trial scores, and are refused where nothing is known."""

from __future__ import annotations

import math

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from autolr.errors import RunError
from autolr.rundir.folder import RunFolder
from autolr.rundir.result import SearchResult
from autolr.schema.candidate import Candidate
from autolr.tuner.advice import predict
from tests.tuner.test_sampler import RUNGS, SPACE, loss

NOISE = 0.004


@pytest.fixture(scope="module")
def searched(small_study, tmp_path_factory) -> SearchResult:
    """A run folder whose trials saw a bowl; half of them ended at the first rung. None was beyond λ = 12."""
    folder = RunFolder(tmp_path_factory.mktemp("searched") / "run")
    folder.open(small_study)
    study = optuna.create_study(study_name="bowl", storage=folder.storage())
    rng = np.random.default_rng(0)
    for number in range(48):
        low, high = np.log([SPACE["lr_v"].low, SPACE["lr_v"].high])
        params = {
            "lr_v": float(np.exp(rng.uniform(low, high))),
            "ratio": float(np.exp(rng.uniform(math.log(0.5), math.log(12)))),
            "rank": int(rng.choice([4, 8, 16])),
        }
        study.enqueue_trial(params)
        trial = study.ask(SPACE)
        for rung in RUNGS[: 1 if number % 2 else 3]:
            trial.report(loss(params, rung) + NOISE * rng.standard_normal(), rung)
        trial.set_user_attr("outcome", "pruned" if number % 2 else "finished")
        study.tell(trial, state=TrialState.PRUNED) if number % 2 else study.tell(trial, loss(params, RUNGS[-1]))
    return SearchResult.load(folder.path)


def test_the_interval_holds_new_trials(searched):
    rng = np.random.default_rng(1)
    held, off = 0, []
    for _ in range(60):
        candidate = Candidate(
            lr_v=float(np.exp(rng.uniform(np.log(1e-3), np.log(1e-2)))),
            ratio=float(np.exp(rng.uniform(0, math.log(8)))),
            rank=int(rng.choice([4, 8, 16])),
        )
        found = predict(searched, candidate)
        truth = loss(candidate.model_dump(), RUNGS[-1])
        held += found.low <= truth + NOISE * rng.standard_normal() <= found.high
        off.append(abs(found.loss - truth))
        assert found.low < found.loss < found.high
        assert found.step == RUNGS[-1]
    assert held >= 48
    assert np.median(off) < NOISE


@pytest.mark.parametrize(
    ("candidate", "said"),
    [
        (Candidate(lr_v=1.0, ratio=1, rank=8), "lr_v 1 is outside"),
        (Candidate(lr_v=2e-3, ratio=1, rank=64), "rank 64 is outside the searched range, 4 to 16"),
        (Candidate(lr_v=2e-3, ratio=1, rank=8, targets="qkv"), "was not searched, only qv"),
    ],
)
def test_what_was_not_searched_is_refused(searched, candidate, said):
    with pytest.raises(RunError, match=said):
        predict(searched, candidate)


def test_a_search_that_has_hardly_begun_is_refused(small_study, tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.open(small_study)
    with pytest.raises(RunError, match="0 trials have a score"):
        predict(SearchResult.load(folder.path), Candidate(lr_v=2e-3, ratio=1, rank=8))


def test_far_from_all_that_was_tried_is_refused(small_study, tmp_path):
    """All trials lie in one corner; the other one is inside the space, and unknown."""
    folder = RunFolder(tmp_path / "run")
    folder.open(small_study)
    study = optuna.create_study(study_name="corner", storage=folder.storage())
    rng = np.random.default_rng(0)
    for _ in range(12):
        lr_v, ratio = 2e-4 * (1 + rng.random()), 0.5 + 0.2 * rng.random()
        study.enqueue_trial({"lr_v": lr_v, "ratio": ratio, "rank": 4})
        trial = study.ask(SPACE)
        value = 0.5 + 0.05 * math.log(lr_v / 2e-4) + 0.1 * ratio + 0.001 * rng.standard_normal()
        trial.report(value, 8)
        study.tell(trial, value)
    with pytest.raises(RunError, match="far from all tried candidates"):
        predict(SearchResult.load(folder.path), Candidate(lr_v=2e-2, ratio=32, rank=16))
