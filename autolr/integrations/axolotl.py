"""Axolotl: a YAML file, in which `lr_groups` give W_q and W_v rates of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autolr.finetune.roles import role_of
from autolr.integrations.bundle import EVALUATIONS, SELECT, TRAIN, Export, data_files, has_chats, lost_always
from autolr.integrations.reading import Reading
from autolr.integrations.terms import ARGUMENTS, Terms, modules_of, named, of_language, other_optimizer, terms_of
from autolr.schema.recipe import Recipe
from autolr.schema.yaml_io import to_yaml

RATES = "yes, by `lr_groups`"
NAMES = {
    **ARGUMENTS,
    "base_model": "model",
    "micro_batch_size": "batch",
    "num_epochs": "epochs",
    "loraplus_lr_ratio": "loraplus_lr_ratio",
    "lr_scheduler": "lr_scheduler_type",
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
    *("resume", "auto_resume", "debug", "strict", "loss_watchdog"),
)


def export(recipe: Recipe) -> Export:
    """Return `axolotl.yaml`, as Axolotl's schema accepts it, and the data.

    `lr_groups` are found by parts of parameters' names. The first that fits counts, so each B has its own for ρ.

    Raises:
        ModelError: the recipe is no language model's; or see `autolr.integrations.terms.lora_config`.
    """
    of_language(recipe, "axolotl")
    data = data_files(recipe)
    terms = terms_of(recipe)
    terms.pop("loraplus_lr_ratio", None)  # loraplus_lr_ratio and lr_groups exclude each other
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
    reading = Reading(content)
    terms: Terms = {term: value for name, term in NAMES.items() if (value := reading.take(name)) is not None}
    left: list[str] = []
    adapter = reading.take("adapter")
    terms["adapter"] = "lora" if adapter else "full"
    if adapter not in (None, "", "lora", "qlora"):
        left.append(f"adapter {adapter}: lora is taken")
    if reading.take("lora_target_linear"):
        terms["targets"] = "all-linear"
    if terms.get("bf16") == "auto":
        terms.pop("bf16")
    for place in range(len(content.get("lr_groups") or [])):
        modules, name = reading.take("lr_groups", place, "modules") or [], reading.take("lr_groups", place, "name")
        rate = reading.take("lr_groups", place, "lr")
        roles = {role_of(f"layers.0.{module.partition('.lora_')[0]}.weight") for module in modules}
        term = next((f"lr_{role}" for role in ("q", "v") if roles == {role}), None)
        if term and "lora_B" not in str(modules):
            terms[term] = rate
        else:
            left.append(f"lr_groups {name}: {rate}: a search has rates of W_q and W_v")
    if reading.take("train_on_inputs"):
        left.append("train_on_inputs: True: prompts are not learned")
    left += other_optimizer("optimizer", reading.take("optimizer"))
    left += _data(reading, content.get("datasets") or [], terms)
    return terms, [*left, *reading.left(_ASIDE)]


def _data(reading: Reading, found: list[Any], terms: Terms) -> list[str]:
    """Take over the first data set; the reading lists what is left of it, and all others."""
    if not found:
        return []
    left = [f"datasets: {len(found) - 1} more than the first"] if len(found) > 1 else []

    def take(*key: str) -> Any:
        return reading.take("datasets", 0, *key)

    files, place = take("data_files"), take("path")
    terms["data"] = files if isinstance(files, str) else place
    if isinstance(files, list):
        left.append(f"datasets[0].data_files: {files}")
    terms |= {term: value for key, term in (("name", "subset"), ("split", "split")) if (value := take(key))}
    terms["task"] = "sft"
    if take("ds_type") not in (None, "json", "csv", "parquet"):
        left.append(f"datasets[0].ds_type: {take('ds_type')}")
    kind = found[0].get("type")
    if isinstance(kind, dict):
        terms["prompt_column"], terms["completion_column"] = (
            take("type", "field_instruction"),
            take("type", "field_output"),
        )
        for key, usual in (("format", "{instruction}"), ("no_input_format", "{instruction}"), ("system_prompt", "")):
            value = take("type", key)
            if value not in (None, usual):
                left.append(f"datasets[0].type.{key}: {value!r}; prompts are taken as they are in the file")
        return left
    take("type")
    if kind == "chat_template":
        terms["messages_column"] = take("field_messages") or "messages"
        if take("roles_to_train") not in (None, ["assistant"]):
            left.append(f"datasets[0].roles_to_train: {take('roles_to_train')}: what the assistant says is learned")
        left.append("datasets[0].type: chat_template: the chat template is the model's own")
    elif kind == "completion":
        terms["task"], terms["text_column"] = "lm", take("field") or "text"
    elif kind:
        left.append(f"datasets[0].type: {kind}: prompts are taken as they are in the file")
    return left
