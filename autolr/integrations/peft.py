"""PEFT: the adapter's configuration, which holds no rates, no data and no schedule."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from autolr.integrations.bundle import Export
from autolr.integrations.terms import Terms, lora_config
from autolr.model.adapters import base_place
from autolr.schema.recipe import Recipe

RATES = "no: one rate; the files say what that costs, if the search has measured it"
NAMES = {
    "base_model_name_or_path": "model",
    "r": "rank",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "dropout",
    "target_modules": "targets",
    "use_rslora": "rslora",
    "use_dora": "dora",
}
# What an adapter's file holds beside, and what of it is AutoLR's own way in any case.
_ASIDE = ("peft_type", "peft_version", "task_type", "inference_mode", "fan_in_fan_out")
# Parts that AutoLR trains with any classifier.
_HEADS = {"classifier", "score", "pooler", "classification_head", "pre_classifier", "head", "dense", "out_proj"}


def export(recipe: Recipe) -> Export:
    """Return `adapter_config.json`, as `LoraConfig.from_pretrained` reads it."""
    config = lora_config(recipe)
    config.base_model_name_or_path = base_place(recipe.model)
    content = config.to_dict() | {"target_modules": sorted(config.target_modules)}
    lost = (
        f"rates: PEFT's configuration holds none. The recipe has {recipe.rates.describe()}; "
        "autolr.create_optimizer(model, recipe) gives them to any loop",
        "data, batch size, schedule and steps: they are the trainer's",
    )
    command = "model = get_peft_model(base, LoraConfig.from_pretrained('.'))"
    return Export("peft", {"adapter_config.json": json.dumps(_plain(content), indent=2) + "\n"}, command, lost)


def read(content: dict[str, Any], path: Path) -> tuple[Terms, list[str]]:
    """Return the terms of an adapter's configuration, and what is not among them."""
    terms: Terms = {term: content[name] for name, term in NAMES.items() if content.get(name) is not None}
    kind = str(content.get("peft_type", "LORA"))
    left = [] if kind == "LORA" else [f"peft_type {kind}: a search has lora, rslora and dora; lora is taken"]
    task = content.get("task_type")
    terms["task"] = "sft" if task == "CAUSAL_LM" else "classification"
    from peft import LoraConfig

    usual = LoraConfig().to_dict()
    said = {*NAMES, *_ASIDE}
    if all(str(name).rpartition(".")[2] in _HEADS for name in content.get("modules_to_save") or []):
        said.add("modules_to_save")
    left += [f"{name}: {value}" for name, value in content.items() if name not in said and value != usual.get(name)]
    return terms, left


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (set, list, tuple)):
        return [_plain(one) for one in value]
    return (
        value if isinstance(value, (str, int, float, bool)) or value is None else str(getattr(value, "value", value))
    )
