"""How fast candidates learn, and what λ has to do with it."""

from __future__ import annotations

import html
import itertools
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from autolr.candidate import Candidate
from autolr.report import data
from autolr.report.data import Curve
from autolr.report.figures.style import ACCENT, FAINT, GREY, INK, Colours, blank, describe
from autolr.search.baselines import Baseline
from autolr.search.records import TrialRecord
from autolr.search.result import SearchResult

BAND = (0.25, 0.75)
# Of so many curves the single one matters less than where they lie.
MANY = 60
# Of the labels under the λ axis; more would overlap on a phone.
MOST_TICKS = 8


class Band(NamedTuple):
    """Where the middle half of the losses of a group of trials lies, while at least two of them train.

    Attributes:
        centre: the group's λ (or rate), a power of 2 (or of 10^¼).
    """

    centre: float
    candidate: Candidate
    steps: list[int]
    low: list[float]
    high: list[float]


class Target(NamedTuple):
    """How fast a trial reached the target loss; `fraction` of the rule's steps, None: never."""

    trial: TrialRecord
    fraction: float | None


class Reach(NamedTuple):
    """How fast a confirmed candidate reached what another came to, seed by seed; None: not within its length."""

    label: str
    candidate: Candidate
    fractions: list[float | None]

    @property
    def median(self) -> float | None:
        """The median over seeds; None where half of them or more did not reach it."""
        middle = float(np.median([np.inf if f is None else f for f in self.fractions]))
        return middle if np.isfinite(middle) else None


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
        middle = min(group, key=lambda c: abs(np.log(_value(c.trial.candidate, colours) / centre)))
        found.append(Band(centre, middle.trial.candidate, [i + 1 for i in steps], low, high))
    return found


def convergence(result: SearchResult) -> Any:
    """Training loss against step: a line for each trial coloured by λ, a band for each octave of λ; None: no trial.

    Diamonds are select losses at the rungs; dotted lines are rules.
    """
    curves = data.curves(result)
    if not curves:
        return None
    colours = Colours(result)
    figure = blank("step", "training loss", 460)
    for band in bands(curves, colours):
        name = f"{colours.title} ≈ {band.centre:.2g}"
        figure.add_scatter(
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
    rule_width, width = 3, 1.6 if len(curves) < MANY else 1
    for curve in sorted(map(data.thinned, curves), key=lambda c: c.trial.rule is not None):
        centre = colours.group(curve.trial.candidate)
        line: dict[str, Any] = {"color": colours.of(curve.trial.candidate), "width": width}
        if curve.trial.rule:
            line |= {"dash": "dot", "width": rule_width}
        name = describe(curve.trial)
        figure.add_scatter(
            x=curve.steps,
            y=[round(loss, 5) for loss in curve.losses],
            mode="lines",
            line=line,
            opacity=1.0 if len(curves) < MANY else 0.4,
            name=name,
            showlegend=False,
            legendgroup=f"{colours.title} ≈ {centre:.2g}" if centre is not None else "",
            hovertemplate=f"{name}<br>step %{{x}}, loss %{{y:.4f}}<extra></extra>",
        )
    rungs = [(step, loss, curve.trial) for curve in curves for step, loss in sorted(curve.trial.rungs.items())]
    figure.add_scatter(
        x=[step for step, _, _ in rungs],
        y=[loss for _, loss, _ in rungs],
        mode="markers",
        name="select loss at a rung",
        marker={"color": [colours.of(t.candidate) for _, _, t in rungs], "size": 6, "symbol": "diamond"},
        text=[describe(trial) for _, _, trial in rungs],
        hovertemplate="%{text}<br>select loss at rung %{x}: %{y:.4f}<extra></extra>",
        showlegend=bool(rungs),
    )
    colours.bar(figure)
    figure.update_layout(showlegend=True, yaxis_range=_loss_range(curves))
    return figure


def steps_to_target(result: SearchResult) -> Any:
    """Steps to the λ=1 rule's best training loss, in units of its own, against λ; None without that rule or λ.

    Circles are trials, hollow above: not reached. Diamonds are the confirmed candidates against the rule's own
    repeats, with the range of their seeds.
    """
    found = targets(result) if data.ratio_matters(result) else None
    if found is None:
        return None
    target, rows = found
    rows = [row for row in rows if row.trial.candidate.has_ratio]
    figure = blank("λ = η_V / η_Q", "share of the λ=1 rule's steps")
    ticks = ratio_ticks([row.trial.candidate.ratio for row in rows])
    figure.update_xaxes(type="log", tickvals=ticks, ticktext=[f"{tick:.3g}" for tick in ticks])
    again = [reach for reach in reaches(result, Baseline.DEFAULT) if reach.candidate.has_ratio]
    top = 1.15 * max([row.fraction or 0 for row in rows] + [f or 0 for r in again for f in r.fractions] + [1.0])
    for there in (True, False):
        group = [row for row in rows if (row.fraction is not None) == there]
        figure.add_scatter(
            x=[row.trial.candidate.ratio for row in group],
            y=[row.fraction if there else top for row in group],
            mode="markers",
            name="trial" if there else "not reached",
            showlegend=bool(group),
            marker={"color": GREY, "size": 9, "opacity": 0.8} if there else {"color": GREY, "symbol": "circle-open"},
            text=[describe(row.trial) for row in group],
            hovertemplate="%{text}<br>"
            + (f"%{{y:.2f}} of the steps to loss {target:.3f}" if there else f"loss {target:.3f} not reached")
            + "<extra></extra>",
        )
    known = [(reach, reach.median) for reach in again]
    shown = [(reach, middle) for reach, middle in known if middle is not None]
    figure.add_scatter(
        x=[reach.candidate.ratio for reach, _ in shown],
        y=[middle for _, middle in shown],
        mode="markers",
        name="confirmed, other seeds",
        showlegend=bool(shown),
        marker={"symbol": "diamond", "size": 11, "color": ACCENT},
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [max([f for f in r.fractions if f is not None]) - m for r, m in shown],
            "arrayminus": [m - min([f for f in r.fractions if f is not None]) for r, m in shown],
            "color": ACCENT,
        },
        text=[html.escape(f"{r.label}: {r.candidate.describe()}") for r, _ in shown],
        hovertemplate="%{text}<br>%{y:.2f} of the rule's steps<extra></extra>",
    )
    figure.add_hline(y=1, line={"color": INK, "width": 1.5}, annotation_text="λ=1 rule")
    figure.add_vline(x=1, line={"color": FAINT, "dash": "dot"})
    # Below 0, so that its label and the leftmost one of λ do not meet in the corner.
    figure.update_layout(showlegend=True, yaxis_range=[-0.06 * top, 1.06 * top])
    return figure


def ratio_ticks(ratios: Sequence[float]) -> list[float]:
    """Return powers of 2 that enclose ratios, at most `MOST_TICKS` of them, 1 always among them."""
    logs = np.log2([1.0, *ratios])
    low, high = int(np.floor(logs.min())), int(np.ceil(logs.max()))
    ends = next((low // n, -(-high // n), n) for n in itertools.count(1) if -(-high // n) - low // n < MOST_TICKS)
    return [2.0 ** (ends[2] * place) for place in range(ends[0], ends[1] + 1)]


def targets(result: SearchResult) -> tuple[float, list[Target]] | None:
    """Return the target loss and how soon each trial reached it; None without a λ = 1 rule trial.

    The target is the lowest smoothed loss of the rule's trial, the unit the step it came at.
    """
    curves = data.curves(result)
    rule = next((curve for curve in curves if curve.trial.rule == Baseline.DEFAULT), None)
    if rule is None:
        return None
    target, unit = _goal(rule.losses)
    return target, [Target(curve.trial, _fraction(curve.losses, target, unit)) for curve in curves]


def reaches(result: SearchResult, baseline: Baseline) -> list[Reach]:
    """Return how soon each confirmed candidate reached what another came to, both with the same seed and batches.

    Args:
        result: the search.
        baseline: the other; empty if it was not compared.
    """
    groups = data.repeats(result)
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
    """Say how soon the winner, or the best finalist beside a rule that won, reaches what λ=1 comes to.

    None where it cannot be said.
    """
    winner = data.own_winner(result)
    evidence = result.recipe.evidence if result.recipe else None
    if winner is None or evidence is None:
        return None
    own = [score for score in evidence.scores if score.label.startswith("finalist")]
    finalists = [score.candidate for score in sorted(own, key=lambda score: score.select_loss)]
    said = (_reached(result, one) for one in (winner, *finalists) if one.has_ratio)
    return next(filter(None, said), None)


def _reached(result: SearchResult, candidate: Candidate) -> str | None:
    said = []
    goals = {Baseline.DEFAULT: "the λ=1 rule's training loss"}
    if candidate == data.own_winner(result) and candidate.ratio != 1.0:
        goals[Baseline.SAME_LR] = "the loss of λ=1 at its own lr_v"
    for baseline, what in goals.items():
        reach = next((reach for reach in reaches(result, baseline) if reach.candidate == candidate), None)
        if reach is None:
            continue
        seeds = f"{sum(f is not None for f in reach.fractions) or 'none'} of {len(reach.fractions)} seeds"
        if reach.median is None:
            said.append(f"{what} within its length in {seeds}")
        else:
            known = [f for f in reach.fractions if f is not None]
            spread = f" ({min(known):.2f} to {max(known):.2f}; {seeds})"
            said.append(f"{what} in {reach.median:.2f} of the steps{spread}")
    who = f"λ={candidate.ratio:.3g}" if candidate.ratio != 1.0 else candidate.describe()
    return f"{who} reaches {', and '.join(said)}." if said else None


def _goal(losses: list[float]) -> tuple[float, int]:
    target = min(losses)
    return target, losses.index(target) + 1


def _fraction(losses: list[float], target: float, unit: int) -> float | None:
    reached = next((step for step, loss in enumerate(losses, 1) if loss <= target), None)
    return reached / unit if reached else None


def _value(candidate: Candidate, colours: Colours) -> float:
    return candidate.ratio if colours.by_ratio else candidate.rate


def _loss_range(curves: Sequence[Curve]) -> list[float] | None:
    """Leave out of sight what diverged: the range of what the others show."""
    if all(curve.trial.outcome != "diverged" for curve in curves):
        return None
    shown = [loss for c in curves if c.trial.outcome != "diverged" for loss in (*c.losses, *c.trial.rungs.values())]
    if not shown:
        return None
    low, high = min(shown), max(shown)
    return [low - 0.05 * (high - low), high + 0.15 * (high - low)]
