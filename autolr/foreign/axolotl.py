"""Axolotl: a YAML file, in which `lr_groups` give W_q and W_v rates of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autolr.documents import to_yaml
from autolr.foreign.terms import ARGUMENTS, Terms, modules_of, named, of_language, terms_of
from autolr.foreign.tool import EVALUATIONS, SELECT, TRAIN, Export, data_files, has_chats, lost_always
from autolr.recipe import Recipe
from autolr.train.optimizer import role_of

NAMES = {
    **ARGUMENTS,
    "base_model": "model",
    "micro_batch_size": "batch",
    "num_epochs": "epochs",
    "loraplus_lr_ratio": "rho",
    "lr_scheduler": "schedule",
    "sequence_len": "max_length",
    "load_in_4bit": "four_bit",
    "load_in_8bit": "eight_bit",
    "lora_r": "rank",
    "lora_target_modules": "targets",
    "peft_use_rslora": "rslora",
    "peft_use_dora": "dora",
}
# How a run is looked at, kept and sped up, which says nothing of what is learned.
_ASIDE = (
    *(
        "wandb",
        "mlflow",
        "comet",
        "output_dir",
        "logging",
        "eval",
        "save",
        "hub",
        "dataset_pro",
        "dataset_prepared_path",
    ),
    *("flash_attention", "attn_", "sdp_", "xformers", "tf32", "fp16", "deepspeed", "fsdp"),
    *("resume", "auto_resume", "debug", "strict", "loss_watchdog", "val_set_size", "lora_model_dir"),
)


def export(recipe: Recipe) -> Export:
    """Return `axolotl.yaml`, as Axolotl's schema accepts it, and the data.

    `lr_groups` are found by parts of parameters' names; the first that fits counts, so ρ is said by groups of each B.

    Raises:
        ModelError: the recipe is no language model's; or see `autolr.foreign.terms.lora_config`.
    """
    of_language(recipe, "axolotl")
    data = data_files(recipe)
    terms = terms_of(recipe)
    terms.pop("rho", None)  # loraplus_lr_ratio and lr_groups exclude each other
    every = max(1, -(-recipe.steps // EVALUATIONS))
    chats = has_chats(data)
    content = {
        "bf16": "auto",
        **named(terms, NAMES),
        "adapter": "qlora" if terms.get("four_bit") else "lora",
        "lr_groups": _groups(recipe),
        "datasets": [{"path": TRAIN, "ds_type": "json", **_dataset(recipe, chats)}],
        "test_datasets": [{"path": SELECT, "ds_type": "json", "split": "train", **_dataset(recipe, chats)}],
        "val_set_size": 0.0,
        "train_on_inputs": False,
        "sample_packing": False,
        "optimizer": "adamw_torch",
        "output_dir": "out",
        "dataset_prepared_path": "prepared",
        "eval_steps": every,
        "save_steps": every,
        "save_total_limit": 2,
        "load_best_model_at_end": True,
        "logging_steps": 10,
    }
    files = {"axolotl.yaml": to_yaml(content), **data}
    return Export("axolotl", files, "axolotl train axolotl.yaml", tuple(lost_always(recipe)))


def _groups(recipe: Recipe) -> list[dict[str, Any]]:
    """Return a group for each role, and before it one for its B where that has a rate of its own."""
    rates, groups = recipe.rates.trained(), []
    for role, modules in modules_of(recipe).items():
        if role in recipe.rates.b:
            names = [f"{module}.lora_B" for module in modules]
            groups.append({"name": f"{role}_B", "modules": names, "lr": recipe.rates.b[role]})
        groups.append({"name": role, "modules": modules, "lr": rates[role]})
    return groups


def _dataset(recipe: Recipe, chats: bool) -> dict[str, Any]:
    if chats:
        return {"type": "chat_template", "field_messages": "messages", "roles_to_train": ["assistant"]}
    if recipe.task == "lm":
        return {"type": "completion", "field": "text"}
    plain = {"format": "{instruction}", "no_input_format": "{instruction}", "system_prompt": ""}
    return {"type": {"field_instruction": "prompt", "field_output": "completion", **plain}}


def read(content: dict[str, Any], path: Path) -> tuple[Terms, list[str]]:
    """Return the terms of an Axolotl file, and what is not among them."""
    terms: Terms = {term: content[name] for name, term in NAMES.items() if content.get(name) is not None}
    left: list[str] = []
    terms["adapter"] = "lora" if content.get("adapter") else "full"
    if content.get("adapter") not in (None, "", "lora", "qlora"):
        left.append(f"adapter {content['adapter']}: lora is taken")
    if content.get("lora_target_linear"):
        terms["targets"] = "all-linear"
    if "bf16" in terms and terms["bf16"] == "auto":
        terms.pop("bf16")
    for group in content.get("lr_groups") or []:
        roles = {role_of(f"layers.0.{module.partition('.lora_')[0]}.weight") for module in group.get("modules", [])}
        term = next((f"lr_{role}" for role in ("q", "v") if roles == {role}), None)
        if term and "lora_B" not in str(group["modules"]):
            terms[term] = group["lr"]
        else:
            left.append(f"lr_groups {group.get('name')}: a search has rates of W_q and W_v")
    left += _data(content, terms)
    asides = {name for name in content if name.startswith(_ASIDE)}
    said = {*NAMES, *asides, "adapter", "lora_target_linear", "lr_groups", "datasets", "optimizer", "train_on_inputs"}
    left += [f"{name}: {value}" for name, value in content.items() if name not in said and value]
    return terms, left


def _data(content: dict[str, Any], terms: Terms) -> list[str]:
    """Take over the first data set; say what of it and of the others is left."""
    found = content.get("datasets") or []
    if not found:
        return []
    first, left = found[0], [f"datasets: {len(found) - 1} more than the first"] if len(found) > 1 else []
    files = first.get("data_files")
    terms["data"] = files if isinstance(files, str) else first.get("path")
    terms |= {term: first[key] for key, term in (("name", "subset"), ("split", "split")) if first.get(key)}
    terms["task"] = "sft"
    kind = first.get("type")
    if isinstance(kind, dict):
        terms["prompt_column"], terms["completion_column"] = kind.get("field_instruction"), kind.get("field_output")
        if kind.get("format") not in (None, "{instruction}"):
            left.append(f"datasets: the format {kind['format']!r}; prompts are taken as they are in the file")
    elif kind == "chat_template":
        terms["messages_column"] = first.get("field_messages", "messages")
    elif kind == "completion":
        terms["task"], terms["text_column"] = "lm", first.get("field", "text")
    elif kind:
        left.append(f"datasets: the prompts of type {kind}; prompts are taken as they are in the file")
    return left
