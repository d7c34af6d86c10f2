"""A page that is whole, safe and alone."""

from __future__ import annotations

import re

import pytest

import autolr
from autolr.report.figures import FIGURES
from autolr.report.page import render
from autolr.rundir.result import SearchResult
from autolr.tuner.run import search
from tests.report import made


@pytest.fixture(scope="module")
def finished(small_study, tmp_path_factory) -> SearchResult:
    return search(small_study, tmp_path_factory.mktemp("report") / "run", device="cpu")


def test_the_page_is_whole_and_loads_nothing(finished):
    page = render(finished)
    wanted = [name for name in FIGURES if FIGURES[name].applies(finished)]
    assert len(wanted) == 11 and "rate_effect" not in wanted and "targets_effect" not in wanted
    places = [page.index(f'id="figure-{section}"') for section in wanted]
    assert places == sorted(places) and page.index("<h1>") < page.index('id="recipe"') < places[0]
    assert "Plotly.react" in page
    assert finished.recipe.evidence.verdict.split(" ")[0] in page
    assert not re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=(?!\"data:)", page)
    assert len(page) < 6_000_000
    gains = autolr.figure(finished, "baselines")
    expected = [s.gain.mean for s in finished.recipe.evidence.scores if s.gain]
    assert list(gains.data[0].x) == expected


def test_hostile_names_stay_text(finished):
    evil = "</script><img src=x onerror=alert(1)>"
    trials = [t.model_copy(update={"baseline": evil}) for t in finished.trials]
    recipe = finished.recipe.model_copy(update={"model": evil, "name": evil})
    page = render(SearchResult(finished.folder, finished.study, trials, finished.over_seeds, finished.phases, recipe))
    assert "<img src=x" not in page
    assert page.count("</script>") == render(finished).count("</script>")


@pytest.mark.parametrize("kept", [0, 1, 5])
def test_an_unfinished_search_has_a_page(finished, kept):
    part = SearchResult(finished.folder.parent, finished.study, finished.trials[:kept], [], [], None)
    page = render(part)
    assert "This search is not finished" in page
    assert "The last stage is not finished yet" in page


def test_the_verdict_comes_first_and_its_details_after(tmp_path):
    page = render(made.searched(tmp_path))
    heading = re.search(r"<h1>(.*?)</h1>", page, re.S)[1]
    assert "interval" in heading and heading.endswith(".") and heading.count(". ") == 0
    assert "The ratio by itself" in page.partition("</h1>")[2].partition("</p>")[0]


def test_no_section_shows_a_ratio_that_means_nothing(tmp_path):
    page = render(made.searched(tmp_path, targets="vo"))
    text = re.sub(r"<script.*?</script>", "", page, flags=re.S)
    assert text.count("has one rate, so λ means nothing here") == 1 and 'id="figure-rate_effect"' in text
    assert "λ=" not in text and "against λ" not in text and "ratio λ</span>" not in text
    assert 'id="steps_to_target"' not in text and 'id="figure-rate_map"' not in text


def test_every_text_of_the_user_is_escaped(tmp_path):
    evil = "</script><img src=x onerror=alert(1)>\u2028'\"{{ 7*7 }}"
    whole = made.searched(tmp_path / evil.replace("/", "_"))
    study = whole.study.model_copy(
        update={"model": evil, "data": whole.study.data.model_copy(update={"source": evil})}
    )
    recipe = whole.recipe.model_copy(update={"classes": [evil, "b"], "versions": {evil: evil}, "commit": evil})
    scores = [score.model_copy(update={"label": evil}) for score in recipe.evidence.scores]
    recipe = recipe.model_copy(
        update={"evidence": recipe.evidence.model_copy(update={"scores": scores, "verdict": evil})}
    )
    phases = [phase.model_copy(update={"phase": evil}) for phase in whole.phases]
    repeats = [one.model_copy(update={"label": evil}) for one in whole.over_seeds]
    trials = [one.model_copy(update={"baseline": evil}) for one in whole.trials]
    page = render(SearchResult(whole.folder, study, trials, repeats, phases, recipe))
    assert "<img src=x" not in page and "{{ 7*7 }}" in page
    assert page.count("</script>") == render(whole).count("</script>")


def test_the_page_of_200_trials_is_small(tmp_path):
    assert len(render(made.searched(tmp_path, 200)).encode()) < 6_000_000
