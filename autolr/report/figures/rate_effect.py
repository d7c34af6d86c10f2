"""Score against the one rate there is, if λ means nothing."""

from __future__ import annotations

import plotly.graph_objects as go

from autolr.report import data
from autolr.report.figures.registry import figure
from autolr.report.figures.style import ACCENT, GREY, OUTCOMES, add_trials, blank
from autolr.rundir.result import SearchResult


def _one_rate(result: SearchResult) -> str:
    return f"What this study trains ({', '.join(result.study.space.targets)}) has one rate, so λ means nothing here."


@figure(
    "rate_effect",
    "The rate",
    31,
    lambda result: f"Select loss of each trial against its one rate. {_one_rate(result)}",
    lambda result: f"No trial has a score yet. {_one_rate(result)}",
    look_for="if what is trained has one rate, in place of the two figures above: the rate with the lowest loss",
    applies=lambda result: not data.ratio_matters(result),
)
def rate_effect(result: SearchResult) -> go.Figure | None:
    """Score against the one rate there is; None if no trial has a score."""
    scores = data.comparable_scores(result)
    trials = [trial for trial in result.trials if trial.number in scores]
    drawn = blank("learning rate", "validation loss, brought to the last rung")
    drawn.update_xaxes(type="log", exponentformat="e", dtick="D2")
    colours = {outcome: ACCENT if outcome == "finished" else GREY for outcome in OUTCOMES}
    add_trials(drawn, trials, lambda t: t.candidate.rate, lambda t: scores[t.number], "%{y:.4f}", colours)
    return drawn
