"""An A/B comparison: recipes trained with the same seeds, or trained adapters, judged on the same examples."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from autolr import display, documents
from autolr.documents import Document
from autolr.errors import DocumentError, RunError
from autolr.model.device import choose_device
from autolr.model.quiet import quiet
from autolr.pack.graphs import Graphs
from autolr.pack.pack import Pack
from autolr.pack.rows import ROLES
from autolr.pack.slots import SlotConfig
from autolr.recipe import Interval, Recipe
from autolr.search import machine, notebook, provenance, records, scored
from autolr.search.arms import Arm, read_arms
from autolr.search.checkpoints import Checkpoints
from autolr.search.confirm import Confirmation
from autolr.search.folder import RunFolder
from autolr.search.loop import Job, Watcher, drive
from autolr.search.records import RepeatRecord
from autolr.search.setting import PROBE_STEPS
from autolr.search.spread import LEVEL, POWER, Spread, p_value
from autolr.search.state import observed
from autolr.study import Data
from autolr.train.material import Material, read

# A difference smaller than this share of the first's loss does not matter, unless the user says otherwise.
WORTH = 0.01
Outcome = Literal["better", "worse", "equal", "open"]


class ArmScore(Document):
    """What an arm has scored, mean over its seeds."""

    label: str
    source: str
    setting: str = Field(description="candidate, method and steps in words")
    select_loss: float
    confirm_loss: float
    confirm_metric: float
    diverged: int = Field(0, description="trainings that went wrong; they count, with a loss that is as bad")
    tokens: int = 0
    seconds: float = 0.0


class Pair(Document):
    """An arm against the first."""

    label: str
    outcome: Outcome = Field(description="of this arm; equal: no difference that matters; open: not shown either way")
    gain: Interval = Field(description="confirm loss of the first minus this arm's: above 0, this arm is better")
    level: float = Field(description="chance that the interval holds the truth, corrected for several arms")
    p_examples: float = Field(description="paired t-test over examples, each its mean over the seeds")
    p_seeds: float | None = Field(None, description="paired t-test over seeds, each its mean over the examples")
    power: float = Field(description="chance that this comparison finds a difference of `worth`")
    detectable: float = Field(description="the smallest true difference it finds in 8 of 10 cases")
    size: float = Field(description="the difference that seeds_needed and examples_needed find in 8 of 10 cases")
    seeds_needed: int | None = Field(None, description="with as many examples; null: no number of seeds does")
    examples_needed: int | None = Field(None, description="with as many seeds; null: no number of examples does")


class Comparison(Document):
    """The result of an A/B comparison; the first arm is what the others are measured against."""

    format: int = Field(1, ge=1, le=1)
    data: str
    metric: str
    examples: int = Field(description="of confirm, on which all are judged")
    seeds: list[int] = Field(description="of the trainings; empty for adapters that came trained")
    worth: float = Field(description="the smallest difference of confirm loss that matters")
    verdict: str
    notes: list[str] = []
    arms: list[ArmScore]
    pairs: list[Pair]
    device: str
    versions: dict[str, str] = {}
    commit: str | None = None

    def _repr_html_(self) -> str:
        """Return the comparison as a notebook shows it."""
        judged = f"{self.examples} confirm examples of {self.data}, {len(self.seeds) or 1} trainings of each"
        gains = {pair.label: pair for pair in self.pairs}
        rows = [
            (
                arm.label,
                arm.setting,
                f"{display.loss(arm.confirm_loss)}",
                f"{arm.confirm_metric:.4f}",
                ""
                if (pair := gains.get(arm.label)) is None
                else f"{display.gap(pair.gain.mean)} ({display.gap(pair.gain.low)} to {display.gap(pair.gain.high)})",
            )
            for arm in self.arms
        ]
        heads = ["who", "what", "confirm loss", self.metric, "gain over the first"]
        return display.table(self.verdict, [("judged on", judged)]) + display.grid(heads, rows)

    def to_json(self) -> str:
        """Return the comparison as JSON."""
        return json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False)


def compare(
    arms: Sequence[Recipe | str | Path],
    *,
    vary: Sequence[str] = (),
    data: str | Data | None = None,
    model: str | None = None,
    seeds: int = 3,
    steps: int | None = None,
    worth: float | None = None,
    slots: int | None = None,
    out: str | Path | None = None,
    device: str | None = None,
    watcher: Watcher | None = None,
    allow_code: bool = False,
    trust_remote_code: bool = False,
) -> Comparison:
    """Say which of several recipes, or trained adapters, is better, by how much, and how sure that is.

    Recipes are trained side by side with the same seeds, so the same data order and the same first values, and
    judged on *confirm*; adapters are judged as they are. Given again with the same `out`, trainings that are there
    are not repeated.

    Args:
        arms: recipes, their files, run folders, or folders of trained adapters; the first is the reference.
        vary: changes such as `ratio=1`; each is one more arm, the first recipe with that change.
        data: what all are trained and judged on; None: the recipes' own, which must be the same.
        model: base model of adapters that came without a recipe.
        seeds: trainings of each recipe.
        steps: of each training, the first ones of its full run; None: all.
        worth: the smallest difference of confirm loss that matters; None: 1 % of the first's.
        slots: trainings at once; None: as many as pay and fit the device.
        out: folder of the comparison; None: `runs/compare-<identity>`.
        device: such as `cpu` or `cuda:0`; None: the GPU where there is one.
        watcher: is told what happens; None: in a notebook a live view, elsewhere nobody.
        allow_code: whether the recipes' metric may be code of your own, `my_module:function`.
        trust_remote_code: whether Python code that comes with the model may run, where the recipes ask for it.

    Raises:
        AutoLRError: input is at fault; nothing has been trained.
    """
    found = read_arms(arms, vary)
    _check(seeds, steps, worth, slots)
    code = {"allow_code": allow_code, "trust_remote_code": trust_remote_code}
    where = choose_device(device)
    other = other_data(data, found)
    identity = _identity(found, other, steps)
    folder = RunFolder(out if out is not None else default_folder(identity))
    with folder.lock(), observed(folder, where, watcher or notebook.live()) as told:
        _open(folder, identity)
        if found[0].adapter is not None:
            scores = scored.score(found, other, model, where, told, **code)
            notes, metric, count, source = scores.notes, scores.metric, scores.examples, scores.source
            repeats = scores.repeats
        else:
            material, repeats = _train(found, other, seeds, steps, slots, folder, where, told, code)
            notes, metric, count = _notes(found, seeds, repeats), material.task.metric, len(material.data.confirm)
            source = (other or _recipe(found[0]).data).source
        arm_scores = [_arm_score(arm, repeats[arm.label]) for arm in found]
        limit = worth if worth is not None else float(f"{WORTH * abs(arm_scores[0].confirm_loss):.2g}")
        pairs = [_pair(found[0], arm, repeats, limit, len(found) - 1) for arm in found[1:]]
        result = Comparison(
            data=source,
            metric=metric,
            examples=count,
            seeds=[] if found[0].adapter is not None else [r.seed for r in repeats[found[0].label]],
            worth=limit,
            verdict=sentence(found[0].label, pairs, limit, trained=found[0].adapter is None),
            notes=notes,
            arms=arm_scores,
            pairs=pairs,
            device=str(where),
            versions=provenance.versions(),
            commit=provenance.commit(),
        )
        documents.write_text(folder.path / "comparison.json", result.to_json() + "\n")
        shutil.rmtree(folder.slots, ignore_errors=True)
    return result


def default_folder(identity: dict[str, Any]) -> Path:
    """Return the folder of a comparison where none is given: the same arms, the same folder."""
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return Path("runs") / f"compare-{digest[:8]}"


def folder_of(
    arms: Sequence[Recipe | str | Path],
    vary: Sequence[str] = (),
    data: str | Data | None = None,
    steps: int | None = None,
) -> Path:
    """Return the folder `compare` takes where none is given."""
    found = read_arms(arms, vary)
    return default_folder(_identity(found, other_data(data, found), steps))


def sentence(first: str, pairs: Sequence[Pair], worth: float, *, trained: bool) -> str:
    """Say what the comparison has shown, and what would settle what it has not."""
    return " ".join(_say(first, pair, worth, trained=trained) for pair in pairs)


def _say(first: str, pair: Pair, worth: float, *, trained: bool) -> str:
    gain = pair.gain
    by = f"{display.loss(abs(gain.mean))} of confirm loss"
    bounds = sorted([abs(gain.low), abs(gain.high)])
    level = f"{100 * pair.level:.3g}% interval"
    if pair.outcome in ("better", "worse"):
        little = "" if abs(gain.mean) >= worth else f", which is less than what matters ({worth:.2g})"
        shown = f"{by} ({level} {display.loss(bounds[0])} to {display.loss(bounds[1])})"
        return f"{pair.label} is {pair.outcome} than {first} by {shown}{little}."
    seen = f"{display.gap(gain.mean)}, {level} {display.gap(gain.low)} to {display.gap(gain.high)}"
    if pair.outcome == "equal":
        return f"{pair.label} and {first} differ by nothing that matters ({worth:.2g}): {seen}."
    text = (
        f"Whether {pair.label} is better than {first} is open: {seen}; a difference of {worth:.2g} would be found "
        f"with {100 * pair.power:.0f}% chance."
    )
    ways = []
    if trained and pair.seeds_needed is not None:
        ways.append(f"{pair.seeds_needed} seeds")
    if pair.examples_needed is not None:
        ways.append(f"{pair.examples_needed:,} confirm examples")
    if ways:
        return f"{text} If {pair.size:.2g} is the truth, {' or '.join(ways)} would show it in 8 of 10 cases."
    return f"{text} Neither more seeds nor more examples alone would settle {pair.size:.2g}: take more of both."


def _check(seeds: int, steps: int | None, worth: float | None, slots: int | None) -> None:
    problems = []
    if not 2 <= seeds <= 1000:
        problems.append(f"--seeds {seeds}: must lie between 2 and 1000; one training says nothing about the next")
    if steps is not None and steps < 2:
        problems.append(f"--steps {steps}: must be at least 2")
    if worth is not None and not 0 < worth < np.inf:
        problems.append(f"--worth {worth:g}: must be a loss above 0")
    if slots is not None and slots < 1:
        problems.append(f"--slots {slots}: must be at least 1")
    if problems:
        raise DocumentError("comparison", problems)


def other_data(data: str | Data | None, arms: Sequence[Arm]) -> Data | None:
    """Return the data given instead of the recipes' own; None if none is given.

    Raises:
        RunError: none is given, and the arms have no recipes, or recipes of other data.
    """
    recipes = [arm.recipe for arm in arms if arm.recipe is not None]
    if isinstance(data, str):
        length = {"max_length": recipes[0].data.max_length} if recipes else {}
        return documents.validate(Data, {"source": data, **length}, "--data")
    if data is not None:
        return data
    without = [arm.source for arm in arms if arm.recipe is None]
    if without:
        raise RunError(f"{without[0]}: this adapter came without a recipe; say on what it is to be judged: --data")
    seen = {_data_key(recipe): arm for arm, recipe in zip(reversed(arms), reversed(recipes), strict=True)}
    if len(seen) > 1:
        names = ", ".join(f"{arm.source} ({arm.recipe.data.source})" for arm in seen.values() if arm.recipe)
        raise RunError(f"these have other data, or split it otherwise: {names}; say which one to compare on: --data")
    return None


def _data_key(recipe: Recipe) -> str:
    content = recipe.data.model_dump(mode="json", exclude={"max_length"})
    return json.dumps([content, recipe.data_fingerprint, recipe.split_seed, recipe.task], sort_keys=True)


def _recipe(arm: Arm) -> Recipe:
    assert arm.recipe is not None
    return arm.recipe


def _identity(arms: Sequence[Arm], other: Data | None, steps: int | None) -> dict[str, Any]:
    """Return what a training depends on; its folder holds no others."""
    kept = {"evidence", "versions", "commit", "name"}
    return {
        "arms": {
            arm.label: arm.recipe.model_dump(mode="json", exclude=kept)
            if arm.recipe is not None and arm.adapter is None
            else str(arm.source)
            for arm in arms
        },
        "data": other.model_dump(mode="json") if other else None,
        "steps": steps,
    }


def _open(folder: RunFolder, identity: dict[str, Any]) -> None:
    page = folder.path / "arms.json"
    text = json.dumps(identity, sort_keys=True, indent=1) + "\n"
    if page.is_file():
        if page.read_text(encoding="utf-8") != text:
            raise RunError(f"--out {folder.path}: already holds another comparison; choose another --out")
    elif any(item.name != ".lock" for item in folder.path.iterdir()):
        raise RunError(f"--out {folder.path}: is not empty and holds no comparison; choose another --out")
    documents.write_text(page, text)


def _train(
    arms: Sequence[Arm],
    other: Data | None,
    seeds: int,
    steps: int | None,
    slots: int | None,
    folder: RunFolder,
    where: Any,
    watcher: Watcher,
    code: dict[str, bool],
) -> tuple[Material, dict[str, list[RepeatRecord]]]:
    """Train every recipe with every seed; those that share a model and settings share packs."""
    chosen = range(1, seeds + 1)
    done = {(record.label, record.seed): record for record in _records(folder)}
    missing = {arm.label: [seed for seed in chosen if (arm.label, seed) not in done] for arm in arms}
    # All are judged by the first's metric, and on other data split alike.
    same = _recipe(arms[0]).model_dump(include={"metric", "split_seed"})
    total = seeds * len(arms)
    watcher.phase("comparison", total, total - sum(map(len, missing.values())))
    material = None
    for _, together in groupby(sorted(arms, key=_group), key=_group):
        group = list(together)
        recipes = [_recipe(arm).model_copy(update=same) for arm in group]
        largest = max(recipes, key=lambda recipe: recipe.candidate.rank)
        with quiet():
            material = read(largest, where, other, **code)
        jobs = [
            Job(arm.label, recipe.candidate, _slot(recipe, material, other, seed, steps), seed, _key(arm, seed))
            for arm, recipe in zip(group, recipes, strict=True)
            for seed in missing[arm.label]
        ]
        if jobs:
            _drive(jobs, recipes, material, slots, folder, watcher)
    assert material is not None
    done = {(record.label, record.seed): record for record in _records(folder)}
    return material, {arm.label: [done[arm.label, seed] for seed in chosen] for arm in arms}


def _drive(
    jobs: Sequence[Job],
    recipes: Sequence[Recipe],
    material: Material,
    slots: int | None,
    folder: RunFolder,
    watcher: Watcher,
) -> None:
    trained = {role for job in jobs for role in job.config.roles}
    roles = tuple(role for role in ROLES if role in trained)
    rank = max(job.config.rank for job in jobs)

    def pack(count: int, passes: int | None = None, graphs: bool = False) -> Pack:
        return Pack(
            material.backbone,
            recipes[0].training,
            material.task,
            material.data.train,
            capacity=count,
            max_rank=rank,
            alpha=recipes[0].method.alpha,
            kinds=sorted({job.config.kind for job in jobs}),
            roles=roles,
            passes=passes,
            graphs=Graphs(material.data.train.pad_id, limit=material.backbone.max_length) if graphs else None,
        )

    rates = {role: max(job.config.rates[role] for job in jobs) for role in roles}
    costly = max((job.config for job in jobs), key=lambda config: config.kind == "dora")
    largest = SlotConfig(rates, rank, 0, PROBE_STEPS, kind=costly.kind)
    batch = recipes[0].training.batch_size
    fitted = machine.measured(pack, largest, len(jobs), slots, material.data, batch)
    with pack(min(fitted.slots, len(jobs)), fitted.passes, fitted.graphs) as made:
        keeper = Checkpoints(folder.slots, watcher, "main")
        drive(made, Confirmation(jobs, folder.confirm, made, material.data), watcher, keeper)


def _key(arm: Arm, seed: int) -> str:
    return f"arm-{hashlib.sha256(arm.label.encode()).hexdigest()[:10]}-seed{seed}"


def _slot(recipe: Recipe, material: Material, other: Data | None, seed: int, steps: int | None) -> SlotConfig:
    horizon = recipe.training.horizon
    length = recipe.steps
    if other is not None and horizon.epochs:  # as many epochs of the other data
        length = max(1, round(horizon.epochs * (len(material.data.train) // recipe.training.batch_size)))
    rates = recipe.rates.trained()
    return SlotConfig(
        rates={role: rates.get(role, 0.0) for role in ROLES},
        rank=recipe.candidate.rank,
        seed=seed,
        steps=length,
        stop=steps,
        kind=recipe.candidate.kind,
        rates_b=recipe.rates.b,
        heads=recipe.rates.heads,
    )


def _group(arm: Arm) -> str:
    """Return what slots of one pack must share."""
    recipe = _recipe(arm)
    # Matrices that train whole would give every slot columns for them.
    method = [recipe.method.full, recipe.method.alpha]
    return json.dumps([recipe.model, method, recipe.training.model_dump(), recipe.data.max_length], sort_keys=True)


def _records(folder: RunFolder) -> list[RepeatRecord]:
    return records.parsed(folder.confirm, RepeatRecord)


def _arm_score(arm: Arm, repeats: Sequence[RepeatRecord]) -> ArmScore:
    def mean(value: Callable[[RepeatRecord], float]) -> float:
        return float(np.mean([value(record) for record in repeats]))

    recipe = arm.recipe
    setting = "adapter" if arm.adapter is not None else ""
    if recipe is not None:
        length = "" if arm.adapter is not None else f", {max(len(record.curve) for record in repeats)} steps"
        setting = f"{setting} {recipe.candidate.describe()}{length}".strip()
    return ArmScore(
        label=arm.label,
        source=arm.source,
        setting=setting,
        select_loss=mean(lambda record: record.select_loss),
        confirm_loss=mean(lambda record: record.confirm_loss),
        confirm_metric=mean(lambda record: record.confirm_metric),
        diverged=sum(record.diverged for record in repeats),
        tokens=sum(record.tokens for record in repeats),
        seconds=round(sum(record.seconds for record in repeats), 2),
    )


def _pair(first: Arm, arm: Arm, repeats: dict[str, list[RepeatRecord]], worth: float, pairs: int) -> Pair:
    """Compare an arm with the first; with several arms all intervals together hold with 90 % chance (Bonferroni)."""
    differences = _losses(repeats[first.label]) - _losses(repeats[arm.label])
    spread, level = Spread.of(differences), 1 - (1 - LEVEL) / pairs
    gain = spread.interval(level)
    size = max(abs(gain.mean), worth)
    outcome: Outcome = "open"
    if gain.low > 0 or gain.high < 0:
        outcome = "better" if gain.mean > 0 else "worse"
    elif max(-gain.low, gain.high) < worth:
        outcome = "equal"
    return Pair(
        label=arm.label,
        outcome=outcome,
        gain=gain,
        level=level,
        p_examples=p_value(differences.mean(0)),
        p_seeds=p_value(differences.mean(1)) if len(differences) > 1 else None,
        power=spread.power(worth, level),
        detectable=spread.detectable(level, POWER),
        size=size,
        seeds_needed=spread.seeds_needed(size, level),
        examples_needed=spread.examples_needed(size, level),
    )


def _losses(repeats: Sequence[RepeatRecord]) -> np.ndarray:
    return np.array([record.losses for record in repeats])


def _notes(arms: Sequence[Arm], seeds: int, repeats: dict[str, list[RepeatRecord]]) -> list[str]:
    notes = [
        f"{arm.label}: {count} of {seeds} trainings diverged; the mean stands for them as they are"
        for arm in arms
        if (count := sum(record.diverged for record in repeats[arm.label]))
    ]
    if len({_recipe(arm).steps for arm in arms}) > 1:
        notes.append("the recipes have full runs of different lengths")
    return notes
