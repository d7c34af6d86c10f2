"""What the studies of heads and rates share: a setting, trainings that are looked into, and their patterns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autolr.data.batches import TokenSet
from autolr.data.sources import Examples
from autolr.data.tasks import task_of
from autolr.insight import activations
from autolr.insight.activations import Pattern
from autolr.model import adapters, backbone
from autolr.model.backbone import Backbone, fresh_head
from autolr.model.quiet import quiet
from autolr.pack.pack import Pack
from autolr.pack.slots import SlotConfig
from autolr.schema.data import TaskName
from autolr.schema.space import Targets
from autolr.schema.study import Study
from autolr.schema.training import Training
from autolr.tuner.setting import Setting, read_setting
from studies import STUDIES
from studies.research.oracle import sections as debian

Values = dict[str, Tensor]


def setting_of(overrides: Sequence[str], name: str = "sentiment") -> Setting:
    """Return a shipped study's setting; products in float32, since small changes are looked at."""
    study = Study.load(STUDIES / f"{name}.yaml", ["training.precision=fp32", *overrides])
    return read_setting(study, torch.device("cpu"))


def some(data: TokenSet, count: int, seed: int = 0) -> TokenSet:
    """Return some examples, drawn by the seed."""
    order = np.random.default_rng([seed, 13]).permutation(len(data))[:count]
    return data.take([int(row) for row in order])


def train(
    base: Backbone,
    training: Training,
    task: Any,
    data: TokenSet,
    configs: Sequence[SlotConfig],
    at: Sequence[int] = (),
    judge: TokenSet | None = None,
    alpha: float = 16.0,
) -> tuple[list[dict[int, Values]], list[list[float]], list[float]]:
    """Train slots side by side.

    Returns:
        Of each slot its tensors at the steps in `at`; its losses; and its mean loss on `judge` at the end, averaged
        weights, where that is given.
    """
    kept: list[dict[int, Values]] = [{} for _ in configs]
    options: dict[str, Any] = {
        "capacity": len(configs),
        "max_rank": max(c.rank for c in configs),
        "lora_alpha": alpha,
    }
    with Pack(base, training, task, data, **options) as pack:
        slots = [pack.admit(config) for config in configs]
        for step in range(max(config.length for config in configs) + 1):
            if step in at:
                for own, slot in zip(kept, slots, strict=True):
                    own[step] = pack.values(slot)
            if step < configs[0].length:
                pack.step()
        scores = pack.evaluate(slots, judge, averaged=True)[0].mean(1).tolist() if judge is not None else []
        return kept, [slot.losses for slot in slots], scores


def look(
    base: Backbone, task: Any, data: TokenSet, values: Values | None, config: SlotConfig, targets: Targets = "qv"
) -> Pattern:
    """Return the pattern of a slot's tensors; of None, that of the base with the head a training starts from."""
    if values is None:
        with torch.no_grad():
            for name, value in fresh_head(base, config.seed).items():
                base.head_parameters()[name].copy_(value)
        return activations.measure(base, task, data)
    kept = {name: p.detach().clone() for name, p in base.head_parameters().items()}
    model = adapters.peft_model(base, targets, config.rank, 16.0, config.seed, config.kind)
    try:
        adapters.set_values(model, values)
        return activations.measure(base, task, data, model)
    finally:
        base.model = model.unload().eval().requires_grad_(False)
        with torch.no_grad():
            for name, p in base.head_parameters().items():
                p.copy_(kept[name])


def model_for(source: str, classes: list[str], task: TaskName = "classification") -> Backbone:
    """Load a model for a task of so many classes."""
    with quiet():
        return backbone.load(source, classes, "cpu", "fp32", task)


def labelled(texts: list[str], labels: list[int], names: list[str], base: Backbone, length: int) -> TokenSet:
    """Return texts with classes as tokens."""
    from autolr.data.batches import tokenize

    return TokenSet(tokenize(base.tokenizer, texts, length), labels, int(base.tokenizer.pad_token_id))


def completions(prompts: list[str], ends: list[str], base: Backbone, length: int) -> TokenSet:
    """Return prompts with their completions as tokens of which the completions are learned."""
    from autolr.data import lm_labels

    sizes = [float(len(p) + len(e)) for p, e in zip(prompts, ends, strict=True)]
    ids, labels = lm_labels.tokenize(Examples(prompts, sizes, [], "", ends, task="sft"), base.tokenizer, length)
    return TokenSet(ids, labels, int(base.tokenizer.pad_token_id))


__all__ = ["completions", "debian", "labelled", "look", "model_for", "setting_of", "some", "task_of", "train"]
