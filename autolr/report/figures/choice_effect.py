"""Score against a choice, such as the rank, and what the one-standard-error rule chose."""

from __future__ import annotations

import html
from collections import defaultdict
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go

from autolr import display
from autolr.report import data
from autolr.report.figures.registry import figure
from autolr.report.figures.style import ACCENT, GREY, INK, TITLES, blank, describe
from autolr.rundir.records import TrialRecord
from autolr.rundir.result import SearchResult
from autolr.schema.candidate import Candidate
from autolr.tuner.judge import verdict


class Value(NamedTuple):
    """Trials of one value of a dimension.

    Attributes:
        scores: validation loss brought to the last rung, trial by trial.
        parameters: what the adapters of a winner with this value train; None if the run does not know.
    """

    value: Any
    trials: list[TrialRecord]
    scores: list[float]
    parameters: int | None


class JudgedCandidate(NamedTuple):
    """A candidate of the study's own space that was trained to the end, or with several seeds if nothing was.

    Attributes:
        loss: the mean over seeds of what candidates were compared by.
        error: standard error of its difference to the best; None: it is the best, or the error is unknown.
        as_good: whether that difference is within one standard error.
    """

    label: str
    candidate: Candidate
    loss: float
    error: float | None
    as_good: bool
    chosen: bool


def values(result: SearchResult, name: str) -> list[Value]:
    """Return the trials of each value of a dimension, in the order of the values."""
    scores = data.comparable_scores(result)
    groups: dict[Any, list[TrialRecord]] = defaultdict(list)
    for trial in result.trials:
        if trial.number in scores:
            groups[getattr(trial.candidate, name)].append(trial)
    usual = data.own_winner(result)
    found = []
    for value, trials in sorted(groups.items()):
        like = (usual or trials[0].candidate).model_copy(update={name: value})
        found.append(Value(value, trials, [scores[t.number] for t in trials], parameters(result, like)))
    return found


def parameters(result: SearchResult, candidate: Candidate) -> int | None:
    """Return how many numbers the adapters of a candidate train; None if the run does not know."""
    per_rank = data.machine(result).get("per_rank")
    trained = [role for role, value in candidate.rates(1.0).items() if value > 0 and role != "head"]
    if not isinstance(per_rank, dict) or not all(isinstance(per_rank.get(role), int) for role in trained):
        return None
    return candidate.rank * sum(int(per_rank[role]) for role in trained)


def judged_candidates(result: SearchResult) -> list[JudgedCandidate]:
    """Return those among whom the winner was chosen, the best first."""
    groups = {
        candidate: group
        for candidate, group in data.judged(result).items()
        if candidate.targets in result.study.space.targets
    }
    loss = verdict.judged_by([record for group in groups.values() for record in group])
    losses = {candidate: float(np.mean([loss(r) for r in group])) for candidate, group in groups.items()}
    ranked = sorted(losses, key=lambda candidate: losses[candidate])
    winner, found = data.own_winner(result), []
    for candidate in ranked:
        own, best = groups[candidate], groups[ranked[0]]
        is_best = candidate == ranked[0]
        error = None if is_best else verdict.standard_error(own, best)
        as_good = is_best or verdict.is_as_good(own, best)
        found.append(JudgedCandidate(own[0].label, candidate, losses[candidate], error, as_good, candidate == winner))
    return found


def effect(result: SearchResult, name: str) -> go.Figure | None:
    """Score against a choice such as the rank: trials, their median, and those among whom the winner was chosen.

    Args:
        result: the search.
        name: of the dimension: rank, targets, ...

    Returns:
        Plotly's figure; None if nothing is chosen.
    """
    groups = values(result, name)
    if not groups or groups[0].value == 0:
        return None
    if len(groups) < 2 and name != "rank":
        return None
    drawn = blank(TITLES.get(name, name), "held-out loss" if result.finals else "validation loss")
    labels = {group.value: _label(group) for group in groups}
    for group in groups:
        drawn.add_scatter(
            x=[labels[group.value]] * len(group.trials),
            y=group.scores,
            mode="markers",
            name="trial",
            showlegend=group is groups[0],
            marker={"color": GREY, "size": 8, "opacity": 0.6},
            text=[describe(trial) for trial in group.trials],
            hovertemplate="%{text}<br>%{y:.4f}<extra></extra>",
        )
    drawn.add_scatter(
        x=list(labels.values()),
        y=[float(np.median(group.scores)) for group in groups],
        mode="lines+markers",
        name="median",
        showlegend=True,
        marker={"symbol": "line-ew-open", "size": 24, "color": INK, "line": {"width": 2}},
        line={"color": INK, "width": 1, "dash": "dot"},
        hovertemplate="median %{y:.4f}<extra></extra>",
    )
    judged = [one for one in judged_candidates(result) if getattr(one.candidate, name) in labels]
    for chosen in (False, True):
        some = [one for one in judged if one.chosen == chosen]
        drawn.add_scatter(
            x=[labels[getattr(one.candidate, name)] for one in some],
            y=[one.loss for one in some],
            mode="markers",
            name="chosen" if chosen else "finalist" if result.finals else "compared",
            showlegend=bool(some),
            marker={"symbol": "star" if chosen else "diamond", "size": 15 if chosen else 9, "color": ACCENT},
            error_y={"type": "data", "array": [one.error or 0.0 for one in some], "color": ACCENT, "thickness": 1.5},
            text=[_hover(one) for one in some],
            hovertemplate="%{text}<br>%{y:.4f}<extra></extra>",
        )
    if judged:
        drawn.add_hline(y=judged[0].loss, line={"color": ACCENT, "width": 1, "dash": "dash"})
    drawn.update_layout(showlegend=True)
    drawn.update_xaxes(type="category", categoryorder="array", categoryarray=list(labels.values()))
    return drawn


def headline(result: SearchResult) -> str | None:
    """Return what the one-standard-error rule chose, in a sentence; None before there is a winner."""
    judged = judged_candidates(result)
    chosen = next((one for one in judged if one.chosen), None)
    if chosen is None or not chosen.candidate.rank:
        return None
    size = parameters(result, chosen.candidate)
    about = f" ({size:,} adapter parameters)" if size is not None else ""
    if chosen is judged[0]:
        return f"Rank {chosen.candidate.rank}{about} is that of the best; no smaller one is as good."
    best = judged[0].candidate.rank
    return (
        f"Rank {chosen.candidate.rank}{about} is the smallest within one standard error of the best, which has "
        f"rank {best}."
    )


def _rank_text(result: SearchResult) -> str:
    finals = bool(result.finals)
    judged = "full-run loss of the finalists on held-out data" if finals else "mean validation loss of the compared"
    return (
        "Trials of each rank, brought to the last rung by the median change of the trials that went on, and their "
        "median; under a rank: the number of adapter parameters, if the run knows it. Diamonds: "
        f"{judged}; a bar is one standard error of the difference to the best, paired by "
        f"{'example and step' if finals else 'seed'}. A bar that reaches the dashed line is as good as the best: the "
        "smallest such rank is chosen."
    )


def _rank_missing(result: SearchResult) -> str:
    whole = result.study.method.full
    return "There is no rank: matrices are trained whole." if whole else "No trial has a score yet."


@figure(
    "rank_effect",
    "Effect of rank",
    40,
    _rank_text,
    _rank_missing,
    look_for="a bar that reaches the dashed line is as good as the best; the smallest such rank is taken",
    headline=headline,
)
def rank_effect(result: SearchResult) -> go.Figure | None:
    """Score against rank and trainable parameters; None if there is no rank."""
    return effect(result, "rank")


def _text(title: str, result: SearchResult) -> str:
    judged = "the finalists, at the end of the full run" if result.finals else "the compared"
    return f"Trials of each {title}, and their median; diamonds: {judged}."


def _is_chosen(name: str, result: SearchResult) -> bool:
    study = result.study
    given = study.method.kind if name == "kind" else getattr(study.space, name)
    return isinstance(given, list) and len(given) > 1


for _order, (_name, _title) in enumerate(
    {"targets": "matrices trained", "kind": "method", "loraplus_lr_ratio": "ratio ρ of LoRA+"}.items()
):
    figure(
        f"{_name}_effect",
        f"Effect of the {_title}",
        50 + _order,
        partial(_text, _title),
        "No trial has a score yet.",
        look_for="whether a value of this choice is better than the others, if the study names several",
        applies=partial(_is_chosen, _name),
    )(partial(effect, name=_name))


def _label(group: Value) -> str:
    text = html.escape(str(group.value))
    return text if group.parameters is None else f"{text}<br>{group.parameters:,}"


def _hover(one: JudgedCandidate) -> str:
    text = f"{one.label}: {one.candidate.describe()}"
    if one.error is not None:
        text += f", within {display.loss(one.error)} of the best: {'yes' if one.as_good else 'no'}"
    return html.escape(text)
