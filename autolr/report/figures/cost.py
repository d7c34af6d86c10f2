"""What a search has taken: time, tokens, energy."""

from __future__ import annotations

import html
from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go

from autolr.report import data
from autolr.report.figures.registry import figure
from autolr.report.figures.style import ACCENT, blank
from autolr.rundir.result import SearchResult


class Taken(NamedTuple):
    """What the visits to a phase took together."""

    phase: str
    seconds: float
    trained_tokens: int
    evaluated_tokens: int


class Energy(NamedTuple):
    """What the device drew, if it can be read.

    Attributes:
        share: of the recorded time that was weighed.
    """

    watt_hours: float
    share: float


def taken(result: SearchResult) -> list[Taken]:
    """Return what each phase took, in the order of their first visits."""
    found: dict[str, list[Any]] = defaultdict(list)
    for phase in result.phases:
        found[phase.phase].append(phase)
    return [
        Taken(
            name,
            sum(visit.seconds for visit in visits),
            sum(visit.trained_tokens for visit in visits),
            sum(visit.evaluated_tokens for visit in visits),
        )
        for name, visits in found.items()
    ]


def energy(result: SearchResult) -> Energy | None:
    """Return the energy that the run's resources.parquet tells of; None if power could not be read."""
    try:
        frame = data.resources(result)
        frame = frame[frame.slot.isna()]
        if len(frame) < 2:
            return None
        seconds = np.diff(frame.time.to_numpy(dtype=float))
        watts = frame.watts.to_numpy(dtype=float)[1:]
    except data.UNREADABLE:
        return None
    seconds = np.where(seconds > data.PAUSE, 0.0, seconds)
    weighed = np.isfinite(watts)
    if not (seconds * weighed).sum():
        return None
    spent = float((seconds * np.where(weighed, watts, 0.0)).sum())
    return Energy(spent / 3600, float((seconds * weighed).sum() / seconds.sum()))


def headline(result: SearchResult) -> str | None:
    """Return what the search took, in a sentence; None if no phase was recorded."""
    found = taken(result)
    if not found:
        return None
    seconds, trained = sum(p.seconds for p in found), sum(p.trained_tokens for p in found)
    evidence = result.recipe.evidence if result.recipe else None
    full = f" (those of {evidence.cost.full_run_equivalents:g} full runs)" if evidence else ""
    evaluated = sum(phase.evaluated_tokens for phase in found)
    text = f"{seconds:.0f} device-seconds; {trained:,} tokens trained{full}, {evaluated:,} evaluated"
    drawn = energy(result)
    if drawn is None:
        return text + "; energy could not be read."
    weighed = "" if drawn.share > 0.99 else f" in the {drawn.share:.0%} of the time that was weighed"
    return f"{text}; {drawn.watt_hours:.3g} Wh drawn{weighed}."


@figure(
    "cost",
    "Cost: time, tokens, energy",
    100,
    "Device-seconds of each phase.",
    "No phase has ended yet.",
    look_for="where the time went",
    headline=headline,
)
def cost(result: SearchResult) -> go.Figure | None:
    """Device-seconds of each phase, with its tokens; None if no phase was recorded."""
    found = taken(result)
    if not found:
        return None
    drawn = blank("device-seconds", "", 110 + 46 * len(found))
    drawn.add_bar(
        x=[phase.seconds for phase in found],
        y=[html.escape(phase.phase) for phase in found],
        orientation="h",
        marker={"color": ACCENT},
        text=[f"{p.trained_tokens:,} tokens trained<br>{p.evaluated_tokens:,} evaluated" for p in found],
        textposition="none",
        hovertemplate="%{y}: %{x:.0f} s<br>%{text}<extra></extra>",
    )
    drawn.update_yaxes(autorange="reversed")
    drawn.update_layout(bargap=0.35)
    return drawn
