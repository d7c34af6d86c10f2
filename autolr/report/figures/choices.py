"""What is chosen from a list, such as the rank: scores, costs, and what the one-standard-error rule made of them."""

from __future__ import annotations

import html
from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np

from autolr import display
from autolr.candidate import Candidate
from autolr.report import data
from autolr.report.figures.style import ACCENT, GREY, INK, blank, describe
from autolr.search import verdict
from autolr.search.records import TrialRecord
from autolr.search.result import SearchResult

TITLES = {"rank": "rank", "targets": "matrices", "kind": "method", "rho": "ρ"}


class Value(NamedTuple):
    """Trials of one value of a dimension.

    Attributes:
        scores: select loss brought to the last rung, trial by trial.
        parameters: what the adapters of a winner with this value train; None where the run does not say.
    """

    value: Any
    trials: list[TrialRecord]
    scores: list[float]
    parameters: int | None


class Confirmed(NamedTuple):
    """A candidate of the study's own that was in the finals; where there were none, in the confirmation.

    Attributes:
        loss: by which it was compared with the others, the mean over seeds.
        error: standard error of its difference to the best; None: it is the best, or nobody can say.
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
    """Return how many numbers the adapters of a candidate train; None where the run does not say."""
    per_rank = data.machine(result).get("per_rank")
    trained = [role for role, value in candidate.rates(1.0).items() if value > 0 and role != "head"]
    if not isinstance(per_rank, dict) or not all(isinstance(per_rank.get(role), int) for role in trained):
        return None
    return candidate.rank * sum(int(per_rank[role]) for role in trained)


def confirmed(result: SearchResult) -> list[Confirmed]:
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
        found.append(Confirmed(own[0].label, candidate, losses[candidate], error, as_good, candidate == winner))
    return found


def effect(result: SearchResult, name: str) -> Any:
    """Score against a choice such as the rank: trials, their median, and those among whom the winner was chosen.

    None where nothing is chosen.

    Args:
        result: the search.
        name: of the dimension: rank, targets, ...
    """
    groups = values(result, name)
    if not groups or groups[0].value == 0:
        return None
    if len(groups) < 2 and name != "rank":
        return None
    figure = blank(TITLES.get(name, name), "held-out loss" if result.finals else "select loss")
    labels = {group.value: _label(group) for group in groups}
    for group in groups:
        figure.add_scatter(
            x=[labels[group.value]] * len(group.trials),
            y=group.scores,
            mode="markers",
            name="trial",
            showlegend=group is groups[0],
            marker={"color": GREY, "size": 8, "opacity": 0.6},
            text=[describe(trial) for trial in group.trials],
            hovertemplate="%{text}<br>%{y:.4f}<extra></extra>",
        )
    figure.add_scatter(
        x=list(labels.values()),
        y=[float(np.median(group.scores)) for group in groups],
        mode="lines+markers",
        name="median",
        showlegend=True,
        marker={"symbol": "line-ew-open", "size": 24, "color": INK, "line": {"width": 2}},
        line={"color": INK, "width": 1, "dash": "dot"},
        hovertemplate="median %{y:.4f}<extra></extra>",
    )
    judged = [one for one in confirmed(result) if getattr(one.candidate, name) in labels]
    for chosen in (False, True):
        some = [one for one in judged if one.chosen == chosen]
        figure.add_scatter(
            x=[labels[getattr(one.candidate, name)] for one in some],
            y=[one.loss for one in some],
            mode="markers",
            name="chosen" if chosen else "finalist" if result.finals else "confirmed",
            showlegend=bool(some),
            marker={"symbol": "star" if chosen else "diamond", "size": 15 if chosen else 9, "color": ACCENT},
            error_y={"type": "data", "array": [one.error or 0.0 for one in some], "color": ACCENT, "thickness": 1.5},
            text=[_told(one) for one in some],
            hovertemplate="%{text}<br>%{y:.4f}<extra></extra>",
        )
    if judged:
        figure.add_hline(y=judged[0].loss, line={"color": ACCENT, "width": 1, "dash": "dash"})
    figure.update_layout(showlegend=True)
    figure.update_xaxes(type="category", categoryorder="array", categoryarray=list(labels.values()))
    return figure


def rank_effect(result: SearchResult) -> Any:
    """Score against rank and trainable parameters; None where there is no rank."""
    return effect(result, "rank")


def targets_effect(result: SearchResult) -> Any:
    """Score against the matrices that are trained; None where there is no choice."""
    return effect(result, "targets")


def kind_effect(result: SearchResult) -> Any:
    """Score against the method of training; None where there is no choice."""
    return effect(result, "kind")


def headline(result: SearchResult) -> str | None:
    """Say what the one-standard-error rule chose; None before there is a winner."""
    judged = confirmed(result)
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


def _label(group: Value) -> str:
    text = html.escape(str(group.value))
    return text if group.parameters is None else f"{text}<br>{group.parameters:,}"


def _told(one: Confirmed) -> str:
    text = f"{one.label}: {one.candidate.describe()}"
    if one.error is not None:
        text += f", within {display.loss(one.error)} of the best: {'yes' if one.as_good else 'no'}"
    return html.escape(text)
