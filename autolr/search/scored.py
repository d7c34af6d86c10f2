"""Adapters that are trained already, scored on *select* and *confirm* as anybody who loads them gets it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from safetensors import SafetensorError, safe_open

from autolr.candidate import Candidate
from autolr.data import sources
from autolr.data.prepared import prepare
from autolr.data.tasks import task_of
from autolr.errors import DataError, ModelError
from autolr.model import backbone, remote
from autolr.model.backbone import Backbone
from autolr.model.quiet import quiet
from autolr.pack.divergence import first_without_number
from autolr.search.arms import ADAPTER, Arm, adapter_config, base_model
from autolr.search.loop import Watcher
from autolr.search.records import RepeatRecord
from autolr.study import Data
from autolr.train.evaluation import outcomes

UNKNOWN = Candidate(lr_v=1e-3, ratio=1.0, rank=1)


@dataclass(frozen=True)
class Scores:
    """What adapters have scored."""

    source: str
    metric: str
    examples: int
    repeats: dict[str, list[RepeatRecord]]
    notes: list[str]


def score(
    arms: Sequence[Arm],
    other: Data | None,
    model: str | None,
    device: torch.device,
    watcher: Watcher,
    *,
    allow_code: bool = False,
    trust_remote_code: bool = False,
) -> Scores:
    """Score adapters on the same examples.

    Args:
        arms: with an adapter each.
        other: data to judge them on instead of that of their recipes.
        model: base model, for adapters without a recipe.
        device: where they are scored.
        watcher: is told how far it is.
        allow_code: whether the metric may be code of the user's own.
        trust_remote_code: whether Python code that comes with the model may run, where a recipe asks for it.

    Raises:
        DataError: the data cannot be read.
        ModelError: a base model or an adapter cannot be loaded, or they do not fit each other.
    """
    reference = next((arm.recipe for arm in arms if arm.recipe is not None), None)
    wanted = other or (reference.data if reference else None)
    assert wanted is not None
    task_name = reference.task if reference else "classification"
    examples = sources.load(wanted, task_name)
    if other is None and reference and reference.data_fingerprint not in (None, examples.fingerprint):
        raise DataError(f"data {wanted.source!r}: has changed since these adapters were trained; give --data")
    metric = reference.metric if reference else None
    task_of(task_name, examples.classes, metric, examples.labels, allow_code=allow_code)  # says at once what is wrong
    repeats, confirm, seed = {}, 0, reference.split_seed if reference else 0
    watcher.phase("scoring", len(arms), 0)
    for arm in arms:
        recipe = arm.recipe
        if recipe is not None and sorted(recipe.classes) != sorted(examples.classes):
            raise DataError(
                f"data {wanted.source!r}: its classes are {', '.join(examples.classes)}, those of {arm.source} are "
                f"{', '.join(recipe.classes)}"
            )
        source = model or (recipe.model if recipe else base_model(arm))
        with quiet():
            precision = recipe.training.precision if recipe else "auto"
            trusted = remote.agreed(recipe.trust_remote_code, trust_remote_code, source) if recipe else False
            classes = recipe.classes if recipe else examples.classes
            if recipe is None and task_name == "classification":
                classes = backbone.in_order(source, classes)
            own = examples.ordered(classes)
            task = task_of(task_name, classes, metric, own.labels, allow_code=allow_code, numbers=own.numbers)
            base = backbone.load(source, classes, device, precision, task_name, trust_remote_code=trusted)
            tuned = load(arm, base)
            batch = recipe.training.batch_size if recipe else 1
            data = prepare(own, wanted, base.tokenizer, batch, seed, base.max_length, base.vocabulary)
            select, select_said = outcomes(tuned, data.select, task)
            losses, said = outcomes(tuned, data.confirm, task)
        for split, found in (("select", select), ("confirm", losses)):
            place = first_without_number(found.tolist())
            if place is not None:
                raise ModelError(
                    f"adapter {arm.source}: example {place} of {split} has the loss {float(found[place])}, which "
                    "cannot be compared. Its training has diverged: leave the adapter out"
                )
        confirm = len(data.confirm)
        repeats[arm.label] = [
            RepeatRecord(
                label=arm.label,
                candidate=recipe.candidate if recipe else UNKNOWN,
                seed=recipe.seed if recipe else 0,
                select_loss=float(select.mean()),
                select_metric=task.score(select_said, data.select.labels),
                confirm_loss=float(losses.mean()),
                confirm_metric=task.score(said, data.confirm.labels),
                losses=losses.tolist(),
            )
        ]
    notes = ["one training of each: what is said holds for these adapters, not for how they were trained"]
    unknown = [arm.label for arm in arms if arm.recipe is None]
    if unknown:
        notes.append(f"on what {', '.join(unknown)} was trained is not known: it may have seen these examples")
    return Scores(wanted.source, task.metric, confirm, repeats, notes)


def load(arm: Arm, base: Backbone) -> torch.nn.Module:
    """Put a trained adapter on its base model, as stock PEFT does.

    Raises:
        ModelError: it cannot be read, does not fit the model, or holds no head where the model has none.
    """
    from peft import PeftModel

    assert arm.adapter is not None
    weights = arm.adapter / "adapter_model.safetensors"
    try:
        with safe_open(weights, framework="pt") as tensors:
            names = list(tensors.keys())
    except (OSError, SafetensorError):
        raise ModelError(
            f"adapter {arm.adapter}: holds no readable adapter_model.safetensors; other weights (pickles) are never "
            "loaded"
        ) from None
    # PEFT imports the module that this names.
    if adapter_config(arm).get("megatron_config"):
        raise ModelError(f"adapter {arm.adapter}: its {ADAPTER} names code to run (megatron_core), which is not run")
    names = [name.replace(".ln_tuning_layers.", ".") for name in names]  # whole matrices, as PEFT saves them
    lacking = [name for name in sorted(base.fresh) if not any(held.endswith(name) for held in names)]
    if lacking:
        raise ModelError(
            f"adapter {arm.adapter}: it holds no weights of the head ({', '.join(lacking)}), and the base model "
            f"{base.source!r} has none either"
        )
    try:
        model: torch.nn.Module = PeftModel.from_pretrained(base.model, str(arm.adapter)).eval()
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"adapter {arm.adapter}: does not fit the model {base.source!r}: {reason}") from None
    return model
