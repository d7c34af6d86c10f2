"""Terms: what the set-ups of all tools have in common, under one name each.

A tool's module says how the tool calls each term; from that follow both its files for a recipe and the study that
takes its files over.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from autolr.errors import ModelError
from autolr.integrations.bundle import one_rate
from autolr.model import adapters
from autolr.model.adapters import base_place
from autolr.model.meta_model import outline
from autolr.schema.data import LANGUAGE
from autolr.schema.recipe import Recipe
from autolr.schema.space import Role

# A term's value: `model`, `batch`, `steps`, `lr`, `rank`, `alpha`, `targets` (names of modules), ...
Terms = dict[str, Any]
# What transformers' arguments, and so the tools on top of them, call terms.
ARGUMENTS = {
    "gradient_accumulation_steps": "accumulate",
    "max_steps": "steps",
    "learning_rate": "lr",
    "warmup_steps": "warmup_steps",
    "warmup_ratio": "warmup_ratio",
    "weight_decay": "weight_decay",
    "adam_beta1": "beta1",
    "adam_beta2": "beta2",
    "adam_epsilon": "eps",
    "max_grad_norm": "clip",
    "seed": "seed",
    "gradient_checkpointing": "gradient_checkpointing",
    "bf16": "bf16",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "dropout",
}
# AdamW under the names that it has elsewhere; those of 8 bits are others.
_ADAMW = ("adamw", "adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw_apex_fused")
# Precisions that keep the base in few bits, as other tools say it.
_BITS = {"nf4": {"four_bit": True}, "int8": {"eight_bit": True}}


def lora_config(recipe: Recipe, model: str | None = None) -> Any:
    """Return the stock `peft.LoraConfig` of a recipe's adapter; it holds no rates.

    Args:
        recipe: names the model, and what is trained of it.
        model: where the model is found here; None: the recipe's place.

    Raises:
        ModelError: the model's configuration cannot be read; the recipe trains matrices whole; or the model keeps
            W_q, W_k and W_v in one matrix, on which a stock adapter has one rate.
    """
    candidate = recipe.candidate
    source = model or recipe.model
    if candidate.kind == "full":
        raise ModelError(f"recipe {recipe.name}: trains its matrices whole, there is no adapter; use autolr train")
    base = outline(source, recipe.task, max(1, len(recipe.classes)))
    sites = base.projections.of(candidate.targets)
    shared = next((site for site in sites if site.rows), None)
    if shared:
        raise ModelError(
            f"model {source!r}: {shared.module} holds more than one of W_q, W_k and W_v, and a stock adapter trains "
            "them all at one rate; autolr train trains them apart, and saves an adapter that stock PEFT loads"
        )
    return adapters.lora_config(base, sites, candidate.rank, recipe.method.lora_alpha, candidate.kind)


def modules_of(recipe: Recipe) -> dict[Role, list[str]]:
    """Return the ends of the names of each role's modules, such as `{"q": ["self_attn.q_proj"], ...}`."""
    found: dict[Role, list[str]] = {}
    base = outline(recipe.model, recipe.task, max(1, len(recipe.classes)))
    for site in base.projections.of(recipe.candidate.targets):
        end = ".".join(site.module.split(".")[-2:])
        if end not in found.setdefault(site.role, []):
            found[site.role].append(end)
    return found


def terms_of(recipe: Recipe) -> Terms:
    """Return a recipe in terms; `lr` is the rate for a tool that has but one.

    Raises:
        ModelError: see `lora_config`.
    """
    training, candidate = recipe.training, recipe.candidate
    config = lora_config(recipe)
    beta1, beta2 = training.betas
    return {
        "model": base_place(recipe.model),
        "batch": training.batch_size,
        "accumulate": 1,
        "steps": recipe.steps,
        "lr": one_rate(recipe),
        "rank": candidate.rank,
        "lora_alpha": _whole(config.lora_alpha),
        "dropout": 0.0,
        "targets": sorted(config.target_modules),
        "rslora": candidate.kind == "rslora",
        "dora": candidate.kind == "dora",
        "weight_decay": training.weight_decay,
        "beta1": beta1,
        "beta2": beta2,
        "eps": training.eps,
        "clip": training.max_grad_norm or 0.0,
        "lr_scheduler_type": "constant_with_warmup"
        if training.lr_scheduler_type == "constant" and training.warmup_ratio
        else training.lr_scheduler_type,
        "warmup_steps": round(training.warmup_ratio * recipe.steps),
        "max_length": recipe.data.max_length,
        "seed": recipe.seed,
        "gradient_checkpointing": training.gradient_checkpointing,
        # auto is left to the tool, which knows its device.
        **({} if training.precision == "auto" else {"bf16": training.precision != "fp32"}),
        **_BITS.get(training.precision, {}),
        **({"loraplus_lr_ratio": candidate.loraplus_lr_ratio} if candidate.loraplus_lr_ratio != 1.0 else {}),
    }


def named(terms: Terms, names: Mapping[str, str]) -> dict[str, Any]:
    """Return terms under a tool's names.

    Args:
        terms: to be written.
        names: the tool's name of each term it has.
    """
    return {name: terms[term] for name, term in names.items() if term in terms}


def other_optimizer(key: str, name: Any) -> list[str]:
    """Return a line about an optimizer that is not AutoLR's AdamW, or none."""
    known = name is None or str(getattr(name, "value", name)).removeprefix("OptimizerNames.").lower() in _ADAMW
    return [] if known else [f"{key}: {name}: AutoLR trains with AdamW"]


def _whole(number: float) -> int | float:
    return int(number) if math.isclose(number, round(number)) else number


def of_language(recipe: Recipe, tool: str) -> None:
    """Refuse a recipe that a tool for language models cannot train.

    Raises:
        ModelError: the recipe is a classification's or a regression's, or its alpha is no whole number.
    """
    if recipe.task not in LANGUAGE:
        raise ModelError(
            f"--to {tool}: trains language models, and this recipe is one of {recipe.task}; use --to peft"
        )
    if recipe.method.lora_alpha % 1:
        raise ModelError(
            f"--to {tool}: takes whole numbers for alpha alone, and the recipe's is {recipe.method.lora_alpha:g}"
        )
