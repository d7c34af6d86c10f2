"""What a full run works with: a recipe's data and model, read and checked."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from autolr.data import cache, sources
from autolr.data.prepared import Prepared, prepare
from autolr.data.sources import Examples
from autolr.data.tasks import Task, task_of
from autolr.errors import DataError, ModelError
from autolr.model import backbone, remote
from autolr.model.backbone import Backbone
from autolr.recipe import Recipe
from autolr.study import Data


@dataclass(frozen=True)
class Material:
    """Data and model of a recipe."""

    examples: Examples
    backbone: Backbone
    data: Prepared
    task: Task


def read(
    recipe: Recipe,
    device: torch.device,
    other: Data | None = None,
    *,
    allow_code: bool = False,
    trust_remote_code: bool = False,
) -> Material:
    """Load what a recipe is trained on.

    Args:
        recipe: names data and model.
        device: where the model goes.
        other: data to take instead of the recipe's.
        allow_code: whether the recipe's metric may be code of the user's own.
        trust_remote_code: whether Python code that comes with the model may run, where the recipe asks for it.

    Raises:
        DataError: the data cannot be read, or is not that of the search.
        ModelError: the model cannot be loaded, is not that of the search, or the rank is too large for it.
    """
    task_of(recipe.task, recipe.classes, recipe.metric, allow_code=allow_code)  # refuses code before anything is read
    trusted = remote.agreed(recipe.trust_remote_code, trust_remote_code, recipe.model)
    wanted, training = other or recipe.data, recipe.training
    examples = sources.load(wanted, recipe.task)
    if other is None and recipe.data_fingerprint not in (None, examples.fingerprint):
        raise DataError(
            f"data {recipe.data.source!r}: has changed since the search (fingerprint {examples.fingerprint[:12]}, "
            f"recipe {str(recipe.data_fingerprint)[:12]}); search again, or remove data_fingerprint from the recipe"
        )
    if other is None and recipe.data_fingerprint is not None and sorted(recipe.classes) != sorted(examples.classes):
        raise DataError(
            f"data {recipe.data.source!r}: has other classes ({', '.join(examples.classes)}) than in the search "
            f"({', '.join(recipe.classes)}). Search again, or restore the data"
        )
    if other is None and recipe.tokenization not in (None, cache.TOKENIZATION):
        raise DataError(
            f"recipe {recipe.name}: its search made tokens in way {recipe.tokenization}, this AutoLR in way "
            f"{cache.TOKENIZATION}. Search again, or remove tokenization from the recipe"
        )
    classes = recipe.classes
    if other is not None and recipe.task == "classification":
        classes = backbone.in_order(recipe.model, examples.classes, trust_remote_code=trusted)
    examples = examples.ordered(classes)
    base = backbone.load(
        recipe.model,
        classes,
        device,
        training.precision,
        recipe.task,
        training.attention,
        training.checkpointing,
        trust_remote_code=trusted,
    )
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
    rank = recipe.candidate.rank
    if rank > base.projections.largest_rank:
        raise ModelError(
            f"rank {rank}: the matrices of {recipe.model!r} allow at most {base.projections.largest_rank}"
        )
    data = prepare(
        examples, wanted, base.tokenizer, training.batch_size, recipe.split_seed, base.max_length, base.vocabulary
    )
    labels, numbers = data.train.labels, examples.numbers
    task = task_of(recipe.task, classes, recipe.metric, labels, allow_code=allow_code, numbers=numbers)
    return Material(examples, base, data, task)
