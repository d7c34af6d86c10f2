"""Searches made by hand, for figures and pages that no training has to come before."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from autolr.rundir.records import Phase, Record, TrialRecord
from autolr.rundir.result import SearchResult
from autolr.schema.candidate import Candidate
from autolr.schema.recipe import Cost, Evidence, Rates, Recipe
from autolr.schema.study import Study
from autolr.tuner.judge import verdict

LENGTH = 50
RUNGS = (12, 25, 50)


def trial(number: int, curve=(), lr_v=1e-3, ratio=1.0, **fields) -> TrialRecord:
    candidate = Candidate(lr_v=lr_v, ratio=ratio, rank=8)
    return TrialRecord(
        **{"number": number, "candidate": candidate, "curve": list(curve), "outcome": "finished"} | fields
    )


def result(folder: Path, *trials: TrialRecord, **fields) -> SearchResult:
    kept = {"study": Study(model="m", data="d"), "trainings": [], "phases": [], "recipe": None}
    return SearchResult(folder, **{**kept, "trials": list(trials), **fields})


def loss_of(candidate: Candidate) -> float:
    """η_V decides, λ helps a little, and a higher rank next to nothing."""
    return (
        0.4
        + 0.1 * (np.log10(candidate.lr_v) + 2.8) ** 2
        + 0.02 * (np.log10(candidate.ratio) - 0.7) ** 2
        - 0.001 * np.log2(candidate.rank)
    )


def curve(end: float, length: int, rng: np.random.Generator) -> list[float]:
    steps = np.arange(length)
    return [float(f"{x:.5g}") for x in end + 0.3 * np.exp(-steps / 12) + 0.02 * rng.standard_normal(length)]


def searched(folder: Path, count: int = 40, *, targets: str = "qv", finished: bool = True, **study) -> SearchResult:
    """A search of `count` trials, some of them pruned and one diverged; with a confirmation if `finished`."""
    rng = np.random.default_rng(0)
    trials = []
    for number in range(count):
        lr_v, ratio = 10 ** rng.uniform(-4, -2), 2 ** rng.uniform(-1, 5)
        candidate = Candidate(lr_v=lr_v, ratio=ratio, rank=int(rng.choice([4, 8, 16])), targets=targets)
        rule = None
        if number == 0:
            candidate, rule = Candidate(lr_v=1e-3, ratio=1.0, rank=8, targets=targets), "default"
        end = loss_of(candidate)
        length = LENGTH if number < 3 or rng.random() < 0.4 else int(rng.choice(RUNGS[:2]))
        outcome = "finished" if length == LENGTH else "pruned"
        losses = curve(end, length, rng)
        if number == 1:
            outcome, losses = "diverged", [0.7 * 1.5**step for step in range(10)]
        rungs = {
            step: end + 0.3 * np.exp(-step / 12) + 0.003 * rng.standard_normal()
            for step in RUNGS
            if step <= len(losses)
        }
        trials.append(
            TrialRecord(
                number=number, candidate=candidate, baseline=rule, outcome=outcome, curve=losses, rungs=rungs,
                score=rungs[max(rungs)] if rungs else None, tokens=500 * len(losses), seconds=0.1 * len(losses),
            )
        )  # fmt: skip
    told = Study(model="m", data="d", space={"targets": targets}, budget={"trials": count}, **study)
    phases = [Phase(phase="trials", seconds=61.5, trained_tokens=90_000, evaluated_tokens=20_000)]
    found = SearchResult(folder, told, trials, [], phases, None)
    if not finished:
        return found
    best = Candidate(lr_v=1.6e-3, ratio=5.0, rank=4, targets=targets)
    line_up = {
        best: "finalist 1",
        best.model_copy(update={"rank": 16}): "finalist 2",
        best.model_copy(update={"ratio": 1.0}): "same_lr",
        trials[0].candidate: "default",
    }
    repeats = [
        Record(
            label=label, candidate=candidate, seed=seed, validation_loss=loss_of(candidate) + noise,
            validation_metric=0.8, test_loss=loss_of(candidate), test_metric=0.8,
            losses=(loss_of(candidate) + 0.01 * rng.standard_normal(30)).tolist(),
            curve=curve(loss_of(candidate), LENGTH, np.random.default_rng(seed)),
        )
        for candidate, label in line_up.items()
        for seed, noise in ((1, 0.002 * rng.standard_normal()), (2, 0.0), (3, 0.002 * rng.standard_normal()))
    ]  # fmt: skip
    winner = verdict.choose(repeats, told.space.targets)
    scores = verdict.scores(repeats, winner)
    recipe = Recipe(
        name="made", model="m", data=told.data, classes=["no", "yes"], method=told.method, training=told.training,
        candidate=winner, steps=200, rates=Rates(q=winner.lr_q, v=winner.lr_v, head=5e-3),
        evidence=Evidence(
            verdict=verdict.sentence(scores),
            trials={"total": count},
            seeds=3,
            scores=scores,
            cost=Cost(device_seconds=61.5, trained_tokens=90_000, evaluated_tokens=20_000, full_run_equivalents=1.5),
        ),
    )  # fmt: skip
    phases.append(Phase(phase="seeds", seconds=30.0, trained_tokens=40_000, evaluated_tokens=9_000))
    return SearchResult(folder, told, trials, repeats, phases, recipe)
