"""Results show themselves in a notebook, and the example notebook runs."""

from __future__ import annotations

import json
from pathlib import Path

import nbformat
import plotly.graph_objects as go
import pytest
from nbclient import NotebookClient

import autolr
from autolr.errors import AutoLRError
from autolr.rundir.result import SearchResult
from autolr.tuner.run import search

NOTEBOOK = Path(__file__).resolve().parents[1] / "examples" / "search.ipynb"


@pytest.fixture(scope="module")
def finished(small_study, tmp_path_factory) -> SearchResult:
    return search(small_study, tmp_path_factory.mktemp("notebook") / "run", device="cpu")


def test_a_search_and_its_recipe_show_themselves(finished):
    shown = finished._repr_html_()
    assert f"9 of {finished.study.budget.trials}" in shown and "winner" in shown
    assert finished.recipe.rates.describe() in finished.recipe._repr_html_()
    unfinished = SearchResult(finished.folder, finished.study, finished.trials[:3], [], [], None)
    assert "not finished" in unfinished._repr_html_()
    evil = "<script>alert(1)</script>"
    recipe = finished.recipe.model_copy(update={"model": evil, "name": evil})
    assert "<script" not in recipe._repr_html_() and "&lt;script" in recipe._repr_html_()


def test_figures_by_name(finished):
    assert isinstance(autolr.figure(finished, "convergence"), go.Figure)  # which shows itself
    with pytest.raises(AutoLRError, match="choose one of convergence"):
        autolr.figure(finished, "pie")
    unfinished = SearchResult(finished.folder, finished.study, [], [], [], None)
    with pytest.raises(AutoLRError, match="nothing to show"):
        autolr.figure(unfinished, "baselines")


def test_the_example_notebook_runs(model_folders, reviews, tmp_path):
    book = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in book.cells)  # committed without outputs
    setting = next(cell for cell in book.cells if cell.source.startswith("import autolr"))
    setting.source = f"import autolr\nmodel, data, trials = {model_folders['bert']!r}, {reviews!r}, 5"
    NotebookClient(book, timeout=240, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    shown = [output.data for cell in book.cells for output in cell.get("outputs", []) if "data" in output]
    html = [data["text/html"] for data in shown if "text/html" in data]
    assert sum("test loss" in text for text in html) >= 2
    views = [text for text in html if text.startswith("<pre")]  # of the search, then of the comparison, at their ends
    assert len(views) == 2 and "seeds" in views[0] and "comparison 6/6" in views[1] and "best " in views[0]
    assert sum("application/vnd.plotly.v1+json" in data for data in shown) == 2
    assert len(json.dumps(nbformat.read(NOTEBOOK, as_version=4))) < 20_000
