"""The trainings of an A/B comparison: every recipe with every seed, packed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from autolr.abtest.arms import Arm
from autolr.model.quiet import quiet
from autolr.pack.factory import PackFactory
from autolr.pack.layout import ROLES
from autolr.pack.slots import SlotConfig
from autolr.problem import Problem, load_problem
from autolr.progress.callbacks import Callback
from autolr.progress.jobs import Job
from autolr.rundir import records
from autolr.rundir.folder import RunFolder
from autolr.rundir.records import Record
from autolr.schema.data import Data
from autolr.schema.recipe import Recipe
from autolr.tuner import hardware
from autolr.tuner.execute.checkpoints import Checkpoints
from autolr.tuner.execute.loop import drive
from autolr.tuner.execute.scoring import PackScorer
from autolr.tuner.execute.trainings import Trainings
from autolr.tuner.setting import PROBE_STEPS


def train(
    arms: Sequence[Arm],
    other: Data | None,
    seeds: int,
    steps: int | None,
    slots: int | None,
    folder: RunFolder,
    where: Any,
    callback: Callback,
    code: dict[str, bool],
) -> tuple[Problem, dict[str, list[Record]]]:
    """Train every recipe with every seed; those that share a model and settings share packs."""
    chosen = range(1, seeds + 1)
    done = {(record.label, record.seed): record for record in _records(folder)}
    missing = {arm.label: [seed for seed in chosen if (arm.label, seed) not in done] for arm in arms}
    # All are judged by the first's metric, and on other data split alike.
    same = arms[0].to_train.model_dump(include={"metric", "split_seed"})
    total = seeds * len(arms)
    callback.phase("comparison", total, total - sum(map(len, missing.values())))
    problem = None
    for _, together in groupby(sorted(arms, key=_group), key=_group):
        group = list(together)
        recipes = [arm.to_train.model_copy(update=same) for arm in group]
        largest = max(recipes, key=lambda recipe: recipe.candidate.rank)
        with quiet():
            problem = load_problem(largest, where, other, **code)
        jobs = [
            Job(arm.label, recipe.candidate, _slot(recipe, problem, other, seed, steps), seed, _key(arm, seed))
            for arm, recipe in zip(group, recipes, strict=True)
            for seed in missing[arm.label]
        ]
        if jobs:
            _drive(jobs, recipes, problem, slots, folder, callback)
    assert problem is not None
    done = {(record.label, record.seed): record for record in _records(folder)}
    return problem, {arm.label: [done[arm.label, seed] for seed in chosen] for arm in arms}


def _drive(
    jobs: Sequence[Job],
    recipes: Sequence[Recipe],
    problem: Problem,
    slots: int | None,
    folder: RunFolder,
    callback: Callback,
) -> None:
    trained = {role for job in jobs for role in job.config.roles}
    roles = tuple(role for role in ROLES if role in trained)
    rank = max(job.config.rank for job in jobs)

    first = recipes[0]
    pack = PackFactory(
        problem.backbone,
        first.training,
        problem.task,
        problem.data.train,
        rank,
        first.method.lora_alpha,
        sorted({job.config.kind for job in jobs}),
        roles,
    )
    rates = {role: max(job.config.rates[role] for job in jobs) for role in roles}
    costly = max((job.config for job in jobs), key=lambda config: config.kind == "dora")
    largest = SlotConfig(rates, rank, 0, PROBE_STEPS, kind=costly.kind)
    fitted = hardware.measured(pack, largest, len(jobs), slots, problem.data, first.training.batch_size)
    with pack(min(fitted.slots, len(jobs)), fitted.passes, fitted.graphs) as made:
        keeper = Checkpoints(folder.slots, callback, "main")
        source = Trainings(jobs, folder.trainings, PackScorer(made, problem.data))
        drive(made, source, callback, keeper)


def _key(arm: Arm, seed: int) -> str:
    return f"arm-{hashlib.sha256(arm.label.encode()).hexdigest()[:10]}-seed{seed}"


def _slot(recipe: Recipe, problem: Problem, other: Data | None, seed: int, steps: int | None) -> SlotConfig:
    horizon = recipe.training.horizon
    length = recipe.steps
    if other is not None and horizon.epochs:  # as many epochs of the other data
        length = max(1, round(horizon.epochs * (len(problem.data.train) // recipe.training.batch_size)))
    rates = recipe.rates.trained()
    all_rates = {role: rates.get(role, 0.0) for role in ROLES}
    return SlotConfig.of(recipe.candidate, all_rates, recipe.rates.b, seed, length, steps)


def _group(arm: Arm) -> str:
    """Return what slots of one pack must share."""
    recipe = arm.to_train
    # Matrices that train whole would give every slot columns for them.
    method = [recipe.method.full, recipe.method.lora_alpha]
    return json.dumps([recipe.model, method, recipe.training.model_dump(), recipe.data.max_length], sort_keys=True)


def _records(folder: RunFolder) -> list[Record]:
    return records.parsed(folder.trainings, Record)
