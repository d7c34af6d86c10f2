"""One self-contained HTML page about a search."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from autolr import documents
from autolr.report import data, figures
from autolr.search.result import SearchResult
from autolr.study import Study


def write_report(result: SearchResult, path: str | Path | None = None) -> Path:
    """Write the page of a search, finished or not.

    Args:
        result: the search.
        path: the file; None: `report.html` in the run folder.

    Returns:
        The file written.
    """
    target = Path(path) if path is not None else result.folder / "report.html"
    documents.write_text(target, render(result))
    return target


def render(result: SearchResult) -> str:
    """Return the page as HTML; it loads nothing from anywhere."""
    recipe = result.recipe
    ended = result.ended()
    return fill(
        "page.html.j2",
        result=result,
        recipe=recipe,
        recipe_yaml=recipe.model_copy(update={"evidence": None}).to_yaml() if recipe else "",
        study_yaml=documents.to_yaml(result.study.model_dump(mode="json")),
        counts={name: sum(t.outcome == name for t in ended) for name in ("finished", "pruned", "diverged")},
        ended=ended,
        sections=_sections(result),
        train=_train(result),
    )


def fill(template: str, **values: Any) -> str:
    """Return a template filled with values, all of them escaped; it brings Plotly's own script."""
    environment = Environment(loader=PackageLoader("autolr.report", ""), autoescape=select_autoescape(default=True))
    return environment.get_template(template).render(plotly=Markup(get_plotlyjs()), **values)  # noqa: S704


def _sections(result: SearchResult) -> list[dict[str, Any]]:
    target = figures.steps_to_target(result)
    gains = figures.gains(result)
    cost = figures.cost(result)
    surface = data.surface(result) is not None
    return [
        section(
            "convergence",
            "Convergence",
            figures.convergence(result) if data.curves(result) else None,
            "Smoothed training loss of each trial, coloured by λ; dotted: rules of thumb; diamonds: select "
            "loss at the rungs, of the averaged weights.",
            "No trial has ended yet.",
        ),
        section(
            "steps",
            "Steps to target against λ",
            target,
            "How soon each trial reached the best training loss of the λ=1 rule; hollow: not within its length.",
            "The λ=1 rule has not been tried in this search.",
        ),
        section(
            "map",
            "η_Q and η_V",
            figures.rate_map(result) if result.trials else None,
            "Trials by outcome"
            + (", and the loss a Gaussian process fits to them" if surface else "; too few for a fitted surface")
            + ". Scores of pruned trials are brought to the last rung by the median change of those that went on.",
            "No trial yet.",
        ),
        *(
            section(
                name,
                f"Effect of {title}",
                figures.effect(result, name) if data.comparable_scores(result) else None,
                f"Trials of each {title}, and their median.",
                "No trial has a score yet.",
            )
            for name, title in _choices(result.study).items()
        ),
        section(
            "history",
            "Optimization history",
            figures.history(result) if any(t.score is not None for t in result.trials) else None,
            "The last score of each trial. Those of pruned trials come from an earlier rung.",
            "No trial has a score yet.",
        ),
        section(
            "confirm",
            "Winner against the rules",
            gains,
            "Paired differences on the confirm split, over seeds and examples, with 90 % intervals. Right of "
            "the line the winner is better.",
            "The confirmation is not through yet.",
        ),
        section("cost", "Cost", cost, "Device-seconds of each phase.", "No phase has ended yet."),
    ]


def _choices(study: Study) -> dict[str, str]:
    """Return what a study chooses from a list, and what it is called; the rank is shown also where it is given."""
    shown = {
        "rank": ("rank", not study.method.full),
        "targets": ("set of matrices", len(study.space.targets) > 1),
        "kind": ("method", len(study.method.kind) > 1),
    }
    return {name: title for name, (title, wanted) in shown.items() if wanted}


def section(key: str, title: str, figure: Any, text: str, missing: str) -> dict[str, Any]:
    """Return a section of a page: a figure under a title and a text; where there is none, what is missing."""
    content = None
    if figure is not None:
        # "</script>" inside the JSON would end the script element.
        content = Markup(figure.to_json().replace("<", "\\u003c"))  # noqa: S704
    return {"key": key, "title": title, "json": content, "text": text if content else missing}


def _train(result: SearchResult) -> dict[str, Any] | None:
    try:
        found = json.loads((result.folder / "train" / "metrics.json").read_text(encoding="utf-8"))
        return {"confirm": found["confirm"], "best_step": found["best_step"], "steps": found["steps"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None
