"""Data, model and task, loaded and checked against each other: what searches, full runs and comparisons work with."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from autolr.data import cache, sources
from autolr.data.pipeline import Prepared, prepare
from autolr.data.sources import Examples
from autolr.data.tasks import Regression, Task, task_of
from autolr.errors import DataError, ModelError
from autolr.model import backbone, meta_model, remote_code
from autolr.model.backbone import Backbone
from autolr.model.quiet import quiet
from autolr.schema.data import LANGUAGE, Data, TaskName
from autolr.schema.recipe import Recipe
from autolr.schema.study import Study


@dataclass(frozen=True)
class Unsplit:
    """A model, its task, and examples with their classes in the order of the model's outputs."""

    examples: Examples
    backbone: Backbone
    task: Task

    def split(self, given: Study | Recipe, data: Data | None = None) -> Problem:
        """Split the examples and make tokens of them.

        Args:
            given: names batch size and seed, and the data.
            data: other data that the examples are of.

        Raises:
            DataError: see `autolr.data.pipeline.prepare`.
        """
        base = self.backbone
        with quiet():
            prepared = prepare(
                self.examples,
                data or given.data,
                base.tokenizer,
                given.training.batch_size,
                given.split_seed if isinstance(given, Recipe) else given.seed,
                base.max_length,
                base.vocabulary,
            )
        task = self.task
        if isinstance(task, Regression):
            task = replace(task, variance=float(np.var(prepared.train.labels)))
        return Problem(self.examples, base, task, replace(prepared, summary=(*base.notes, *prepared.summary)))


@dataclass(frozen=True)
class Problem(Unsplit):
    """A model, its task, and the tokens of the three splits."""

    data: Prepared

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = next(self.backbone.model.parameters()).device
        return device


def load_problem(
    given: Study | Recipe,
    device: torch.device,
    data: Data | None = None,
    *,
    allow_code: bool = False,
    trust_remote_code: bool = False,
) -> Problem:
    """Load model and data of a study or recipe, and split the data.

    Args:
        given: names model, data, task and metric; a recipe's are compared with those of its search.
        device: where the model goes.
        data: other data to take instead; it is compared with nothing.
        allow_code: whether the metric may be code of the user's own, `my_module:function`.
        trust_remote_code: whether Python code that comes with the model may run, if the document asks for it.

    Raises:
        AutoLRError: the metric, or the model, is code that must not run.
        DataError: the data cannot be read or split, or is not that of the search.
        ModelError: the model cannot be loaded, is not that of the search, or the rank is too large for it.
    """
    code = {"allow_code": allow_code, "trust_remote_code": trust_remote_code}
    return load_unsplit(given, device, data, None, **code).split(given, data)


def load_unsplit(
    given: Study | Recipe,
    device: torch.device,
    data: Data | None = None,
    examples: Examples | None = None,
    *,
    allow_code: bool = False,
    trust_remote_code: bool = False,
) -> Unsplit:
    """Load model and data as `load_problem` does, and do not split the data.

    `examples` may be read already, with their classes in the order of a trained head's outputs.
    """
    task_of(given.task, (), given.metric, allow_code=allow_code)  # refuses code before anything is read
    trusted = remote_code.agreed(given.trust_remote_code, trust_remote_code, given.model)
    if isinstance(given, Recipe) and data is None and given.tokenization not in (None, cache.TOKENIZATION):
        raise DataError(
            f"recipe {given.name}: its search made tokens in way {given.tokenization}, this AutoLR in way "
            f"{cache.TOKENIZATION}. Search again, or remove tokenization from the recipe"
        )
    if examples is None:
        examples = load_examples(given, data)
        with quiet():
            examples = examples.ordered(_classes(given, data, examples, trusted))
    training = given.training
    with quiet():
        base = backbone.load(
            given.model,
            examples.classes,
            device,
            training.precision,
            given.task,
            training.attn_implementation,
            training.gradient_checkpointing,
            trust_remote_code=trusted,
        )
    if isinstance(given, Recipe):
        _check_model(given, base)
    numbers = examples.numbers
    task = task_of(given.task, examples.classes, given.metric, allow_code=allow_code, numbers=numbers)
    return Unsplit(examples, base, task)


def load_examples(given: Study | Recipe, data: Data | None = None) -> Examples:
    """Read the examples of a study or recipe, or of other data.

    Raises:
        DataError: they cannot be read, or are not those of the recipe's search.
    """
    examples = sources.load(data or given.data, given.task)
    if not isinstance(given, Recipe) or data is not None or given.data_fingerprint is None:
        return examples
    if given.data_fingerprint != examples.fingerprint:
        raise DataError(
            f"data {given.data.source!r}: has changed since the search (fingerprint {examples.fingerprint[:12]}, "
            f"recipe {given.data_fingerprint[:12]}). Search again, restore the data, or remove data_fingerprint from "
            "the recipe"
        )
    if sorted(given.classes) != sorted(examples.classes):
        raise DataError(
            f"data {given.data.source!r}: has other classes ({', '.join(examples.classes)}) than in the search "
            f"({', '.join(given.classes)}). Search again, or restore the data"
        )
    return examples


def load_bare(
    model: str, outputs: int, device: torch.device | None, task: TaskName = "classification"
) -> tuple[Backbone, Task]:
    """Load a model without data.

    Args:
        model: as `autolr.model.backbone.load`.
        outputs: of its head.
        device: where the weights go; None: the configuration alone is read, and parameters are on `meta`.
        task: what the head is for.

    Raises:
        ModelError: the model cannot be loaded.
    """
    names = [] if task in LANGUAGE else [str(number) for number in range(outputs)]
    base = (
        meta_model.outline(model, task, outputs) if device is None else backbone.load(model, names, device, task=task)
    )
    return base, task_of(task, names, None)


def _classes(given: Study | Recipe, data: Data | None, examples: Examples, trusted: bool) -> list[str]:
    """Return the classes in the order of the head's outputs: a recipe's, or that of the checkpoint."""
    if isinstance(given, Recipe) and data is None:
        return given.classes
    if given.task != "classification":
        return examples.classes
    return meta_model.in_order(given.model, examples.classes, trust_remote_code=trusted)


def _check_model(recipe: Recipe, base: Backbone) -> None:
    """Refuse weights or a tokenizer that are not those of the search, and a rank that is too large."""
    if recipe.model_fingerprint not in (None, base.fingerprint()):
        raise ModelError(
            f"model {recipe.model!r}: its weights have changed since the search; search again, or remove "
            "model_fingerprint from the recipe"
        )
    if recipe.tokenizer_fingerprint not in (None, cache.tokenizer_fingerprint(base.tokenizer)):
        raise ModelError(
            f"model {recipe.model!r}: its tokenizer has changed since the search. Search again, or remove "
            "tokenizer_fingerprint from the recipe"
        )
    largest = base.projections.largest_rank
    if recipe.candidate.rank > largest:
        raise ModelError(f"rank {recipe.candidate.rank}: the matrices of {recipe.model!r} allow at most {largest}")
