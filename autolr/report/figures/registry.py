"""The registry of figures: one decorator gives a figure its name, its section of the page and its row in the docs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from autolr.rundir.result import SearchResult

Draw = Callable[[SearchResult], Any]
# A sentence, or what makes it from a search.
Text = str | Callable[[SearchResult], str]


@dataclass(frozen=True)
class Figure:
    """A figure of the report.

    Attributes:
        name: in `autolr.figure(result, name)`, of its picture, and of its section's anchor.
        title: above it.
        order: its place on the page; lower is higher.
        plot: returns Plotly's figure, or None if the search has nothing to show.
        text: what the figure shows.
        missing: what the page says instead, if there is nothing to show.
        look_for: what a reader learns from it, for the docs.
        headline: returns what this search's figure says, in a sentence.
        applies: returns False if the figure means nothing for such a search; the page then has no section for it.
    """

    name: str
    title: str
    order: int
    plot: Draw
    text: Text
    missing: Text
    look_for: str
    headline: Callable[[SearchResult], str | None] | None
    applies: Callable[[SearchResult], bool]

    def draw(self, result: SearchResult) -> Any:
        """Return Plotly's figure; None if the search has nothing to show for it."""
        drawn = self.plot(result) if self.applies(result) else None
        return drawn if drawn is not None and drawn.data else None


REGISTERED: dict[str, Figure] = {}


def figure(
    name: str,
    title: str,
    order: int,
    text: Text,
    missing: Text,
    *,
    look_for: str,
    headline: Callable[[SearchResult], str | None] | None = None,
    applies: Callable[[SearchResult], bool] = lambda result: True,
) -> Callable[[Draw], Draw]:
    """Return a decorator that registers the function it decorates; see `Figure` for the arguments."""

    def register(plot: Draw) -> Draw:
        REGISTERED[name] = Figure(name, title, order, plot, text, missing, look_for, headline, applies)
        return plot

    return register
