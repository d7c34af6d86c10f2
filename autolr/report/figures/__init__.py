"""The figures of the report: search result in, plain numbers between, Plotly figure out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from autolr.errors import AutoLRError
from autolr.report.figures.choices import effect, kind_effect, rank_effect, targets_effect
from autolr.report.figures.influence import foresight, importance
from autolr.report.figures.pruning import history, ladder
from autolr.report.figures.rates import rate_effect, rate_map
from autolr.report.figures.resources import cost, memory
from autolr.report.figures.speed import convergence, steps_to_target
from autolr.report.figures.style import GREY
from autolr.report.figures.winner import gains, intervals
from autolr.search.result import SearchResult

# In the order of the page. Each returns None where the search has nothing for it.
FIGURES: dict[str, Callable[[SearchResult], Any]] = {
    "convergence": convergence,
    "steps_to_target": steps_to_target,
    "rate_map": rate_map,
    "rate_effect": rate_effect,
    "rank_effect": rank_effect,
    "targets_effect": targets_effect,
    "kind_effect": kind_effect,
    "ladder": ladder,
    "importance": importance,
    "gains": gains,
    "cost": cost,
    "memory": memory,
    "foresight": foresight,
    "history": history,
}

__all__ = [
    "FIGURES",
    "GREY",
    "convergence",
    "cost",
    "effect",
    "figure",
    "foresight",
    "gains",
    "history",
    "importance",
    "intervals",
    "kind_effect",
    "ladder",
    "memory",
    "rank_effect",
    "rate_effect",
    "rate_map",
    "steps_to_target",
    "targets_effect",
]


def figure(result: SearchResult, name: str) -> Any:
    """Return a figure of a search, which shows itself in a notebook.

    Args:
        result: the search.
        name: one of `FIGURES`, such as convergence, rate_map or gains.

    Raises:
        AutoLRError: there is no such figure, or the search has nothing for it yet.
    """
    if name not in FIGURES:
        raise AutoLRError(f"figure {name!r}: choose one of {', '.join(FIGURES)}")
    drawn = FIGURES[name](result)
    if drawn is None or not drawn.data:
        raise AutoLRError(f"{result.folder}: this search has nothing to show for {name} yet")
    return drawn
