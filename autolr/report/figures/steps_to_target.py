"""How soon candidates reach the loss of the default (λ=1)."""

from __future__ import annotations

import html
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go

from autolr.report import data
from autolr.report.figures.registry import figure
from autolr.report.figures.style import ACCENT, FAINT, GREY, INK, blank, describe, error_bars
from autolr.rundir.records import TrialRecord
from autolr.rundir.result import SearchResult
from autolr.schema.candidate import Candidate
from autolr.tuner.propose.baselines import Baseline

# Of the labels under the λ axis; more would overlap on a phone.
MOST_TICKS = 8


class Target(NamedTuple):
    """How fast a trial reached the target loss; `fraction` of the default's steps, None: never."""

    trial: TrialRecord
    fraction: float | None


class Reach(NamedTuple):
    """How fast a compared candidate reached another's loss, seed by seed; None: not within its length."""

    label: str
    candidate: Candidate
    fractions: list[float | None]

    @property
    def known(self) -> list[float]:
        """The fractions of the seeds that reached it."""
        return [fraction for fraction in self.fractions if fraction is not None]

    @property
    def median(self) -> float | None:
        """The median over seeds; None if half of them or more did not reach it."""
        middle = float(np.median([np.inf if f is None else f for f in self.fractions]))
        return middle if np.isfinite(middle) else None


def targets(result: SearchResult) -> tuple[float, list[Target]] | None:
    """Return the target loss and how soon each trial reached it; None without a trial of the default.

    The target is the lowest smoothed loss of the default's trial, the unit the step it came at.
    """
    curves = data.curves(result)
    default = next((curve for curve in curves if curve.trial.baseline == Baseline.DEFAULT), None)
    if default is None:
        return None
    target, unit = _goal(default.losses)
    return target, [Target(curve.trial, _fraction(curve.losses, target, unit)) for curve in curves]


def reaches(result: SearchResult, baseline: Baseline) -> list[Reach]:
    """Return how soon each compared candidate reached another's loss, both with the same seed and batches.

    Args:
        result: the search.
        baseline: the other; empty if it was not compared.
    """
    groups = data.over_seeds(result)
    other = next((group for group in groups.values() if baseline.is_in(group[0].label)), None)
    if other is None:
        return []
    goals = {record.seed: _goal(data.smooth(record.curve)) for record in other if record.curve}
    found = []
    for candidate, group in groups.items():
        if group is other:
            continue
        fractions = [_fraction(data.smooth(r.curve), *goals[r.seed]) for r in group if r.seed in goals]
        if fractions:
            found.append(Reach(group[0].label, candidate, fractions))
    return found


def headline(result: SearchResult) -> str | None:
    """Return how soon the winner, or the best finalist if a baseline won, reaches λ=1's loss; None if unknown."""
    winner = data.own_winner(result)
    evidence = result.recipe.evidence if result.recipe else None
    if winner is None or evidence is None:
        return None
    own = [score for score in evidence.scores if score.label.startswith("finalist")]
    finalists = [score.candidate for score in sorted(own, key=lambda score: score.validation_loss)]
    sentences = (_reached(result, one) for one in (winner, *finalists) if one.has_ratio)
    return next(filter(None, sentences), None)


def ratio_ticks(ratios: Sequence[float]) -> list[float]:
    """Return powers of 2 that enclose ratios, at most `MOST_TICKS` of them, 1 always among them."""
    logs = np.log2([1.0, *ratios])
    low, high = int(np.floor(logs.min())), int(np.ceil(logs.max()))
    ends = next((low // n, -(-high // n), n) for n in itertools.count(1) if -(-high // n) - low // n < MOST_TICKS)
    return [2.0 ** (ends[2] * place) for place in range(ends[0], ends[1] + 1)]


@figure(
    "steps_to_target",
    "Steps to target against λ",
    20,
    "Steps until each trial reached the best training loss of the default (λ=1), as a share of its steps: "
    "below the line a trial was faster. Hollow: not reached within its length; pruned trials had fewer steps. "
    "Diamonds: the compared candidates against the default's trainings, median and range over seeds.",
    "The default (λ=1) has not been tried in this search.",
    look_for="below the line a trial reached the default's best loss sooner than the default did",
    headline=headline,
    applies=data.ratio_matters,
)
def steps_to_target(result: SearchResult) -> go.Figure | None:
    """Steps to the default's best training loss, in units of its own, against λ; None without the default."""
    found = targets(result)
    if found is None:
        return None
    target, rows = found
    rows = [row for row in rows if row.trial.candidate.has_ratio]
    drawn = blank("λ = η_V / η_Q", "share of the default's steps")
    ticks = ratio_ticks([row.trial.candidate.ratio for row in rows])
    drawn.update_xaxes(type="log", tickvals=ticks, ticktext=[f"{tick:.3g}" for tick in ticks])
    again = [reach for reach in reaches(result, Baseline.DEFAULT) if reach.candidate.has_ratio]
    top = 1.15 * max([row.fraction or 0 for row in rows] + [f for r in again for f in r.known] + [1.0])
    for there in (True, False):
        group = [row for row in rows if (row.fraction is not None) == there]
        reached = f"%{{y:.2f}} of the steps to loss {target:.3f}" if there else f"loss {target:.3f} not reached"
        drawn.add_scatter(
            x=[row.trial.candidate.ratio for row in group],
            y=[row.fraction if there else top for row in group],
            mode="markers",
            name="trial" if there else "not reached",
            showlegend=bool(group),
            marker={"color": GREY, "size": 9, "opacity": 0.8} if there else {"color": GREY, "symbol": "circle-open"},
            text=[describe(row.trial) for row in group],
            hovertemplate=f"%{{text}}<br>{reached}<extra></extra>",
        )
    shown = [(reach, middle) for reach in again if (middle := reach.median) is not None]
    drawn.add_scatter(
        x=[reach.candidate.ratio for reach, _ in shown],
        y=[middle for _, middle in shown],
        mode="markers",
        name="compared, other seeds",
        showlegend=bool(shown),
        marker={"symbol": "diamond", "size": 11, "color": ACCENT},
        error_y=error_bars([(min(reach.known), middle, max(reach.known)) for reach, middle in shown], color=ACCENT),
        text=[html.escape(f"{r.label}: {r.candidate.describe()}") for r, _ in shown],
        hovertemplate="%{text}<br>%{y:.2f} of the default's steps<extra></extra>",
    )
    drawn.add_hline(y=1, line={"color": INK, "width": 1.5}, annotation_text="default (λ=1)")
    drawn.add_vline(x=1, line={"color": FAINT, "dash": "dot"})
    # Below 0, so that its label and the leftmost one of λ do not meet in the corner.
    drawn.update_layout(showlegend=True, yaxis_range=[-0.06 * top, 1.06 * top])
    return drawn


def _reached(result: SearchResult, candidate: Candidate) -> str | None:
    parts = []
    goals = {Baseline.DEFAULT: "the default's training loss"}
    if candidate == data.own_winner(result) and candidate.ratio != 1.0:
        goals[Baseline.SAME_LR] = "the loss of λ=1 at its own lr_v"
    for baseline, what in goals.items():
        reach = next((reach for reach in reaches(result, baseline) if reach.candidate == candidate), None)
        if reach is None:
            continue
        seeds = f"{len(reach.known) or 'none'} of {len(reach.fractions)} seeds"
        if reach.median is None:
            parts.append(f"{what} within its length in {seeds}")
        else:
            spread = f"{min(reach.known):.2f} to {max(reach.known):.2f}; {seeds}"
            parts.append(f"{what} in {reach.median:.2f} of the steps ({spread})")
    who = f"λ={candidate.ratio:.3g}" if candidate.ratio != 1.0 else candidate.describe()
    return f"{who} reaches {', and '.join(parts)}." if parts else None


def _goal(losses: list[float]) -> tuple[float, int]:
    target = min(losses)
    return target, losses.index(target) + 1


def _fraction(losses: list[float], target: float, unit: int) -> float | None:
    reached = next((step for step, loss in enumerate(losses, 1) if loss <= target), None)
    return reached / unit if reached else None
