"""The winner against the baselines, with intervals."""

from __future__ import annotations

import html

import plotly.graph_objects as go

from autolr.report.figures.registry import figure
from autolr.report.figures.style import add_intervals, blank
from autolr.rundir.result import SearchResult


@figure(
    "baselines",
    "Winner against the baselines",
    90,
    "Paired differences on the test split after the steps of a trial, over seeds and examples, with 90 % "
    "intervals. Right of the line the winner is better.",
    "The last stage is not finished yet.",
    look_for="the verdict as intervals: right of the line the winner is better",
)
def baselines(result: SearchResult) -> go.Figure | None:
    """Test loss of every compared candidate above the winner's, with 90 % intervals; None before there are."""
    evidence = result.recipe.evidence if result.recipe else None
    scores = [(score, score.gain) for score in evidence.scores if score.gain is not None] if evidence else []
    if not scores:
        return None
    drawn = blank("test loss above the winner's", "", 120 + 46 * len(scores))
    labels = [html.escape(score.label) for score, _ in scores]
    add_intervals(
        drawn, [gain for _, gain in scores], labels, [html.escape(s.candidate.describe()) for s, _ in scores]
    )
    return drawn
