"""How far each trial went, and what pruning saved."""

from __future__ import annotations

import math
from typing import NamedTuple

import plotly.graph_objects as go

from autolr import display
from autolr.report.figures.registry import figure
from autolr.report.figures.style import FAINT, GREY, OUTCOMES, blank, by_outcome, describe
from autolr.rundir.records import TrialRecord
from autolr.rundir.result import SearchResult


class Climb(NamedTuple):
    """How far a trial went: steps it trained, and those it was spared."""

    trial: TrialRecord
    steps: int
    spared: int

    @property
    def spared_seconds(self) -> float:
        """Device time that the steps spared would have taken, at the trial's own pace."""
        return self.trial.seconds / self.steps * self.spared


class Ladder(NamedTuple):
    """All climbs, the longest and best first; `length` is that of a trial.

    Attributes:
        spared_seconds: of all climbs.
    """

    length: int
    rungs: list[int]
    climbs: list[Climb]
    spared_seconds: float

    def describe(self) -> str:
        """Return what pruning has saved, in a sentence."""
        spared, trained = sum(c.spared for c in self.climbs), sum(c.steps for c in self.climbs)
        ended = sum(c.spared > 0 for c in self.climbs)
        if not spared:
            return f"No trial was ended early: {trained:,} steps were trained."
        about = _about(self.spared_seconds)
        return (
            f"{ended} of {len(self.climbs)} trials ended early: {trained:,} steps were trained and {spared:,} spared "
            f"({spared / (spared + trained):.0%}{about})."
        )


def climbed(result: SearchResult) -> Ladder | None:
    """Return how far each trial went; None if no trial has trained."""
    reached = {t.number: max([len(t.curve), *t.rungs]) for t in result.trials if t.curve or t.rungs}
    trials = [trial for trial in result.trials if trial.number in reached]
    if not trials:
        return None
    given = result.study.search.stages[0].to
    ends = [reached[t.number] for t in trials if t.outcome == "finished"]
    length = max(ends) if ends else int(given) if given > 1 else max(reached.values())
    climbs = []
    for trial in trials:
        is_cut = trial.outcome in ("pruned", "diverged", "infeasible")
        climbs.append(Climb(trial, reached[trial.number], max(0, length - reached[trial.number]) if is_cut else 0))
    seconds = sum(climb.spared_seconds for climb in climbs)
    climbs.sort(key=lambda c: (-c.steps, c.trial.score if c.trial.score is not None else math.inf))
    rungs = sorted({step for trial in trials for step in trial.rungs if step < length})
    return Ladder(length, rungs, climbs, seconds)


def headline(result: SearchResult) -> str | None:
    """Return what pruning has saved, in a sentence; None if no trial has trained."""
    found = climbed(result)
    return found.describe() if found else None


@figure(
    "pruning_timeline",
    "Pruning timeline",
    70,
    "The steps each trial took, and those it was spared; dotted lines are rungs.",
    "No trial has reached a rung yet.",
    look_for="how much pruning has saved",
    headline=headline,
)
def pruning_timeline(result: SearchResult) -> go.Figure | None:
    """A bar for each trial: the steps it trained, coloured by outcome, and those it was spared; None without one."""
    found = climbed(result)
    if found is None:
        return None
    count = len(found.climbs)
    drawn = blank("step", "", min(900, 120 + max(4, 18 if count <= 40 else 800 // count) * count))
    places = {climb.trial.number: place for place, climb in enumerate(found.climbs)}
    for outcome, group in by_outcome([climb.trial for climb in found.climbs]).items():
        own = [climb for climb in found.climbs if climb.trial.outcome == outcome]
        drawn.add_bar(
            x=[climb.steps for climb in own],
            y=[places[climb.trial.number] for climb in own],
            orientation="h",
            name=f"{outcome} ({len(group)})",
            showlegend=True,
            marker={"color": OUTCOMES[outcome]},
            text=[_hover(climb, found) for climb in own],
            textposition="none",
            hovertemplate="%{text}<extra></extra>",
        )
    spared = [climb for climb in found.climbs if climb.spared]
    drawn.add_bar(
        x=[climb.spared for climb in spared],
        y=[places[climb.trial.number] for climb in spared],
        orientation="h",
        name="spared",
        showlegend=bool(spared),
        marker={"color": FAINT, "opacity": 0.45},
        text=[
            f"{describe(climb.trial)}<br>{climb.spared} steps spared{_about(climb.spared_seconds)}"
            for climb in spared
        ],
        textposition="none",
        hovertemplate="%{text}<extra></extra>",
    )
    for rung in found.rungs:
        drawn.add_vline(x=rung, line={"color": GREY, "width": 1, "dash": "dot"})
    names = {"tickvals": list(places.values()), "ticktext": [f"{number}" for number in places]} if count <= 40 else {}
    drawn.update_yaxes(autorange="reversed", showgrid=False, showticklabels=count <= 40, title_text="trial", **names)
    drawn.update_layout(barmode="stack", bargap=0.25 if count <= 40 else 0.05, showlegend=True)
    return drawn


def _about(seconds: float) -> str:
    return f", about {seconds:.0f} s of device time" if seconds >= 1 else ""


def _hover(climb: Climb, found: Ladder) -> str:
    trial = climb.trial
    text = f"{describe(trial)}<br>{climb.steps} of {found.length} steps, {trial.tokens:,} tokens"
    step = max(trial.rungs, default=None)
    if step is None:
        return text + ", no rung reached"
    there = [c.trial.rungs[step] for c in found.climbs if step in c.trial.rungs]
    place = 1 + sum(loss < trial.rungs[step] for loss in there)
    return (
        text + f"<br>validation loss {display.loss(trial.rungs[step])} at step {step}: place {place} of {len(there)}"
    )
