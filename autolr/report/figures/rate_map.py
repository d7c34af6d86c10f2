"""η_Q against η_V: the trials, and what the surrogate expects between them."""

from __future__ import annotations

import html
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go

from autolr.report import data
from autolr.report.figures.registry import figure
from autolr.report.figures.style import ACCENT, CARD, INK, SYMBOLS, add_trials, blank
from autolr.rundir.result import SearchResult
from autolr.schema.candidate import Candidate

PAPER_RATIOS = (2, 4, 8)
# Above this share of what was unknown before the search, the surrogate's guess is not drawn.
FAR = 0.9
# Of marks on the contours, which are the same by day and by night.
LIGHT = "#fdfdfd"


class Surface(NamedTuple):
    """Expected loss over the rates: `z[i][j]` at `x[j]` = lr_q, `y[i]` = lr_v; None where little is known.

    Attributes:
        like: the candidate whose rank, targets and method it is drawn for.
    """

    x: list[float]
    y: list[float]
    z: list[list[float | None]]
    like: Candidate


def surface(result: SearchResult, points: int = 60) -> Surface | None:
    """Return what the surrogate of all curves expects at the last rung; None with too few trials."""
    fitted = data.fit(result)
    if fitted is None or not {"lr_v", "ratio"} <= set(fitted.encoding.space):
        return None
    trials = [trial for trial in result.trials if trial.candidate.has_ratio]
    scores = data.comparable_scores(result)
    best = min((t for t in trials if t.number in scores), key=lambda t: scores[t.number], default=None)
    likes = [data.own_winner(result), best.candidate if best else None]
    like = next((one for one in likes if one is not None and one.has_ratio and fitted.knows(one)), None)
    if like is None:
        return None
    logs = np.log10([[trial.candidate.lr_q, trial.candidate.lr_v] for trial in trials])
    axes = [10 ** np.linspace(logs[:, i].min(), logs[:, i].max(), points) for i in (0, 1)]
    grid = [like.model_copy(update={"lr_v": float(v), "ratio": float(v / q)}) for v in axes[1] for q in axes[0]]
    at = fitted.points(grid)
    mean, _ = fitted.surrogate.predict(at)
    hidden = (fitted.surrogate.unknown(at) > FAR) | (at < -1e-6).any(1) | (at > 1 + 1e-6).any(1)
    z = [None if hide else round(float(loss), 5) for loss, hide in zip(mean, hidden, strict=True)]
    rows = [z[row * points : (row + 1) * points] for row in range(points)]
    return Surface(axes[0].tolist(), axes[1].tolist(), rows, like)


def _text(result: SearchResult) -> str:
    fitted = surface(result)
    lines = "Trials by outcome, and lines of equal λ (dotted: the paper's 2, 4 and 8)"
    if fitted is None:
        return f"{lines}; too few trials for the surrogate's contours."
    return (
        f"{lines}; contours: the loss that the surrogate of all curves expects at a trial's end, for candidates like "
        f"{fitted.like.describe()}. Regions of which it knows next to nothing are left out."
    )


@figure(
    "rate_map",
    "η_Q and η_V",
    30,
    _text,
    "No trial yet.",
    look_for="the contours: long in one direction means that this rate is nearly free. The winner at the rim of the "
    "space: widen it",
    applies=data.ratio_matters,
)
def rate_map(result: SearchResult) -> go.Figure | None:
    """η_Q against η_V: trials by outcome, contours of the surrogate, lines of equal λ; None without trials."""
    trials = [trial for trial in result.trials if trial.candidate.has_ratio]
    if not trials:
        return None
    drawn = blank("η_Q", "η_V", 520)
    drawn.update_xaxes(type="log", exponentformat="e", dtick="D2")
    drawn.update_yaxes(type="log", exponentformat="e", dtick="D2")
    fitted = surface(result)
    if fitted is not None:
        _add_surface(drawn, fitted)
    q, v = ([getattr(trial.candidate, name) for trial in trials] for name in ("lr_q", "lr_v"))
    for ratio in (1, *PAPER_RATIOS):
        ends = [max(min(q), min(v) / ratio), min(max(q), max(v) / ratio)]
        if ends[0] < ends[1]:
            _add_ratio(drawn, ratio, ends)
    add_trials(
        drawn,
        trials,
        lambda trial: trial.candidate.lr_q,
        lambda trial: trial.candidate.lr_v,
        "η_Q %{x:.2e}, η_V %{y:.2e}",
        {outcome: LIGHT if outcome != "diverged" else ACCENT for outcome in SYMBOLS},
        line={"color": "#222222", "width": 1.5},
    )
    best = data.own_winner(result)
    if best is not None and best.has_ratio:
        drawn.add_scatter(
            x=[best.lr_q],
            y=[best.lr_v],
            mode="markers",
            name="winner",
            showlegend=True,
            marker={"symbol": "star", "size": 18, "color": ACCENT, "line": {"color": LIGHT, "width": 1}},
            hovertemplate=html.escape(best.describe()) + "<extra>winner</extra>",
        )
    return drawn


def _add_surface(drawn: go.Figure, fitted: Surface) -> None:
    drawn.add_contour(
        x=fitted.x,
        y=fitted.y,
        z=fitted.z,
        name="expected loss",
        colorscale="Viridis",
        reversescale=True,
        opacity=0.85,
        ncontours=16,
        line={"width": 0.5},
        colorbar={"title": {"text": "loss"}, "thickness": 10, "outlinewidth": 0},
        hovertemplate="η_Q %{x:.2e}, η_V %{y:.2e}<br>expected loss %{z:.4f}<extra></extra>",
    )


def _add_ratio(drawn: go.Figure, ratio: int, ends: list[float]) -> None:
    """Add the line of one λ between two values of η_Q."""
    drawn.add_scatter(
        x=ends,
        y=[end * ratio for end in ends],
        mode="lines",
        line={"color": INK, "width": 1.2, "dash": "solid" if ratio == 1 else "dot"},
        name=f"λ={ratio}",
        showlegend=False,
        hoverinfo="skip",
    )
    drawn.add_annotation(
        x=float(np.log10(ends[1])),
        y=float(np.log10(ends[1] * ratio)),
        text=f"λ={ratio}",
        showarrow=False,
        font={"size": 11, "color": INK},
        bgcolor=CARD,
        opacity=0.85,
        xanchor="right",
        yanchor="bottom",
    )
