"""Training loss against step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go

from autolr.report import data
from autolr.report.data import Curve
from autolr.report.figures.registry import figure
from autolr.report.figures.style import Colours, blank, describe
from autolr.rundir.result import SearchResult
from autolr.schema.candidate import Candidate

BAND = (0.25, 0.75)
# From so many curves on, lines are thin: a single curve matters less than the whole.
MANY = 60


class Band(NamedTuple):
    """The range of the middle half of a group's losses, while at least two of its trials train.

    Attributes:
        centre: the group's λ (or rate), a power of 2 (or of 10^¼).
    """

    centre: float
    candidate: Candidate
    steps: list[int]
    low: list[float]
    high: list[float]


def bands(curves: Sequence[Curve], colours: Colours) -> list[Band]:
    """Return a band for each group of at least two trials of neighbouring λ."""
    groups: dict[float, list[Curve]] = defaultdict(list)
    for curve in curves:
        centre = colours.group(curve.trial.candidate)
        if centre is not None and curve.trial.outcome != "diverged":
            groups[centre].append(curve)
    found = []
    for centre, group in sorted(groups.items()):
        lengths = sorted((len(curve.steps) for curve in group), reverse=True)
        if len(group) < 2 or lengths[1] < 2:
            continue
        # Who has ended no longer counts, so a band steps where trials were pruned.
        steps = range(0, lengths[1], max(1, lengths[1] // data.MOST_POINTS))
        alive = [[c.losses[i] for c in group if i < len(c.losses)] for i in steps]
        low, high = ([float(np.quantile(losses, q)) for losses in alive] for q in BAND)
        middle = min(group, key=lambda c: abs(np.log(colours.value(c.trial.candidate) / centre)))
        found.append(Band(centre, middle.trial.candidate, [i + 1 for i in steps], low, high))
    return found


def _text(result: SearchResult) -> str:
    by_ratio = data.ratio_matters(result)
    return (
        f"Smoothed training loss of each trial, coloured by {'λ' if by_ratio else 'its rate'}; dotted: "
        "baselines. A band covers the middle half of the trials of "
        f"{'an octave of λ' if by_ratio else 'neighbouring rates'} that still train, so it steps when trials are "
        "pruned. Diamonds: validation loss of the averaged weights at the rungs. Click a band's name to hide its "
        "trials."
    )


@figure(
    "convergence",
    "Convergence",
    10,
    _text,
    "No trial has ended yet.",
    look_for="do the bands of λ lie apart, or on each other? On each other: λ hardly matters here",
)
def convergence(result: SearchResult) -> go.Figure | None:
    """Training loss against step: a line for each trial, a band for each octave of λ; None without a trial."""
    curves = data.curves(result)
    if not curves:
        return None
    colours = Colours(result)
    drawn = blank("step", "training loss", 460)
    for band in bands(curves, colours):
        _add_band(drawn, band, colours)
    many = len(curves) >= MANY
    for curve in sorted(map(data.thinned, curves), key=lambda c: c.trial.baseline is not None):
        _add_curve(drawn, curve, colours, many)
    rungs = [(step, loss, curve.trial) for curve in curves for step, loss in sorted(curve.trial.rungs.items())]
    drawn.add_scatter(
        x=[step for step, _, _ in rungs],
        y=[loss for _, loss, _ in rungs],
        mode="markers",
        name="validation loss at a rung",
        marker={"color": [colours.of(t.candidate) for _, _, t in rungs], "size": 6, "symbol": "diamond"},
        text=[describe(trial) for _, _, trial in rungs],
        hovertemplate="%{text}<br>validation loss at rung %{x}: %{y:.4f}<extra></extra>",
        showlegend=bool(rungs),
    )
    colours.bar(drawn)
    drawn.update_layout(showlegend=True, yaxis_range=_loss_range(curves))
    return drawn


def _add_band(drawn: go.Figure, band: Band, colours: Colours) -> None:
    name = f"{colours.title} ≈ {band.centre:.2g}"
    drawn.add_scatter(
        x=[*band.steps, *reversed(band.steps)],
        y=[round(loss, 5) for loss in [*band.high, *reversed(band.low)]],
        fill="toself",
        mode="lines",
        line={"width": 0, "color": colours.of(band.candidate)},
        opacity=0.22,
        fillcolor=colours.of(band.candidate),
        hoverinfo="skip",
        name=name,
        legendgroup=name,
        showlegend=True,
    )


def _add_curve(drawn: go.Figure, curve: Curve, colours: Colours, many: bool) -> None:
    centre = colours.group(curve.trial.candidate)
    line: dict[str, Any] = {"color": colours.of(curve.trial.candidate), "width": 1 if many else 1.6}
    if curve.trial.baseline:
        line |= {"dash": "dot", "width": 3}
    name = describe(curve.trial)
    drawn.add_scatter(
        x=curve.steps,
        y=[round(loss, 5) for loss in curve.losses],
        mode="lines",
        line=line,
        opacity=0.4 if many else 1.0,
        name=name,
        showlegend=False,
        legendgroup=f"{colours.title} ≈ {centre:.2g}" if centre is not None else "",
        hovertemplate=f"{name}<br>step %{{x}}, loss %{{y:.4f}}<extra></extra>",
    )


def _loss_range(curves: Sequence[Curve]) -> list[float] | None:
    """Return the range of the losses of trials that did not diverge; None if none diverged: Plotly's own."""
    if all(curve.trial.outcome != "diverged" for curve in curves):
        return None
    shown = [loss for c in curves if c.trial.outcome != "diverged" for loss in (*c.losses, *c.trial.rungs.values())]
    if not shown:
        return None
    low, high = min(shown), max(shown)
    return [low - 0.05 * (high - low), high + 0.15 * (high - low)]
