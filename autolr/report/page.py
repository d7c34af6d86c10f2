"""One self-contained HTML page about a search."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from autolr import display, documents
from autolr.report import data, figures
from autolr.report.figures import choices, influence, pruning, rates, resources, speed, style
from autolr.search import records
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
    verdict, _, more = (recipe.evidence.verdict if recipe and recipe.evidence else "").partition(". ")
    return fill(
        "page.html.j2",
        result=result,
        recipe=recipe,
        verdict=verdict.removesuffix(".") + "." if verdict else "",
        more=more,
        recipe_yaml=recipe.model_copy(update={"evidence": None}).to_yaml() if recipe else "",
        study_yaml=documents.to_yaml(result.study.model_dump(mode="json")),
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


def section(
    key: str, title: str, figure: Any, text: str, missing: str, headline: str | None = None
) -> dict[str, Any]:
    """Return a section of a page: a figure under a title and a text; where there is none, what is missing.

    Args:
        key: of the section in the page.
        title: above it.
        figure: Plotly's; None, or without marks: there is nothing to show.
        text: what the figure shows.
        missing: said instead.
        headline: what the figure says, in a sentence.
    """
    drawn = figure if figure is not None and figure.data else None
    return {
        "key": key,
        "title": title,
        "json": _in_script(drawn.to_json()) if drawn else None,
        "height": drawn.layout.height if drawn else None,
        "text": text if drawn else missing,
        "headline": headline if drawn else None,
    }


def _in_script(text: str) -> Markup:
    # "</script>" inside the JSON would end the script element.
    return Markup(text.replace("<", "\\u003c"))  # noqa: S704


def _sections(result: SearchResult) -> list[dict[str, Any]]:
    by_ratio = data.ratio_matters(result)
    climbed = pruning.climbed(result)
    fitted = rates.surface(result)
    colours = "coloured by λ" if by_ratio else "coloured by its rate (λ means nothing here)"
    bands = "an octave of λ" if by_ratio else "neighbouring rates"
    sections = [
        section(
            "convergence",
            "Convergence against ratio" if by_ratio else "Convergence",
            figures.convergence(result),
            f"Smoothed training loss of each trial, {colours}; dotted: baselines. A band holds the middle half "
            f"of the trials of {bands} that still train, so it steps where some were pruned. Diamonds: select loss "
            "at the rungs, of the averaged weights. A click on a band's name hides its trials.",
            "No trial has ended yet.",
        ),
        section(
            "steps",
            "Steps to target against λ",
            figures.steps_to_target(result),
            "How soon each trial reached the best training loss of the default baseline (λ=1), in units of its own "
            "steps: below the line it was faster. Hollow: not within its length; pruned trials had less of it. "
            "Diamonds: the compared candidates against the default's trainings, median and range of the seeds.",
            "The default baseline (λ=1) has not been tried in this search.",
            speed.headline(result),
        ),
        section(
            "map",
            "η_Q and η_V",
            figures.rate_map(result),
            "Trials by outcome, and lines of equal λ (dotted: the paper's 2, 4 and 8); "
            + (
                f"contours: the loss that the surrogate of all curves expects at a trial's end, for candidates like "
                f"{fitted.like.describe()}. Where it knows next to nothing it is left out."
                if fitted
                else "too few trials for the surrogate's contours."
            ),
            "No trial yet.",
        )
        if by_ratio
        else section(
            "rate",
            "The rate",
            figures.rate_effect(result),
            f"Select loss of each trial against its one rate. {_no_ratio(result)}",
            f"No trial has a score yet. {_no_ratio(result)}",
        ),
        section(
            "rank",
            "Effect of rank",
            figures.rank_effect(result),
            "Trials of each rank, brought to the last rung by the median change of those that went on, and their "
            "median; under a rank: what its adapters train, where the run tells. Diamonds: "
            + (
                "loss of the finalists at the end of the full run, on what is held out"
                if result.finals
                else "mean select loss of the confirmed"
            )
            + "; a bar is one standard error of the difference to the best, paired by "
            + ("example and step" if result.finals else "seed")
            + ". A bar that reaches the dashed line is as good as the best: of those the smallest rank is chosen.",
            "There is no rank: matrices are trained whole."
            if result.study.method.full
            else "No trial has a score yet.",
            choices.headline(result),
        ),
        *(
            section(
                name,
                f"Effect of the {title}",
                figures.effect(result, name),
                f"Trials of each {title}, and their median; diamonds: "
                f"{'the finalists, at the end of the full run' if result.finals else 'the confirmed'}.",
                "No trial has a score yet.",
            )
            for name, title in _choices(result.study).items()
        ),
        section(
            "ladder",
            "Ladder of rungs",
            figures.ladder(result),
            "The steps each trial took, and those it was spared; dotted lines are rungs.",
            "No trial has reached a rung yet.",
            climbed.describe() if climbed else None,
        ),
        section(
            "importance",
            "Importance of each dimension",
            figures.importance(result),
            "Share of the variance of expected losses over the space searched that a dimension decides: Sobol "
            "indices of a Gaussian process like the one that proposes candidates, fitted to the rungs of all trials. "
            "It learns from pruned trials as from finished ones; losses far above the middle count by their "
            "logarithm.",
            "Too few trials have a score yet.",
        ),
        section(
            "confirm",
            "Winner against the baselines",
            figures.gains(result),
            "Paired differences on the confirm split after the steps of a trial, over seeds and examples, with 90 % "
            "intervals. Right of the line the winner is better.",
            "The last stage is not through yet.",
        ),
        section(
            "cost",
            "Time, tokens, energy",
            figures.cost(result),
            "Device-seconds of each stage.",
            "No stage has ended yet.",
            resources.headline(result),
        ),
        section(
            "memory",
            "Memory of the slots over time",
            figures.memory(result),
            "Sampled once a second; pauses between sittings are left out. Above: memory in use, and its share for "
            "each slot at work; below: which training was in which slot.",
            "This run has no resources.parquet that can be read.",
        ),
        section(
            "foresight",
            "How well short trials predicted longer ones",
            figures.foresight(result),
            "Select losses of the same candidates early and late; ρ: Spearman's correlation of ranks. Only trials "
            "that finished can be compared: those whose early losses were bad enough to end them are not among them.",
            "No trial has finished yet.",
            influence.headline(result),
        ),
        section(
            "history",
            "Optimization history",
            figures.history(result),
            "The last score of each trial. Those of pruned trials come from an earlier rung.",
            "No trial has a score yet.",
        ),
    ]
    return [one for one in sections if by_ratio or one["key"] != "steps"]


def _no_ratio(result: SearchResult) -> str:
    return f"What this study trains ({', '.join(result.study.space.targets)}) has one rate, so λ means nothing here."


def _choices(study: Study) -> dict[str, str]:
    """Return what a study chooses from a list beside the rank, and what it is called."""
    shown: dict[str, tuple[str, Any]] = {
        "targets": ("matrices trained", study.space.targets),
        "kind": ("method", study.method.kind),
        "rho": ("ratio ρ of LoRA+", study.space.rho),
    }
    return {name: title for name, (title, values) in shown.items() if isinstance(values, list) and len(values) > 1}


def _train(result: SearchResult) -> dict[str, Any] | None:
    found = data.full_run(result)
    try:
        return {"confirm": found["confirm"], "best_step": found["best_step"], "steps": found["steps"]}
    except KeyError:
        return None
