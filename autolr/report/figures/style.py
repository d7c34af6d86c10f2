"""How figures look, and what several of them share."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from autolr.report import data
from autolr.rundir.records import TrialRecord
from autolr.rundir.result import SearchResult
from autolr.schema.candidate import Candidate
from autolr.schema.recipe import Interval

SYMBOLS = {
    "finished": "circle",
    "pruned": "x",
    "diverged": "triangle-up",
    "infeasible": "hash",
    "interrupted": "square",
    "running": "diamond",
}
# All can be read on white and on black, as in a notebook of either kind; the page, which knows its ground, takes
# others for some. Card is what lies behind words.
GREY = "#7d848f"
ACCENT = "#d1495b"
INK = "#6b727d"
CARD = "#ffffff"
FAINT = "rgba(128,132,140,0.35)"
THEMES = {
    "light": {INK: "#1b1f24"},
    "dark": {INK: "#e8eaed", CARD: "#1b1f25", ACCENT: "#ef7b8a", GREY: "#9aa2ad"},
}
SCALE = [[0.0, "#3a76d8"], [0.25, "#7d62cc"], [0.5, "#b655a8"], [0.75, "#e05c6e"], [1.0, "#f0912e"]]
OUTCOMES = {
    "finished": "#2a9d7f",
    "pruned": "#7d848f",
    "diverged": "#d1495b",
    "infeasible": "#8a6d3b",
    "interrupted": "#c58a2a",
    "running": "#3a76d8",
}
# What dimensions are called on axes.
TITLES = {
    "lr_v": "η_V",
    "ratio": "λ",
    "rate": "rate",
    "targets": "matrices",
    "kind": "method",
    "loraplus_lr_ratio": "ρ",
}
LEGEND = {"traceorder": "normal", "orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}


def blank(x: str, y: str, height: int = 420) -> go.Figure:
    """Return an empty figure with named axes."""
    figure = go.Figure()
    axis: dict[str, Any] = {"gridcolor": "rgba(128,128,128,0.18)", "zeroline": False, "automargin": True}
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 56, "r": 16, "t": 24, "b": 48},
        showlegend=False,
        legend=LEGEND,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13, "color": GREY},
        hoverlabel={"align": "left", "bgcolor": CARD, "bordercolor": GREY, "font": {"color": INK}},
        xaxis={"title": {"text": x}, **axis},
        yaxis={"title": {"text": y}, **axis},
    )
    return figure


class Colours:
    """Colours of candidates by λ on a log scale; by their rate if λ means nothing.

    Args:
        result: the search that is drawn.
    """

    def __init__(self, result: SearchResult) -> None:
        self.by_ratio = data.ratio_matters(result)
        self.title = "λ" if self.by_ratio else "rate"
        known = [self._log(trial.candidate) for trial in result.trials]
        logs = [value for value in known if value is not None] or [0.0]
        self.low, self.high = min(logs), max(max(logs), min(logs) + 1e-9)

    def of(self, candidate: Candidate) -> str:
        """Return the colour of a candidate; grey if it has no ratio in a search of ratios."""
        log = self._log(candidate)
        if log is None:
            return GREY
        from plotly.colors import sample_colorscale

        share = (log - self.low) / (self.high - self.low)
        return str(sample_colorscale(SCALE, [min(max(share, 0.0), 1.0)])[0])

    def group(self, candidate: Candidate) -> float | None:
        """Return the power of 2 nearest to λ, or of 10^¼ to the rate: whose trials lie in one band."""
        log = self._log(candidate)
        unit = math.log10(2) if self.by_ratio else 0.25
        return None if log is None else 10 ** (round(log / unit) * unit)

    def value(self, candidate: Candidate) -> float:
        """Return what a candidate is coloured by."""
        return candidate.ratio if self.by_ratio else candidate.rate

    def bar(self, figure: go.Figure) -> None:
        """Add the scale to a figure."""
        span = self.high - self.low
        ticks = [self.low + i * span / 4 for i in range(5)] if span > 1e-6 else [self.low]
        figure.add_scatter(
            x=[None],
            y=[None],
            mode="markers",
            showlegend=False,
            hoverinfo="skip",
            marker={
                "color": [self.low],
                "cmin": self.low,
                "cmax": self.high,
                "colorscale": SCALE,
                "showscale": True,
                "colorbar": {
                    "title": {"text": self.title},
                    "thickness": 10,
                    "tickvals": ticks,
                    "ticktext": [f"{10**tick:.2g}" for tick in ticks],
                    "outlinewidth": 0,
                },
            },
        )

    def _log(self, candidate: Candidate) -> float | None:
        return math.log10(self.value(candidate)) if candidate.has_ratio or not self.by_ratio else None


def describe(trial: TrialRecord) -> str:
    """Return a trial in a line for hovering; Plotly reads HTML in it, so it is escaped."""
    label = f"trial {trial.number}" + (f" ({trial.baseline})" if trial.baseline else "")
    return html.escape(f"{label}: {trial.candidate.describe()}, {trial.outcome}")


def by_outcome(trials: list[TrialRecord]) -> dict[str, list[TrialRecord]]:
    """Return the trials of each outcome, in the order in which legends name them."""
    groups = {name: [trial for trial in trials if trial.outcome == name] for name in SYMBOLS}
    return {name: group for name, group in groups.items() if group}


def add_trials(
    figure: go.Figure,
    trials: list[TrialRecord],
    x: Callable[[TrialRecord], float],
    y: Callable[[TrialRecord], float | None],
    hover: str,
    colours: Mapping[str, str] = OUTCOMES,
    **marker: Any,
) -> None:
    """Add a mark for each trial to a figure, an entry of the legend for each outcome.

    Args:
        figure: Plotly's.
        trials: to be shown.
        x: returns where a trial's mark is.
        y: the same.
        hover: what a mark says beside its trial, in Plotly's template.
        colours: of each outcome.
        marker: settings of all marks.
    """
    for outcome, group in by_outcome(trials).items():
        figure.add_scatter(
            x=[x(trial) for trial in group],
            y=[y(trial) for trial in group],
            mode="markers",
            name=outcome,
            showlegend=True,
            marker={"symbol": SYMBOLS[outcome], "size": 9, "color": colours[outcome], **marker},
            text=[describe(trial) for trial in group],
            hovertemplate=f"%{{text}}<br>{hover}<extra></extra>",
        )
    figure.update_layout(showlegend=True)


def error_bars(found: Sequence[tuple[float, float, float]], **style: Any) -> dict[str, Any]:
    """Return Plotly's bars around values, each given as its low end, the value, and its high end."""
    ends = {"array": [high - at for _, at, high in found], "arrayminus": [at - low for low, at, _ in found]}
    return {"type": "data", "symmetric": False, **ends, **style}


def add_intervals(figure: go.Figure, found: Sequence[Interval], labels: Sequence[str], hover: Sequence[str]) -> None:
    """Add estimates with their intervals to a figure, one under the other; labels and hover texts are HTML."""
    figure.add_scatter(
        x=[interval.mean for interval in found],
        y=list(labels),
        mode="markers",
        marker={"size": 10, "color": ACCENT},
        error_x=error_bars([(one.low, one.mean, one.high) for one in found], thickness=2, color=ACCENT),
        text=list(hover),
        hovertemplate="%{text}<br>%{x:+.4f}<extra></extra>",
    )
    figure.add_vline(x=0, line={"color": GREY, "dash": "dot"})
    figure.update_yaxes(autorange="reversed", automargin=True)
