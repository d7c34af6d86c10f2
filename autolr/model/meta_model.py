"""A model by its configuration alone: names and shapes of its modules, no weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from autolr.errors import ModelError
from autolr.model import backbone, calls, projections
from autolr.model.backbone import Backbone
from autolr.model.checkpoint import auto_class, cannot_load, locate
from autolr.model.outputs import in_order as ordered
from autolr.schema.data import LANGUAGE, TaskName

_TOKENIZER_FILES = ("tokenizer*.json", "vocab*", "*.model", "merges.txt")


def config_of(source: str, *, trust_remote_code: bool = False) -> Any:
    """Return a model's configuration, from its folder, GGUF file, or the hub.

    Raises:
        ModelError: it cannot be read.
    """
    from transformers import AutoConfig

    location, gguf = locate(source, weights=False)
    try:
        # Not saying so would make transformers ask at the terminal whether code may run.
        return AutoConfig.from_pretrained(location, **gguf, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise ModelError(cannot_load(source, error)) from None


def in_order(source: str, classes: list[str], *, trust_remote_code: bool = False) -> list[str]:
    """Return classes in the order of a checkpoint's outputs, or as they are if it has none of these names.

    Raises:
        ModelError: its configuration cannot be read.
    """
    return ordered(config_of(source, trust_remote_code=trust_remote_code), classes)


def tokenizer_of(source: str) -> Any | None:
    """Return a model's tokenizer; None if there is none beside its configuration.

    Raises:
        ModelError: the files of a tokenizer are in the folder, and cannot be read.
    """
    from transformers import AutoTokenizer

    location, gguf = locate(source, weights=False)
    try:
        return AutoTokenizer.from_pretrained(location, **gguf, trust_remote_code=False)
    except Exception as error:  # transformers raises what it likes
        if any(any(Path(location).glob(pattern)) for pattern in _TOKENIZER_FILES):
            raise ModelError(cannot_load(source, error)) from None
        return None


def outline(source: str, task: TaskName = "classification", outputs: int = 2) -> Backbone:
    """Return a model whose parameters are on the device `meta`: it takes no memory and no time.

    Its tokenizer is None. What a checkpoint lacks is not known, so its head is the output layer alone.

    Args:
        source: as `autolr.model.backbone.load`.
        task: what the head is for.
        outputs: of the head.

    Raises:
        ModelError: the configuration cannot be read, transformers has no class for it, or AutoLR does not know its
            projections.
    """
    config = config_of(source)
    auto = auto_class(config, task, source)
    if task not in LANGUAGE:
        config.num_labels = outputs
    try:
        with torch.device("meta"):
            model = auto.from_config(config)
    except (ValueError, OSError) as error:
        raise ModelError(cannot_load(source, error)) from None
    body = model.base_model_prefix
    head = [name for name, child in model.named_children() if name != body and list(child.parameters())]
    called: frozenset[str] | None = None
    notes: tuple[str, ...] = ()
    try:
        called = calls.called(model.eval(), None, source)
    except ModelError:  # some families look at numbers, and here there are none
        notes = (f"which parts the task calls is not known without weights, for family {config.model_type!r}",)
    found = projections.find(model, source, called)
    return Backbone(
        model,
        None,
        source,
        found,
        head=() if task in LANGUAGE else tuple(head),
        fresh=frozenset(),
        notes=(*notes, *backbone.uncalled(found)),
    )
