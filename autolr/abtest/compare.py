"""An A/B comparison: recipes trained with the same seeds, or trained adapters, judged on the same examples."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from autolr.abtest import trained_adapters
from autolr.abtest.arms import Arm, read_arms
from autolr.abtest.comparison import Comparison, arm_score, notes_on, pair_of, sentence
from autolr.abtest.training import train
from autolr.errors import DocumentError, RunError
from autolr.model.device import choose_device
from autolr.progress import notebook
from autolr.progress.callbacks import Callback
from autolr.progress.state import observed
from autolr.rundir import provenance
from autolr.rundir.folder import RunFolder
from autolr.schema import yaml_io
from autolr.schema.data import Data
from autolr.schema.recipe import Recipe

# A difference smaller than this share of the first's loss does not matter, unless the user says otherwise.
WORTH = 0.01


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
    callback: Callback | None = None,
    allow_code: bool = False,
    trust_remote_code: bool = False,
) -> Comparison:
    """Return which of several recipes, or trained adapters, is better, by how much, and how sure that is.

    Recipes are trained side by side with the same seeds, so the same data order and the same first values, and
    judged on *test*; adapters are judged as they are. Given again with the same `out`, trainings that are there
    are not repeated.

    Args:
        arms: recipes, their files, run folders, or folders of trained adapters; the first is the reference.
        vary: changes such as `ratio=1`; each is one more arm, the first recipe with that change.
        data: what all are trained and judged on; None: the recipes' own, which must be the same.
        model: base model of adapters that came without a recipe.
        seeds: trainings of each recipe.
        steps: of each training, the first ones of its full run; None: all.
        worth: the smallest difference of test loss that matters; None: 1 % of the first's.
        slots: trainings at once; None: as many as pay and fit the device.
        out: folder of the comparison; None: `runs/compare-<identity>`.
        device: such as `cpu` or `cuda:0`; None: the GPU where there is one.
        callback: is told what happens; None: in a notebook a live view, elsewhere nobody.
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
    with folder.lock(), observed(folder, where, callback or notebook.live()) as told:
        _open(folder, identity)
        if found[0].adapter is not None:
            scores = trained_adapters.score(found, other, model, where, told, **code)
            notes, metric, count, source = scores.notes, scores.metric, scores.examples, scores.source
            trainings = scores.trainings
        else:
            problem, trainings = train(found, other, seeds, steps, slots, folder, where, told, code)
            notes, metric, count = notes_on(found, seeds, trainings), problem.task.metric, len(problem.data.test)
            source = (other or found[0].to_train.data).source
        arm_scores = [arm_score(arm, trainings[arm.label]) for arm in found]
        limit = worth if worth is not None else float(f"{WORTH * abs(arm_scores[0].test_loss):.2g}")
        pairs = [pair_of(found[0], arm, trainings, limit, len(found) - 1) for arm in found[1:]]
        result = Comparison(
            data=source,
            metric=metric,
            examples=count,
            seeds=[] if found[0].adapter is not None else [r.seed for r in trainings[found[0].label]],
            worth=limit,
            verdict=sentence(found[0].label, pairs, limit, trained=found[0].adapter is None),
            notes=notes,
            arms=arm_scores,
            pairs=pairs,
            device=str(where),
            versions=provenance.versions(),
            commit=provenance.commit(),
        )
        yaml_io.write_text(folder.path / "comparison.json", result.to_json() + "\n")
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
        return yaml_io.validate(Data, {"source": data, **length}, "--data")
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
    yaml_io.write_text(page, text)
