"""A model's modules by its configuration alone: names and shapes, no weights."""

from __future__ import annotations

from typing import Any

import torch

from autolr.errors import ModelError
from autolr.model import backbone, projections
from autolr.model.backbone import Backbone
from autolr.study import LANGUAGE, TaskName


def config_of(source: str) -> Any:
    """Return a model's configuration, from its folder, GGUF file, or the hub.

    Raises:
        ModelError: it cannot be read.
    """
    from transformers import AutoConfig

    location, where = backbone._locate(source)
    try:
        # Not saying so would make transformers ask at the terminal whether code may run.
        return AutoConfig.from_pretrained(location, **where, trust_remote_code=False)
    except Exception as error:
        raise ModelError(backbone._cannot_load(source, error)) from None


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
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    config = config_of(source)
    if task not in LANGUAGE:
        config.num_labels = outputs
    auto: Any = AutoModelForCausalLM if task in LANGUAGE else AutoModelForSequenceClassification
    try:
        with torch.device("meta"):
            model = auto.from_config(config)
    except (ValueError, OSError) as error:
        raise ModelError(backbone._cannot_load(source, error)) from None
    body = model.base_model_prefix
    head = [name for name, child in model.named_children() if name != body and list(child.parameters())]
    found = projections.find(model, source)
    return Backbone(model, None, source, found, head=() if task in LANGUAGE else tuple(head), fresh=frozenset())
