"""Figures of attention heads: patterns, their change, how tasks lie to each other, and what one is made of."""

from __future__ import annotations

import html
from typing import Any

import numpy as np

from autolr.insight import measures
from autolr.insight.heads import Heads, Look
from autolr.report.figures.style import ACCENT, GREY, OUTCOMES, SCALE, blank, error_bars

# Change goes two ways from nothing, which can be read on white and on black.
CHANGE = [[0.0, "#3a76d8"], [0.5, "#8a8f98"], [1.0, "#f0912e"]]


def pattern_map(look: Look, kind: Any, after: bool) -> Any:
    """Activation of every head, layers upwards; None if there is no pattern after training."""
    found = look.after if after else look.before
    if found is None:
        return None
    values = found.of(kind)
    low, high = measures.bounds(found, kind)
    text = [
        [f"{values[i, j]:.3g} ({low[i, j]:.3g} to {high[i, j]:.3g})" for j in range(values.shape[1])]
        for i in range(values.shape[0])
    ]
    return _map(values, text, SCALE if kind == "absolute" else CHANGE, "activation", signed=kind == "signed")


def change_map(look: Look, kind: Any) -> Any:
    """What training has changed in each head; None if nothing was trained."""
    if look.change is None:
        return None
    values = look.change.of(kind)
    text = [[f"{value:+.3g}" for value in row] for row in values]
    return _map(values, text, CHANGE, "change", signed=True)


def entropy_map(look: Look) -> Any:
    """Attention entropy of every head as a share of the most it could be, after training if there was one."""
    values = look.entropy_before if look.entropy_after is None else look.entropy_after
    return _map(values, [[f"{value:.0%}" for value in row] for row in values], SCALE, "entropy", signed=False)


def _map(values: np.ndarray, text: list[list[str]], scale: list[list[Any]], title: str, *, signed: bool) -> Any:
    layers, heads = values.shape
    figure = blank("head", "layer", min(900, 120 + 26 * layers))
    most = float(np.abs(values).max()) or 1.0
    figure.add_heatmap(
        z=values.tolist(),
        x=[str(head) for head in range(heads)],
        y=[str(layer) for layer in range(layers)],
        colorscale=scale,
        zmin=-most if signed else 0.0,
        zmax=most,
        text=text,
        xgap=1,
        ygap=1,
        colorbar={"title": {"text": title}, "thickness": 10, "outlinewidth": 0},
        hovertemplate="layer %{y}, head %{x}<br>%{text}<extra></extra>",
    )
    figure.update_xaxes(type="category")
    figure.update_yaxes(type="category")
    return figure


def dendrogram(found: Heads) -> Any:
    """How far tasks are apart: average linkage of 1 - correlation; None for fewer than three."""
    if len(found.looks) < 3 or len({look.before.of().shape for look in found.looks}) > 1:
        return None
    drawn: Any = measures.tree(found.distances(), [look.label for look in found.looks])
    figure = blank("1 - correlation", "", 120 + 40 * len(found.looks))
    for x, y in zip(drawn["icoord"], drawn["dcoord"], strict=True):
        figure.add_scatter(x=y, y=x, mode="lines", line={"color": ACCENT, "width": 2}, hoverinfo="skip")
    # scipy puts the leaves at 5, 15, 25, ...
    leaves = [html.escape(str(label)) for label in drawn["ivl"]]
    figure.update_yaxes(tickvals=[5 + 10 * place for place in range(len(leaves))], ticktext=leaves)
    return figure


def combination(found: Heads) -> Any:
    """Weights of the basic tasks with their intervals, ordinary and non-negative; None without a combination."""
    one = found.combination
    if one is None:
        return None
    figure = blank("weight α", "", 130 + 56 * len(one.weights))
    for name, symbol, colour in (("ordinary", "circle", GREY), ("share", "diamond", ACCENT)):
        values = [getattr(weight, name) for weight in one.weights]
        figure.add_scatter(
            x=[value.mean for value in values],
            y=[html.escape(weight.task) for weight in one.weights],
            mode="markers",
            name="ordinary least squares" if name == "ordinary" else "non-negative",
            marker={"symbol": symbol, "size": 11, "color": colour},
            error_x=error_bars([(value.low, value.mean, value.high) for value in values], color=colour),
            hovertemplate="%{y}: α %{x:.3f}<extra></extra>",
        )
    figure.add_vline(x=0, line={"color": GREY, "dash": "dot", "width": 1})
    figure.update_layout(showlegend=True)
    return figure


def fit(found: Heads) -> Any:
    """R² of the combination beside its nulls; None without one."""
    one = found.combination
    if one is None:
        return None
    rows = [("combination", one.r2, OUTCOMES["finished"]), ("heads permuted", one.null_heads, GREY)]
    figure = blank("R²", "", 220)
    for name, value, colour in rows:
        figure.add_scatter(
            x=[value.mean],
            y=[name],
            mode="markers",
            marker={"size": 12, "color": colour},
            error_x=error_bars([(min(value.low, value.mean), value.mean, max(value.high, value.mean))]),
            hovertemplate=f"{name}: %{{x:.3f}}<extra></extra>",
        )
    if one.null_unrelated:
        figure.add_scatter(
            x=one.null_unrelated,
            y=["unrelated tasks"] * len(one.null_unrelated),
            mode="markers",
            marker={"size": 10, "color": ACCENT, "symbol": "x"},
            hovertemplate="unrelated tasks: %{x:.3f}<extra></extra>",
        )
    figure.update_xaxes(range=[min(-0.05, one.null_heads.low), 1.02])
    return figure
