"""The figures of the report, one a file: search result in, plain numbers between, Plotly figure out.

A new figure is a file with a function under `@figure(...)`, and its name in the list below.
"""

from __future__ import annotations

from typing import Any

from autolr.errors import AutoLRError
from autolr.report.figures import (  # noqa: F401  (each registers its figure)
    baselines,
    choice_effect,
    convergence,
    cost,
    early_vs_late,
    history,
    importance,
    memory,
    pruning_timeline,
    rate_effect,
    rate_map,
    steps_to_target,
)
from autolr.report.figures.registry import REGISTERED
from autolr.rundir.result import SearchResult

# In the order of the page.
FIGURES = {one.name: one for one in sorted(REGISTERED.values(), key=lambda one: one.order)}


def figure(result: SearchResult, name: str) -> Any:
    """Return a figure of a search, which shows itself in a notebook.

    Args:
        result: the search.
        name: one of `FIGURES`, such as convergence, rate_map or baselines.

    Raises:
        AutoLRError: there is no such figure, or the search has nothing for it yet.
    """
    if name not in FIGURES:
        raise AutoLRError(f"figure {name!r}: choose one of {', '.join(FIGURES)}")
    drawn = FIGURES[name].draw(result)
    if drawn is None:
        raise AutoLRError(f"{result.folder}: this search has nothing to show for {name} yet")
    return drawn
