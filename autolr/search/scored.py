"""Adapters that are trained already, scored on *select* and *confirm* as anybody who loads them gets it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open

from autolr.candidate import Candidate
from autolr.data import sources
from autolr.data.prepared import Prepared, prepare
from autolr.data.sources import Examples
from autolr.data.tasks import Task, task_of
from autolr.errors import DataError, ModelError
from autolr.model import backbone, remote
from autolr.model.backbone import Backbone
from autolr.model.quiet import quiet
from autolr.pack.divergence import first_without_number
from autolr.search.arms import ADAPTER, Arm, adapter_config, base_model
from autolr.search.loop import Watcher
from autolr.search.records import RepeatRecord
from autolr.study import Data, TaskName
from autolr.train.evaluation import outcomes

Split = Literal["select", "confirm"]
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
    examples = Judged.read(arms, other, allow_code=allow_code)
    repeats, confirm = {}, 0
    watcher.phase("scoring", len(arms), 0)
    for arm in arms:
        scorer = examples.scorer(arm, model, device, trust_remote_code=trust_remote_code)
        select, confirmed = scorer.outcome(arm, "select"), scorer.outcome(arm, "confirm")
        for split, outcome in (("select", select), ("confirm", confirmed)):
            place = first_without_number(outcome.losses.tolist())
            if place is not None:
                raise ModelError(
                    f"adapter {arm.source}: example {place} of {split} has the loss {float(outcome.losses[place])}, "
                    "which cannot be compared. Its training has diverged: leave the adapter out"
                )
        confirm = len(confirmed.losses)
        recipe = arm.recipe
        repeats[arm.label] = [
            RepeatRecord(
                label=arm.label,
                candidate=recipe.candidate if recipe else UNKNOWN,
                seed=recipe.seed if recipe else 0,
                select_loss=select.loss,
                select_metric=select.metric,
                confirm_loss=confirmed.loss,
                confirm_metric=confirmed.metric,
                losses=confirmed.losses.tolist(),
            )
        ]
    notes = ["one training of each: what is said holds for these adapters, not for how they were trained"]
    unknown = [arm.label for arm in arms if arm.recipe is None]
    if unknown:
        notes.append(f"on what {', '.join(unknown)} was trained is not known: it may have seen these examples")
    return Scores(examples.data.source, scorer.task.metric, confirm, repeats, notes)


@dataclass(frozen=True)
class Outcome:
    """What an adapter has scored on a split.

    Attributes:
        losses: of each example, float64 [examples].
        metric: the task's, over all of them.
    """

    losses: torch.Tensor
    metric: float

    @property
    def loss(self) -> float:
        """The mean loss."""
        return float(self.losses.mean())


@dataclass(frozen=True)
class Scorer:
    """A base model with the examples that adapters of it are scored on."""

    base: Backbone
    data: Prepared
    task: Task

    def outcome(self, arm: Arm, split: Split) -> Outcome:
        """Score an adapter; the base is as before when it is done."""
        tokens = self.data.select if split == "select" else self.data.confirm
        with quiet():
            tuned = load(arm, self.base)
            losses, said = outcomes(tuned, tokens, self.task)
            tuned.unload()  # type: ignore[operator]
        return Outcome(losses, self.task.score(said, tokens.labels))


@dataclass(frozen=True)
class Judged:
    """Examples that adapters are scored on.

    Attributes:
        examples: all of them.
        data: where they come from, and how they are split.
        task: what the adapters were trained for.
        metric: shown beside the loss; None: the task's first.
        seed: of the split.
        allow_code: whether the metric may be code of the user's own.
    """

    examples: Examples
    data: Data
    task: TaskName
    metric: str | None
    seed: int
    allow_code: bool

    @classmethod
    def read(
        cls, arms: Sequence[Arm], other: Data | None, task: TaskName = "classification", *, allow_code: bool = False
    ) -> Judged:
        """Read the examples for adapters.

        Args:
            arms: with an adapter each; the first recipe among them says what is not given.
            other: data to take instead of that of their recipes.
            task: of adapters without a recipe.
            allow_code: whether the metric may be code of the user's own.

        Raises:
            DataError: the data cannot be read, or has changed since the adapters were trained.
        """
        reference = next((arm.recipe for arm in arms if arm.recipe is not None), None)
        wanted = other or (reference.data if reference else None)
        assert wanted is not None
        task = reference.task if reference else task
        examples = sources.load(wanted, task)
        if other is None and reference and reference.data_fingerprint not in (None, examples.fingerprint):
            raise DataError(f"data {wanted.source!r}: has changed since these adapters were trained; give --data")
        metric = reference.metric if reference else None
        task_of(task, examples.classes, metric, examples.labels, allow_code=allow_code)  # says at once what is wrong
        return cls(examples, wanted, task, metric, reference.split_seed if reference else 0, allow_code)

    def scorer(self, arm: Arm, model: str | None, device: torch.device, *, trust_remote_code: bool = False) -> Scorer:
        """Load the base model of an adapter, and prepare the examples for it.

        Raises:
            DataError: these are other classes than the adapter's.
            ModelError: the model cannot be loaded.
        """
        recipe, examples = arm.recipe, self.examples
        if recipe is not None and sorted(recipe.classes) != sorted(examples.classes):
            raise DataError(
                f"data {self.data.source!r}: its classes are {', '.join(examples.classes)}, those of {arm.source} "
                f"are {', '.join(recipe.classes)}"
            )
        source = model or (recipe.model if recipe else base_model(arm))
        with quiet():
            precision = recipe.training.precision if recipe else "auto"
            trusted = remote.agreed(recipe.trust_remote_code, trust_remote_code, source) if recipe else False
            classes = recipe.classes if recipe else examples.classes
            if recipe is None and self.task == "classification":
                classes = backbone.in_order(source, classes)
            own = examples.ordered(classes)
            labels, numbers = own.labels, own.numbers
            task = task_of(self.task, classes, self.metric, labels, allow_code=self.allow_code, numbers=numbers)
            base = backbone.load(source, classes, device, precision, self.task, trust_remote_code=trusted)
            batch = recipe.training.batch_size if recipe else 1
            data = prepare(own, self.data, base.tokenizer, batch, self.seed, base.max_length, base.vocabulary)
        return Scorer(base, data, task)


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
