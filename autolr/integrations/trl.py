"""TRL: a file for `trl sft --config`, and a script of three lines more that gives each role its rate."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from autolr.integrations.bundle import Export, best_on_validation, data_files, has_chats, lost_always, lost_rates
from autolr.integrations.reading import Reading
from autolr.integrations.terms import ARGUMENTS, Terms, named, of_language, other_optimizer, terms_of
from autolr.schema.recipe import Recipe
from autolr.schema.yaml_io import to_yaml

RATES = "yes, by the script that goes along"
# TRL's, and transformers.TrainingArguments' own.
NAMES = {
    **ARGUMENTS,
    "model_name_or_path": "model",
    "per_device_train_batch_size": "batch",
    "num_train_epochs": "epochs",
    "lr_scheduler_type": "lr_scheduler_type",
    "max_length": "max_length",
    "load_in_4bit": "four_bit",
    "load_in_8bit": "eight_bit",
    "lora_r": "rank",
    "lora_target_modules": "targets",
    "use_rslora": "rslora",
    "use_dora": "dora",
}
# Of files that are read: where the data is.
DATA = {"dataset_name": "data", "dataset_config": "subset", "dataset_train_split": "split"}
# Settings of how a run is looked at and kept, which say nothing of what is learned.
_ASIDE = (
    "output_dir",
    "logging",
    "eval",
    "save",
    "report_to",
    "push_to_hub",
    "hub",
    "run_name",
    "load_best",
    "metric",
)

_SCRIPT = '''"""Fine-tuning with TRL, each role at the recipe's rate: python train.py --config trl.yaml"""

from datasets import load_dataset
from trl import (
    ModelConfig, ScriptArguments, SFTConfig, SFTTrainer, TrlParser, get_peft_config, get_quantization_config,
)

import autolr

parser = TrlParser((ScriptArguments, SFTConfig, ModelConfig))
script, arguments, model = parser.parse_args_and_config()
data = load_dataset(script.dataset_name)
trainer_class = autolr.with_rates(SFTTrainer, autolr.Recipe.load("recipe.yaml"))
trainer = trainer_class(
    model=model.model_name_or_path,
    args=arguments,
    train_dataset=data[script.dataset_train_split],
    eval_dataset=data[script.dataset_test_split],
    peft_config=get_peft_config(model),
    quantization_config=get_quantization_config(model),
)
trainer.train()
trainer.save_model(arguments.output_dir)
'''


def export(recipe: Recipe) -> Export:
    """Return `trl.yaml`, as TRL's parser reads it, a script that trains with it at the recipe's rates, and the data.

    Raises:
        ModelError: the recipe is no language model's; or see `autolr.integrations.terms.lora_config`.
    """
    of_language(recipe, "trl")
    data = data_files(recipe)
    content = {
        **named(terms_of(recipe), NAMES),
        "use_peft": True,
        "lora_task_type": "CAUSAL_LM",
        "dataset_name": "data",
        "dataset_train_split": "train",
        "dataset_test_split": "validation",
        **({"dataset_text_field": "text"} if recipe.task == "lm" else {}),
        **({"assistant_only_loss": True} if has_chats(data) else {}),
        "packing": False,
        "optim": "adamw_torch",
        "output_dir": "out",
        **best_on_validation(recipe),
    }
    by_config = [f"{line} (`trl sft --config trl.yaml` alone; train.py has them all)" for line in lost_rates(recipe)]
    lost = (*by_config, *lost_always(recipe))
    return Export(
        "trl", {"trl.yaml": to_yaml(content), "train.py": _SCRIPT, **data}, "python train.py --config trl.yaml", lost
    )


def read(content: dict[str, Any], path: Path) -> tuple[Terms, list[str]]:
    """Return the terms of a TRL file, or of saved training arguments, and what is not among them."""
    reading = Reading(content)
    terms: Terms = {term: value for name, term in (NAMES | DATA).items() if (value := reading.take(name)) is not None}
    left = []
    mixture = content.get("datasets")
    if isinstance(mixture, list) and mixture:
        files, place = reading.take("datasets", 0, "data_files"), reading.take("datasets", 0, "path")
        terms["data"] = files if isinstance(files, str) else place
        left += [f"datasets[0].data_files: {files}"] if isinstance(files, list) else []
        for key, term in (("name", "subset"), ("split", "split")):
            if value := reading.take("datasets", 0, key):
                terms[term] = value
        left += [f"datasets: {len(mixture) - 1} more than the first"] if len(mixture) > 1 else []
    if reading.take("use_peft") is False or ("lora_r" not in content and "use_peft" not in content):
        left.append("adapter: none is named here; lora is taken")
    terms["task"] = "sft"
    reading.take("lora_task_type")
    left += other_optimizer("optim", reading.take("optim"))
    if path.suffix == ".json":  # saved arguments hold all of them, most as they are by default
        for field in dataclasses.fields(TrainingArguments):
            if content.get(field.name) == field.default or content.get(field.name) in ([], {}, ""):
                reading.take(field.name)
    return terms, [*left, *reading.left(_ASIDE)]
