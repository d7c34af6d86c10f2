"""Figures' numbers, and a page that is whole, safe and alone."""

from __future__ import annotations

import re

import numpy as np
import pytest

from autolr.candidate import Candidate
from autolr.report import data, figures
from autolr.report.page import render
from autolr.search.records import TrialRecord
from autolr.search.result import SearchResult
from autolr.search.run import search
from autolr.study import Study


def trial(number: int, curve=(), lr_v=1e-3, ratio=1.0, **fields) -> TrialRecord:
    candidate = Candidate(lr_v=lr_v, ratio=ratio, rank=8)
    return TrialRecord(number=number, candidate=candidate, curve=list(curve), **{"outcome": "finished", **fields})


def result(tmp_path, *trials, **fields) -> SearchResult:
    study = Study(model="m", data="d")
    return SearchResult(
        tmp_path, **{"study": study, "trials": list(trials), "repeats": [], "phases": [], "recipe": None, **fields}
    )


def test_steps_to_target_in_units_of_the_rule(tmp_path):
    slow = np.linspace(1, 0, 100)
    fast = np.linspace(1, -1, 100)
    found = data.steps_to_target(
        result(tmp_path, trial(0, slow, rule="rule"), trial(1, fast, ratio=8), trial(2, [1.0] * 100, ratio=2))
    )
    assert found is not None
    _, rows = found
    assert rows[0].fraction == 1
    assert rows[1].fraction == pytest.approx(0.5, abs=0.06)
    assert rows[2].fraction is None
    assert data.steps_to_target(result(tmp_path, trial(0, slow))) is None


def test_scores_of_pruned_trials_are_brought_to_the_last_rung(tmp_path):
    found = data.comparable_scores(
        result(
            tmp_path,
            trial(0, rungs={10: 0.6, 20: 0.4}),
            trial(1, rungs={10: 0.7, 20: 0.5}),
            trial(2, rungs={10: 0.8}, outcome="pruned"),
            trial(3, rungs={10: 0.1}, outcome="diverged"),
        )
    )
    assert found == pytest.approx({0: 0.4, 1: 0.5, 2: 0.6})


def test_the_surface_finds_the_valley(tmp_path):
    rng = np.random.default_rng(0)
    trials = []
    for number in range(40):
        lr_v, lr_q = 10 ** rng.uniform(-4, -2, 2)
        loss = 0.4 + 0.1 * (np.log10(lr_v) + 2.8) ** 2 + 0.02 * (np.log10(lr_q) + 3.5) ** 2
        trials.append(trial(number, lr_v=lr_v, ratio=lr_v / lr_q, rungs={20: loss}, score=loss))
    surface = data.surface(result(tmp_path, *trials))
    assert surface is not None
    z = np.array(surface.z)
    row, _ = np.unravel_index(z.argmin(), z.shape)
    assert np.log10(surface.y[row]) == pytest.approx(-2.8, abs=0.2)
    assert data.surface(result(tmp_path, *trials[:4])) is None


@pytest.fixture(scope="module")
def finished(small_study, tmp_path_factory) -> SearchResult:
    return search(small_study, tmp_path_factory.mktemp("report") / "run", device="cpu")


def test_the_page_is_whole_and_loads_nothing(finished):
    page = render(finished)
    for section in ("convergence", "steps", "map", "rank", "history", "confirm", "cost"):
        assert f'id="figure-{section}"' in page
    assert "Plotly.newPlot" in page
    assert finished.recipe.evidence.verdict.split(" ")[0] in page
    assert not re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=", page)
    assert len(page) < 6_000_000
    gains = figures.gains(finished)
    expected = [s.gain.mean for s in finished.recipe.evidence.scores if s.gain]
    assert list(gains.data[0].x) == expected


def test_hostile_names_stay_text(finished):
    evil = "</script><img src=x onerror=alert(1)>"
    trials = [t.model_copy(update={"rule": evil}) for t in finished.trials]
    recipe = finished.recipe.model_copy(update={"model": evil, "name": evil})
    page = render(SearchResult(finished.folder, finished.study, trials, finished.repeats, finished.phases, recipe))
    assert "<img src=x" not in page
    assert page.count("</script>") == render(finished).count("</script>")


@pytest.mark.parametrize("kept", [0, 1, 5])
def test_an_unfinished_search_has_a_page(finished, kept):
    part = SearchResult(finished.folder.parent, finished.study, finished.trials[:kept], [], [], None)
    page = render(part)
    assert "This search is not finished" in page
    assert "The confirmation is not through yet" in page
