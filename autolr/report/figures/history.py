"""The scores of trials in their order."""

from __future__ import annotations

import math

import plotly.graph_objects as go

from autolr.report.figures.registry import figure
from autolr.report.figures.style import ACCENT, add_trials, blank
from autolr.rundir.result import SearchResult


def best_so_far(result: SearchResult) -> list[tuple[int, float]]:
    """Return (trial number, best final score up to it) for each finished trial that improves on it."""
    best, found = math.inf, []
    for trial in result.trials:
        if trial.outcome == "finished" and trial.score is not None and trial.score < best:
            best = trial.score
            found.append((trial.number, best))
    return found


@figure(
    "history",
    "Optimization history",
    130,
    "The last score of each trial. Scores of pruned trials come from an earlier rung.",
    "No trial has a score yet.",
    look_for="the best score so far: still falling at the end means that more trials would help",
)
def history(result: SearchResult) -> go.Figure | None:
    """Last score of each trial in their order, and the best so far; None if no trial has a score."""
    scored = [trial for trial in result.trials if trial.score is not None]
    if not scored:
        return None
    drawn = blank("trial", "validation loss")
    add_trials(drawn, scored, lambda trial: trial.number, lambda trial: trial.score, "%{y:.4f}")
    best = best_so_far(result)
    if best:
        best = [*best, (max(trial.number for trial in result.trials), best[-1][1])]
        drawn.add_scatter(
            x=[number for number, _ in best],
            y=[score for _, score in best],
            mode="lines",
            name="best so far",
            showlegend=True,
            line={"shape": "hv", "color": ACCENT},
            hoverinfo="skip",
        )
    return drawn
