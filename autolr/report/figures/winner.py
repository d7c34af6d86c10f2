"""The winner against the rules, with intervals."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from autolr.recipe import Interval
from autolr.report.figures.style import ACCENT, GREY, blank
from autolr.search.result import SearchResult


def gains(result: SearchResult) -> Any:
    """Confirm loss of every confirmed candidate above the winner's, with 90 % confidence intervals; None before."""
    evidence = result.recipe.evidence if result.recipe else None
    scores = [score for score in evidence.scores if score.gain is not None] if evidence else []
    if not scores:
        return None
    labels = [html.escape(score.label) for score in scores]
    hover = [html.escape(score.candidate.describe()) for score in scores]
    figure = intervals([s.gain for s in scores if s.gain], labels, "confirm loss above the winner's", hover)
    figure.update_layout(height=120 + 46 * len(scores))
    return figure


def intervals(found: Sequence[Interval], labels: Sequence[str], title: str, hover: Sequence[str] = ()) -> Any:
    """Estimates with their intervals, one under the other; labels and hover texts are HTML."""
    figure = blank(title, "")
    means = [interval.mean for interval in found]
    figure.add_scatter(
        x=means,
        y=list(labels),
        mode="markers",
        marker={"size": 10, "color": ACCENT},
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [interval.high - interval.mean for interval in found],
            "arrayminus": [interval.mean - interval.low for interval in found],
            "thickness": 2,
            "color": ACCENT,
        },
        text=list(hover or labels),
        hovertemplate="%{text}<br>%{x:+.4f}<extra></extra>",
    )
    figure.add_vline(x=0, line={"color": GREY, "dash": "dot"})
    figure.update_yaxes(autorange="reversed", automargin=True)
    return figure
