"""Recipes of real searches are judged by the oracle."""

from __future__ import annotations

import json
import sys

import pytest

from autolr.schema.candidate import Candidate
from studies.benchmarks.search_quality import fitted_surfaces, real_searches


def test_recipes_of_real_searches_are_judged_by_the_oracle(monkeypatch, small_study, tmp_path, capsys):
    monkeypatch.setattr(real_searches, "SENTIMENT", tmp_path / "study.yaml")
    few = {"baselines": ["default"], "budget": small_study.budget.model_copy(update={"trials": 4})}
    small_study.model_copy(update=few).save(real_searches.SENTIMENT)
    monkeypatch.setattr(fitted_surfaces, "oracle", lambda name: fitted_surfaces.crossing(0))
    words = ["real_searches.py", "--searches", "2", "--device", "cpu", "--out", str(tmp_path / "results")]
    words += ["--runs", str(tmp_path / "runs")]
    monkeypatch.setattr(sys, "argv", words)
    real_searches.main()
    (file,) = (tmp_path / "results").glob("repeats-*.json")
    result = json.loads(file.read_text())
    searches, finals, (rule,) = ([r for r in result["rows"] if r["kind"] == k] for k in ("search", "final", "rule"))
    surface = fitted_surfaces.crossing(0)
    for row in searches:
        found = Candidate(lr_v=row["lr_v"], ratio=row["ratio"], rank=row["rank"])
        assert row["excess_pct"] == pytest.approx(surface.excess(found), rel=0.02, abs=0.05)
    assert len(searches) == 2 and searches[0]["lr_v"] != searches[1]["lr_v"]  # another seed, another search
    for number, row in enumerate(searches, 1):
        own = {(one["lr_v"], one["rank"]): one for one in finals if one["seed"] == number}
        assert len(own) in (2, 3) and {one["label"] for one in own.values()} >= {"finalist 1"}
        winner = min(own.values(), key=lambda one: abs(one["lr_v"] / row["lr_v"] - 1))
        assert winner["lr_v"] == pytest.approx(row["lr_v"], rel=1e-3) and winner["excess_pct"] == row["excess_pct"]
        assert all(0 < one["validation_loss"] < one["trial_loss"] * 1.2 for one in own.values())
    assert rule["excess_pct"] == pytest.approx(surface.excess(surface.bounds.rule_candidate), abs=1e-3)
    assert result["figures"]["worst_excess_pct"] >= result["figures"]["median_excess_pct"]
