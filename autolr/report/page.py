"""One self-contained HTML page about a search."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from autolr import display
from autolr.report import data
from autolr.report.figures import FIGURES, style
from autolr.report.figures.registry import Figure
from autolr.rundir import records
from autolr.rundir.result import SearchResult
from autolr.schema import yaml_io


def write_report(result: SearchResult, path: str | Path | None = None) -> Path:
    """Write the page of a search, finished or not.

    Args:
        result: the search.
        path: the file; None: `report.html` in the run folder.

    Returns:
        The file written.
    """
    target = Path(path) if path is not None else result.folder / "report.html"
    yaml_io.write_text(target, render(result))
    return target


def render(result: SearchResult) -> str:
    """Return the page as HTML; it loads nothing from anywhere."""
    recipe = result.recipe
    ended = result.ended()
    verdict, _, more = (recipe.evidence.verdict if recipe and recipe.evidence else "").partition(". ")
    return fill(
        "page.html.j2",
        result=result,
        recipe=recipe,
        verdict=verdict.removesuffix(".") + "." if verdict else "",
        more=more,
        recipe_yaml=recipe.model_copy(update={"evidence": None}).to_yaml() if recipe else "",
        study_yaml=yaml_io.to_yaml(result.study.model_dump(mode="json")),
        counts={name: sum(t.outcome == name for t in ended) for name in records.ENDED},
        ended=ended,
        by_ratio=data.ratio_matters(result),
        sections=_sections(result),
        train=_train(result),
        machine=data.machine(result),
    )


def fill(template: str, **values: Any) -> str:
    """Return a template filled with values, all of them escaped; it brings Plotly's own script."""
    environment = Environment(loader=PackageLoader("autolr.report", ""), autoescape=select_autoescape(default=True))
    environment.filters |= {"loss": display.loss, "gap": display.gap}
    values |= {"plotly": Markup(get_plotlyjs()), "themes": _in_script(json.dumps(style.THEMES))}  # noqa: S704
    return environment.get_template(template).render(**values)


def section(key: str, title: str, figure: Any, text: str, headline: str | None = None) -> dict[str, Any]:
    """Return a section of a page.

    Args:
        key: of the section in the page.
        title: above it.
        figure: Plotly's; None, or without marks: there is nothing to draw.
        text: what the figure shows, or why there is none.
        headline: what the figure says, in a sentence.
    """
    is_drawn = figure is not None and bool(figure.data)
    return {
        "key": key,
        "title": title,
        "json": _in_script(figure.to_json()) if is_drawn else None,
        "height": figure.layout.height if is_drawn else None,
        "text": text,
        "headline": headline,
    }


def _in_script(text: str) -> Markup:
    # "</script>" inside the JSON would end the script element.
    return Markup(text.replace("<", "\\u003c"))  # noqa: S704


def _sections(result: SearchResult) -> list[dict[str, Any]]:
    return [_section(figure, result) for figure in FIGURES.values() if figure.applies(result)]


def _section(figure: Figure, result: SearchResult) -> dict[str, Any]:
    drawn = figure.draw(result)
    text = figure.text if drawn else figure.missing
    headline = figure.headline(result) if figure.headline and drawn else None
    return section(figure.name, figure.title, drawn, text if isinstance(text, str) else text(result), headline)


def _train(result: SearchResult) -> dict[str, Any] | None:
    found = data.full_run(result)
    try:
        return {"test": found["test"], "best_step": found["best_step"], "steps": found["steps"]}
    except KeyError:
        return None
