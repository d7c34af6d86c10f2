"""LLaMA-Factory: a YAML file and its data's description; one rate for all, and LoRA+'s ratio ρ."""

from __future__ import annotations

import json
import math
from typing import Any

from autolr.integrations.bundle import Export, best_on_validation, data_files, has_chats, lost_always, lost_rates
from autolr.integrations.terms import ARGUMENTS, named, of_language, terms_of
from autolr.schema.recipe import Recipe
from autolr.schema.yaml_io import to_yaml

RATES = "no: one rate; the files say what that costs, if the search has measured it"
NAMES = {
    **ARGUMENTS,
    "model_name_or_path": "model",
    "per_device_train_batch_size": "batch",
    "lr_scheduler_type": "lr_scheduler_type",
    "cutoff_len": "max_length",
    "lora_rank": "rank",
    "use_rslora": "rslora",
    "use_dora": "dora",
    "loraplus_lr_ratio": "loraplus_lr_ratio",
}
_DATA, _SELECT = "autolr_train", "autolr_select"


def export(recipe: Recipe) -> Export:
    """Return `llama-factory.yaml`, as LLaMA-Factory's parser reads it, the data and what describes it.

    Raises:
        ModelError: the recipe is no language model's; or see `autolr.integrations.terms.lora_config`.
    """
    of_language(recipe, "llama-factory")
    data = data_files(recipe)
    chats, terms = has_chats(data), terms_of(recipe)
    bits = 4 if terms.get("four_bit") else 8 if terms.get("eight_bit") else None
    content = {
        "bf16": True,
        **named(terms, NAMES),
        "stage": "pt" if recipe.task == "lm" else "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "lora_target": ",".join(terms["targets"]),
        **({"quantization_bit": bits} if bits else {}),
        "dataset_dir": "data",
        "dataset": _DATA,
        "eval_dataset": _SELECT,
        # Without a template the tokenizer's own is taken; `empty` leaves prompts as they are.
        **({} if chats else {"template": "empty"}),
        "optim": "adamw_torch",
        "output_dir": "out",
        **best_on_validation(recipe),
        "logging_steps": 10,
    }
    lost = lost_rates(recipe, loraplus_lr_ratio=True)
    wanted = recipe.rates.b.get("v", recipe.rates.b.get("q"))
    if wanted is not None and not math.isclose(wanted, terms["lr"] * terms["loraplus_lr_ratio"]):
        lost.append(
            f"method.max_lr_b: B learns at {terms['lr'] * terms['loraplus_lr_ratio']:.3g} here, not at {wanted:.3g}"
        )
    if recipe.task == "sft" and not chats:
        lost.append("the end token after a completion: the template `empty` writes none, so it is not learned")
    files = {
        "llama-factory.yaml": to_yaml(content),
        "data/dataset_info.json": json.dumps(_described(recipe, chats, data), indent=2) + "\n",
        **data,
    }
    command = "llamafactory-cli train llama-factory.yaml"
    return Export("llama-factory", files, command, (*lost, *lost_always(recipe)))


def _described(recipe: Recipe, chats: bool, data: dict[str, str]) -> dict[str, Any]:
    if chats:
        tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
        how: dict[str, Any] = {
            "formatting": "sharegpt",
            "columns": {"messages": "messages"},
            "tags": {**tags, "system_tag": "system"},
        }
    elif recipe.task == "lm":
        how = {"columns": {"prompt": "text"}}
    else:
        how = {"columns": {"prompt": "prompt", "response": "completion"}}
    files = [name.rpartition("/")[2] for name in data]
    return {name: {"file_name": file, **how} for name, file in zip((_DATA, _SELECT), files, strict=True)}
