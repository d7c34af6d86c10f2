"""The figures of the report: search result in, Plotly figure out."""

from __future__ import annotations

import html
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import plotly.graph_objects as go

from autolr.errors import AutoLRError
from autolr.recipe import Interval
from autolr.report import data
from autolr.search.records import TrialRecord
from autolr.search.result import SearchResult

SYMBOLS = {
    "finished": "circle",
    "pruned": "x",
    "diverged": "triangle-up",
    "interrupted": "square",
    "running": "diamond",
}
SCALE = "Viridis"
GREY = "#8a8f98"
ACCENT = "#d1495b"
PAPER_RATIOS = (2, 4, 8)


def figure(result: SearchResult, name: str) -> go.Figure:
    """Return a figure of a search, which shows itself in a notebook.

    Args:
        result: the search.
        name: convergence, steps_to_target, rate_map, rank_effect, history, gains or cost.

    Raises:
        AutoLRError: there is no such figure, or the search has nothing for it yet.
    """
    if name not in FIGURES:
        raise AutoLRError(f"figure {name!r}: choose one of {', '.join(FIGURES)}")
    drawn = FIGURES[name](result)
    if drawn is None or not drawn.data:
        raise AutoLRError(f"{result.folder}: this search has nothing to show for {name} yet")
    return drawn


def convergence(result: SearchResult) -> go.Figure:
    """Training loss against step, a line for each trial coloured by λ; markers are rung scores."""
    curves = data.curves(result)
    figure = _figure("step", "loss")
    logs = [float(np.log10(curve.trial.candidate.ratio)) for curve in curves] or [0.0]
    low, high = min(logs), max(max(logs), min(logs) + 1e-9)
    for curve, log in zip(curves, logs, strict=False):
        colour = _colour((log - low) / (high - low))
        name = describe(curve.trial)
        line = {"color": colour, "width": 3 if curve.trial.rule else 1.5}
        if curve.trial.rule:
            line["dash"] = "dot"
        hover = f"{name}<br>step %{{x}}, loss %{{y:.4f}}<extra></extra>"
        figure.add_scatter(x=curve.steps, y=curve.losses, mode="lines", line=line, hovertemplate=hover, name=name)
        rungs = sorted(curve.trial.rungs)
        figure.add_scatter(
            x=rungs,
            y=[curve.trial.rungs[rung] for rung in rungs],
            mode="markers",
            marker={"color": colour, "size": 7, "symbol": "diamond"},
            hovertemplate=f"{name}<br>select loss at rung %{{x}}: %{{y:.4f}}<extra></extra>",
        )
    if curves:
        ticks = np.linspace(low, high, 5) if high - low > 1e-6 else [low]
        figure.add_scatter(
            x=[None],
            y=[None],
            mode="markers",
            marker={
                "color": [low],
                "cmin": low,
                "cmax": high,
                "colorscale": SCALE,
                "showscale": True,
                "colorbar": {
                    "title": {"text": "λ"},
                    "thickness": 12,
                    "tickvals": list(ticks),
                    "ticktext": [f"{10**tick:.2g}" for tick in ticks],
                },
            },
            hoverinfo="skip",
        )
    return figure


def steps_to_target(result: SearchResult) -> go.Figure | None:
    """Steps to the rule's best loss, in units of the rule's own, against λ; None without a rule."""
    found = data.steps_to_target(result)
    if found is None:
        return None
    target, rows = found
    figure = _figure("λ = η_V / η_Q", f"steps to loss {target:.3f}, rule = 1")
    ticks = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100]
    figure.update_xaxes(type="log", tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks])
    reached = [row for row in rows if row.fraction is not None]
    missed = [row for row in rows if row.fraction is None]
    top = 1.15 * max([row.fraction or 0 for row in reached] + [1.0])
    for group, heights, marker in (
        (reached, [row.fraction for row in reached], {"color": ACCENT, "size": 9}),
        (missed, [top] * len(missed), {"color": GREY, "size": 9, "symbol": "circle-open"}),
    ):
        figure.add_scatter(
            x=[row.trial.candidate.ratio for row in group],
            y=heights,
            mode="markers",
            marker=marker,
            text=[describe(row.trial) for row in group],
            hovertemplate="%{text}<br>"
            + ("%{y:.2f} of the rule's steps" if group is reached else "not reached")
            + "<extra></extra>",
        )
    figure.add_hline(y=1, line={"color": GREY, "dash": "dot"})
    figure.add_vline(x=1, line={"color": GREY, "dash": "dot"})
    return figure


def rate_map(result: SearchResult) -> go.Figure:
    """η_Q against η_V: the trials, a surface fitted to their scores, and lines of equal λ."""
    figure = _figure("η_Q", "η_V")
    figure.update_xaxes(type="log", exponentformat="e", dtick="D2")
    figure.update_yaxes(type="log", exponentformat="e", dtick="D2")
    fitted = data.surface(result)
    if fitted is not None:
        figure.add_contour(
            x=fitted.x,
            y=fitted.y,
            z=fitted.z,
            colorscale=SCALE,
            reversescale=True,
            opacity=0.75,
            ncontours=14,
            line={"width": 0.5},
            colorbar={"title": {"text": "loss"}, "thickness": 12},
            hovertemplate="η_Q %{x:.2e}, η_V %{y:.2e}<br>fitted loss %{z:.4f}<extra></extra>",
        )
    trials = [trial for trial in result.trials if trial.candidate.targets in result.study.space.targets]
    if trials:
        q = [trial.candidate.lr_q for trial in trials]
        v = [trial.candidate.lr_v for trial in trials]
        for ratio in (1, *PAPER_RATIOS):
            ends = [max(min(q), min(v) / ratio), min(max(q), max(v) / ratio)]
            if ends[0] < ends[1]:
                figure.add_scatter(
                    x=ends,
                    y=[end * ratio for end in ends],
                    mode="lines+text",
                    text=["", f"λ={ratio}"],
                    textposition="bottom left",
                    line={"color": "#ffffff" if fitted else GREY, "width": 1, "dash": "dot"},
                    textfont={"color": "#ffffff" if fitted else GREY},
                    hoverinfo="skip",
                )
    for outcome, group in _by_outcome(trials).items():
        figure.add_scatter(
            x=[trial.candidate.lr_q for trial in group],
            y=[trial.candidate.lr_v for trial in group],
            mode="markers",
            name=outcome,
            showlegend=True,
            marker={
                "symbol": SYMBOLS[outcome],
                "size": 10,
                "color": "#ffffff",
                "line": {"color": "#1b1f24", "width": 1.5},
            },
            text=[describe(trial) for trial in group],
            hovertemplate="%{text}<extra></extra>",
        )
    if result.recipe is not None:
        best = result.recipe.candidate
        figure.add_scatter(
            x=[best.lr_q],
            y=[best.lr_v],
            mode="markers",
            name="recipe",
            showlegend=True,
            marker={"symbol": "star", "size": 18, "color": ACCENT, "line": {"color": "#ffffff", "width": 1}},
            hovertemplate=html.escape(best.describe()) + "<extra>recipe</extra>",
        )
    figure.update_layout(legend={"orientation": "h", "y": 1.08})
    return figure


def effect(result: SearchResult, name: str) -> go.Figure:
    """Score against a choice such as the rank: every trial, and the median of each value."""
    scores = data.comparable_scores(result)
    figure = _figure(name, "select loss, brought to the last rung")
    groups: dict[Any, list[TrialRecord]] = defaultdict(list)
    for trial in result.trials:
        if trial.number in scores:
            groups[getattr(trial.candidate, name)].append(trial)
    for value, group in sorted(groups.items()):
        figure.add_scatter(
            x=[str(value)] * len(group),
            y=[scores[trial.number] for trial in group],
            mode="markers",
            marker={"color": GREY, "size": 8, "opacity": 0.7},
            text=[describe(trial) for trial in group],
            hovertemplate="%{text}<extra></extra>",
        )
    values = [str(value) for value in sorted(groups)]
    figure.add_scatter(
        x=values,
        y=[float(np.median([scores[trial.number] for trial in groups[value]])) for value in sorted(groups)],
        mode="lines+markers",
        marker={"symbol": "line-ew-open", "size": 26, "color": ACCENT, "line": {"width": 3}},
        line={"color": ACCENT, "width": 1, "dash": "dot"},
        hovertemplate="median %{y:.4f}<extra></extra>",
    )
    figure.update_xaxes(type="category", categoryorder="array", categoryarray=values)
    return figure


def history(result: SearchResult) -> go.Figure:
    """Last score of each trial in their order, and the best so far."""
    figure = _figure("trial", "select loss")
    for outcome, group in _by_outcome([t for t in result.trials if t.score is not None]).items():
        figure.add_scatter(
            x=[trial.number for trial in group],
            y=[trial.score for trial in group],
            mode="markers",
            name=outcome,
            showlegend=True,
            marker={
                "symbol": SYMBOLS[outcome],
                "size": 9,
                "color": ACCENT if outcome == "finished" else GREY,
            },
            text=[describe(trial) for trial in group],
            hovertemplate="%{text}<br>%{y:.4f}<extra></extra>",
        )
    best = data.best_so_far(result)
    if best:
        best = [*best, (max(trial.number for trial in result.trials), best[-1][1])]
        figure.add_scatter(
            x=[number for number, _ in best],
            y=[score for _, score in best],
            mode="lines",
            name="best so far",
            showlegend=True,
            line={"shape": "hv", "color": ACCENT},
            hoverinfo="skip",
        )
    figure.update_layout(legend={"orientation": "h", "y": 1.08})
    return figure


def gains(result: SearchResult) -> go.Figure | None:
    """Confirm loss of every confirmed candidate above the winner's, with 90 % intervals."""
    evidence = result.recipe.evidence if result.recipe else None
    scores = [score for score in evidence.scores if score.gain is not None] if evidence else []
    if not scores:
        return None
    labels = [html.escape(score.label) for score in scores]
    hover = [html.escape(score.candidate.describe()) for score in scores]
    return intervals([s.gain for s in scores if s.gain], labels, "confirm loss above the winner's", hover)


def intervals(found: Sequence[Interval], labels: Sequence[str], title: str, hover: Sequence[str] = ()) -> go.Figure:
    """Estimates with their intervals, one under the other; labels and hover texts are HTML."""
    figure = _figure(title, "")
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
        },
        text=list(hover or labels),
        hovertemplate="%{text}<br>%{x:+.4f}<extra></extra>",
    )
    figure.add_vline(x=0, line={"color": GREY, "dash": "dot"})
    figure.update_yaxes(autorange="reversed", automargin=True)
    return figure


def cost(result: SearchResult) -> go.Figure | None:
    """Device-seconds of each phase; None where no phase was recorded."""
    seconds: dict[str, float] = defaultdict(float)
    for phase in result.phases:
        seconds[phase.phase] += phase.seconds
    if not seconds:
        return None
    figure = _figure("device-seconds", "")
    figure.add_bar(
        x=list(seconds.values()), y=list(seconds), orientation="h", marker={"color": ACCENT},
        hovertemplate="%{y}: %{x:.0f} s<extra></extra>",
    )  # fmt: skip
    figure.update_layout(height=180)
    figure.update_yaxes(automargin=True)
    return figure


FIGURES: dict[str, Callable[[SearchResult], go.Figure | None]] = {
    "convergence": convergence,
    "steps_to_target": steps_to_target,
    "rate_map": rate_map,
    "rank_effect": partial(effect, name="rank"),
    "history": history,
    "gains": gains,
    "cost": cost,
}


def describe(trial: TrialRecord) -> str:
    """Return a trial in a line for hovering; Plotly reads HTML in it, so it is escaped."""
    label = f"trial {trial.number}" + (f" ({trial.rule})" if trial.rule else "")
    return html.escape(f"{label}: {trial.candidate.describe()}, {trial.outcome}")


def _by_outcome(trials: list[TrialRecord]) -> dict[str, list[TrialRecord]]:
    groups: dict[str, list[TrialRecord]] = {}
    for trial in trials:
        groups.setdefault(trial.outcome, []).append(trial)
    return groups


def _colour(share: float) -> str:
    from plotly.colors import sample_colorscale

    return str(sample_colorscale(SCALE, [min(max(share, 0.0), 1.0)])[0])


def _figure(x: str, y: str) -> Any:
    figure = go.Figure()
    axis: dict[str, Any] = {"gridcolor": "rgba(128,128,128,0.2)", "zeroline": False, "automargin": True}
    figure.update_layout(
        template="none",
        height=420,
        margin={"l": 60, "r": 16, "t": 24, "b": 48},
        showlegend=False,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13, "color": GREY},
        hoverlabel={"align": "left"},
        xaxis={"title": {"text": x}, **axis},
        yaxis={"title": {"text": y}, **axis},
    )
    return figure
