"""An example without a finite loss: that training has diverged, in trials and in the confirmation, and no other."""

from __future__ import annotations

import math

import pytest

from autolr.pack.pack import Pack
from autolr.schema.study import Study
from autolr.tuner.execute import trials
from autolr.tuner.run import search


@pytest.fixture
def study(small_study) -> Study:
    content = small_study.model_dump(mode="json")
    content["space"] |= {"lr_v": [1e-3, 1e-2], "ratio": [1, 4], "rank": [2]}
    return Study.model_validate({**content, "budget": {"trials": 4}, "baselines": ["default"]})


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_of_one_candidate(study, tmp_path, monkeypatch, wrong):
    own = Pack.evaluate

    def evaluate(self, slots, data, **options):
        losses, said = own(self, slots, data, **options)
        for place, slot in enumerate(slots):
            if slot.config.rates["v"] == 1e-2 and slot.config.rates["q"] == 1e-2:
                losses[place, 3] = wrong
        return losses, said

    monkeypatch.setattr(Pack, "evaluate", evaluate)
    reasons, said = [], trials.Trials._reason
    monkeypatch.setattr(trials.Trials, "_reason", lambda *given: reasons.append(said(*given)) or reasons[-1])
    result = search(study, tmp_path / "run", device="cpu")
    bad = [trial for trial in result.ended() if trial.candidate.lr_v == 1e-2 and trial.candidate.ratio == 1]
    assert [trial.outcome for trial in bad] == ["diverged"] and bad[0].score is None
    assert "example 3 of those held out had no finite loss at step 4" in reasons
    others = [trial for trial in result.ended() if trial not in bad]
    assert others and all(trial.outcome in ("finished", "pruned") for trial in others)
    assert not any(record.diverged for record in result.over_seeds)


def test_in_the_confirmation(study, tmp_path, monkeypatch):
    own = Pack.evaluate

    def evaluate(self, slots, data, **options):
        losses, said = own(self, slots, data, **options)
        for place, slot in enumerate(slots):
            if slot.config.seed == 1:
                losses[place, 0] = math.nan
        return losses, said

    monkeypatch.setattr(Pack, "evaluate", evaluate)
    result = search(study, tmp_path / "run", device="cpu")
    assert {record.seed: record.diverged for record in result.over_seeds} == {1: True, 2: False}
    for record in result.over_seeds:
        others = max(record.losses[1:])
        assert all(map(math.isfinite, record.losses)) and record.losses[0] < 10 * others
    assert all(score.diverged == 1 for score in result.recipe.evidence.scores)
    assert "1 of its trainings diverged" in result.recipe.evidence.verdict
