"""How well early scores predict late ones."""

from __future__ import annotations

import html
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go
from scipy.stats import spearmanr

from autolr import display
from autolr.report import data
from autolr.report.figures.registry import figure
from autolr.report.figures.style import ACCENT, GREY, OUTCOMES, SCALE, blank, describe
from autolr.rundir.records import TrialRecord
from autolr.rundir.result import SearchResult

# Correlations of fewer trials say nothing.
ENOUGH = 4


class Foresight(NamedTuple):
    """Select losses early and late of the same trials.

    Attributes:
        early, late: what the two are called.
        correlation: Spearman's, of ranks; None for too few.
    """

    early: str
    late: str
    trials: list[TrialRecord]
    x: list[float]
    y: list[float]
    correlation: float | None


def foresights(result: SearchResult) -> list[Foresight]:
    """Return how early scores compare with late ones: rungs with a trial's end, and that with all that followed."""
    finished = [t for t in result.trials if t.outcome == "finished" and t.rungs]
    if not finished:
        return []
    last = max(max(trial.rungs) for trial in finished)
    finished = [trial for trial in finished if last in trial.rungs]
    found = []
    for rung in sorted({step for trial in finished for step in trial.rungs} - {last}):
        there = [trial for trial in finished if rung in trial.rungs]
        pairs = [(trial, trial.rungs[rung], trial.rungs[last]) for trial in there]
        found.append(_compared(f"step {rung}", f"step {last}", pairs))
    for stage, records in result.ladder.items():
        late, losses = f"{stage} of the full run", {record.candidate: record.validation_loss for record in records}
        through = [(t, t.rungs[last], losses[t.candidate]) for t in finished if t.candidate in losses]
        if through:
            found.append(_compared(f"step {last}", late, through))
    groups = data.over_seeds(result)
    again = [
        (t, t.rungs[last], float(np.mean([r.validation_loss for r in groups[t.candidate]])))
        for t in finished
        if t.candidate in groups
    ]
    if again:
        found.append(_compared(f"step {last}", "other seeds, same length", again))
    return found


def headline(result: SearchResult) -> str | None:
    """Return how well early ranks predict late ones, for at most three rungs; None if nothing is known."""
    found = [one for one in foresights(result) if one.correlation is not None]
    rungs = [one for one in found if one.late.startswith("step")]
    shown = [rungs[0], rungs[len(rungs) // 2], rungs[-1]] if len(rungs) > 3 else rungs
    parts = [
        f"from {one.early} to {one.late} ranks correlate with {one.correlation:.2f} ({len(one.x)} trials)"
        for one in [*shown, *(one for one in found if one not in rungs)]
    ]
    full = _full(result)
    if full is not None:
        parts.append(
            f"the full run reached a validation loss of {display.loss(full[1])}, "
            f"its short trainings to {display.loss(full[0])}"
        )
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}." if text else None


@figure(
    "early_vs_late",
    "Early against late losses",
    120,
    "Select losses of the same candidates early and late; ρ: Spearman's correlation of ranks. Only finished trials "
    "can be compared: trials that were pruned for bad early losses are not among them.",
    "No trial has finished yet.",
    look_for="a low ρ says: trials were too short, let the first of the `search.stages` go further",
    headline=headline,
)
def early_vs_late(result: SearchResult) -> go.Figure | None:
    """Early validation losses against late ones of the same trials; None if no trial has finished."""
    found = [one for one in foresights(result) if one.x]
    full = _full(result)
    if not found and full is None:
        return None
    drawn = blank("earlier validation loss", "later validation loss")
    colours = [ACCENT, OUTCOMES["finished"], SCALE[0][1], GREY, SCALE[-1][1], SCALE[1][1]]
    for place, one in enumerate(found):
        loraplus_lr_ratio = "" if one.correlation is None else f", ρ={one.correlation:.2f}"
        drawn.add_scatter(
            x=one.x,
            y=one.y,
            mode="markers",
            name=f"{one.early} → {one.late} ({len(one.x)}{loraplus_lr_ratio})",
            marker={"size": 9, "color": colours[place % len(colours)], "opacity": 0.85},
            text=[describe(trial) for trial in one.trials],
            hovertemplate=f"%{{text}}<br>{one.early}: %{{x:.4f}}<br>{one.late}: %{{y:.4f}}<extra></extra>",
        )
    if full is not None:
        drawn.add_scatter(
            x=[full[0]],
            y=[full[1]],
            mode="markers",
            name="winner's other seeds → full run",
            marker={"symbol": "star", "size": 15, "color": ACCENT},
            text=[html.escape(full[2])],
            hovertemplate="%{text}<br>short: %{x:.4f}, full: %{y:.4f}<extra></extra>",
        )
    drawn.update_layout(showlegend=True)
    return drawn


def _compared(early: str, late: str, pairs: list[tuple[TrialRecord, float, float]]) -> Foresight:
    x, y = [pair[1] for pair in pairs], [pair[2] for pair in pairs]
    known = len(pairs) >= ENOUGH and len(set(x)) > 1 and len(set(y)) > 1
    correlation = float(spearmanr(x, y).statistic) if known else None
    return Foresight(early, late, [pair[0] for pair in pairs], x, y, correlation)


def _full(result: SearchResult) -> tuple[float, float, str] | None:
    """Return the winner's validation loss in short trainings, and the full run's; None without a full run."""
    winner = data.own_winner(result)
    group = data.over_seeds(result).get(winner) if winner else None
    validation = data.full_run(result).get("validation")
    if (
        winner is None
        or not group
        or not isinstance(validation, dict)
        or not isinstance(validation.get("loss"), float)
    ):
        return None
    return float(np.mean([r.validation_loss for r in group])), validation["loss"], winner.describe()
