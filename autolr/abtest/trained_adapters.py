"""Adapters that are trained already, scored on *validation* and *test* as anybody who loads them gets it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from safetensors import SafetensorError, safe_open

from autolr.abtest.arms import ADAPTER, Arm, adapter_config, base_model
from autolr.data.tasks import task_of
from autolr.divergence import first_without_number
from autolr.errors import ModelError
from autolr.finetune.evaluation import outcomes
from autolr.model.backbone import Backbone
from autolr.model.quiet import quiet
from autolr.problem import Problem, load_examples, load_unsplit
from autolr.progress.callbacks import Callback
from autolr.rundir.records import Record
from autolr.schema.candidate import Candidate
from autolr.schema.data import Data
from autolr.schema.recipe import Recipe
from autolr.schema.study import Study
from autolr.schema.training import Training

UNKNOWN = Candidate(lr_v=1e-3, ratio=1.0, rank=1)


@dataclass(frozen=True)
class Scores:
    """What adapters have scored."""

    source: str
    metric: str
    examples: int
    trainings: dict[str, list[Record]]
    notes: list[str]


def score(
    arms: Sequence[Arm],
    other: Data | None,
    model: str | None,
    device: torch.device,
    callback: Callback,
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
        callback: is told how far it is.
        allow_code: whether the metric may be code of the user's own.
        trust_remote_code: whether Python code that comes with the model may run, where a recipe asks for it.

    Raises:
        DataError: the data cannot be read.
        ModelError: a base model or an adapter cannot be loaded, or they do not fit each other.
    """
    reference = next((arm.recipe for arm in arms if arm.recipe is not None), None)
    studies = [_study(arm, reference, other, model) for arm in arms]
    task_of(studies[0].task, (), studies[0].metric, allow_code=allow_code)  # refuses code before anything is read
    examples = load_examples(reference or studies[0], other)
    ordered = [
        examples.ordered(arm.recipe.classes, whose=arm.source) if arm.recipe is not None else None for arm in arms
    ]
    trainings: dict[str, list[Record]] = {}
    callback.phase("scoring", len(arms), 0)
    for arm, study, own in zip(arms, studies, ordered, strict=True):
        trusted = trust_remote_code and arm.recipe is not None
        code = {"allow_code": allow_code, "trust_remote_code": trusted}
        problem = load_unsplit(study, device, None, own, **code).split(study)
        with quiet():
            trainings[arm.label] = [_scored(arm, load(arm, problem.backbone), problem)]
    notes = ["one training of each: what is said holds for these adapters, not for how they were trained"]
    unknown = [arm.label for arm in arms if arm.recipe is None]
    if unknown:
        notes.append(f"on what {', '.join(unknown)} was trained is not known: it may have seen these examples")
    return Scores(studies[0].data.source, problem.task.metric, len(problem.data.test), trainings, notes)


def _study(arm: Arm, reference: Recipe | None, other: Data | None, model: str | None) -> Study:
    """Return what an adapter is scored by: data, metric and splits are those of the first recipe."""
    recipe = arm.recipe
    source = model or (recipe.model if recipe else base_model(arm))
    precision, batch_size = (recipe.training.precision, recipe.training.batch_size) if recipe else ("auto", 1)
    data = other or (reference.data if reference else None)
    assert data is not None
    return Study(
        model=source,
        data=data,
        task=reference.task if reference else "classification",
        metric=reference.metric if reference else None,
        training=Training(precision=precision, batch_size=batch_size),
        seed=reference.split_seed if reference else 0,
        trust_remote_code=recipe.trust_remote_code if recipe else False,
    )


def _scored(arm: Arm, tuned: torch.nn.Module, problem: Problem) -> Record:
    """Score an adapter on *validation* and *test*.

    Raises:
        ModelError: a loss is no number.
    """
    splits = {"validation": problem.data.validation, "test": problem.data.test}
    losses, metrics = {}, {}
    for name, split in splits.items():
        losses[name], predictions = outcomes(tuned, split, problem.task)
        metrics[name] = problem.task.score(predictions, split.labels)
        index = first_without_number(losses[name].tolist())
        if index is not None:
            raise ModelError(
                f"adapter {arm.source}: example {index} of {name} has the loss {float(losses[name][index])}, which "
                "cannot be compared. Its training has diverged: leave the adapter out"
            )
    return Record(
        label=arm.label,
        candidate=arm.recipe.candidate if arm.recipe else UNKNOWN,
        seed=arm.recipe.seed if arm.recipe else 0,
        validation_loss=float(losses["validation"].mean()),
        validation_metric=metrics["validation"],
        test_loss=float(losses["test"].mean()),
        test_metric=metrics["test"],
        losses=losses["test"].tolist(),
    )


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
