"""torchtune: a config for its LoRA recipe; one rate for all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autolr.documents import to_yaml
from autolr.errors import ModelError
from autolr.foreign.terms import of_language, terms_of
from autolr.foreign.tool import TRAIN, Export, data_files, has_chats, lost_always, lost_rates
from autolr.model.outline import config_of
from autolr.recipe import Recipe

# What torchtune calls the matrices of each role.
_ATTENTION = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "output_proj"}
# By version of a family: its builder in torchtune.models, its tokenizer and that one's files, and what checkpointers
# call it.
_VERSIONS: dict[str, tuple[str, dict[str, str], str]] = {
    "llama2": ("llama2.llama2_tokenizer", {"path": "tokenizer.model"}, "LLAMA2"),
    "llama3": ("llama3.llama3_tokenizer", {"path": "original/tokenizer.model"}, "LLAMA3"),
    "llama3_1": ("llama3.llama3_tokenizer", {"path": "original/tokenizer.model"}, "LLAMA3"),
    "llama3_2": ("llama3.llama3_tokenizer", {"path": "original/tokenizer.model"}, "LLAMA3_2"),
    "qwen2": ("qwen2_5.qwen2_5_tokenizer", {"path": "vocab.json", "merges_file": "merges.txt"}, "QWEN2"),
    "mistral": ("mistral.mistral_tokenizer", {"path": "tokenizer.model"}, "MISTRAL"),
}
# Where Llama's rotary base tells its third generation, with another tokenizer, from its second.
_LLAMA3_BASE = 500_000


def export(recipe: Recipe) -> Export:
    """Return `torchtune.yaml`, as `tune validate` accepts it, and the data.

    Raises:
        ModelError: the recipe is no language model's, or torchtune has no builder for its family; or see
            `autolr.foreign.terms.lora_config`.
    """
    of_language(recipe, "torchtune", whole_alpha=False)
    data = data_files(recipe)
    terms, config = terms_of(recipe), config_of(recipe.model).get_text_config()
    if terms["rslora"]:
        raise ModelError("--to torchtune: has no rsLoRA; the recipe's kind is rslora")
    version = _version(config, recipe.model)
    tokenizer, files, kind = _VERSIONS[version]
    folder = Path(terms["model"])
    here = folder.is_dir()
    weights = sorted(file.name for file in folder.glob("*.safetensors")) if here else ["model.safetensors"]
    roles = recipe.rates.trained()
    epochs, steps = _epochs(data, terms)
    content = {
        "output_dir": "out",
        "model": {
            "_component_": f"torchtune.models.{version}.lora_{version}",
            "lora_attn_modules": [name for role, name in _ATTENTION.items() if role in roles],
            "apply_lora_to_mlp": "mlp" in roles,
            "apply_lora_to_output": False,
            **_shape(config, version),
            "lora_rank": terms["rank"],
            "lora_alpha": terms["alpha"],
            "lora_dropout": 0.0,
            "use_dora": terms["dora"],
            "quantize_base": bool(terms.get("four_bit")),
        },
        "tokenizer": {
            "_component_": f"torchtune.models.{tokenizer}",
            **{key: str(folder / file) for key, file in files.items()},
            "max_seq_len": terms["max_length"],
        },
        "checkpointer": {
            "_component_": "torchtune.training.FullModelHFCheckpointer",
            "checkpoint_dir": str(folder),
            "checkpoint_files": weights,
            "recipe_checkpoint": None,
            "output_dir": "${output_dir}",
            "model_type": kind,
        },
        "resume_from_checkpoint": False,
        "save_adapter_weights_only": True,
        "dataset": _dataset(recipe, has_chats(data)),
        "seed": terms["seed"],
        "shuffle": True,
        "batch_size": terms["batch"],
        "optimizer": {
            "_component_": "torch.optim.AdamW",
            "lr": terms["lr"],
            "betas": [terms["beta1"], terms["beta2"]],
            "eps": terms["eps"],
            "weight_decay": terms["weight_decay"],
        },
        "lr_scheduler": _schedule(terms),
        "loss": {"_component_": "torchtune.modules.loss.CEWithChunkedOutputLoss"},
        "epochs": epochs,
        "max_steps_per_epoch": steps,
        "gradient_accumulation_steps": 1,
        "clip_grad_norm": terms["clip"] or None,
        "compile": False,
        "metric_logger": {
            "_component_": "torchtune.training.metric_logging.DiskLogger",
            "log_dir": "${output_dir}/logs",
        },
        "log_every_n_steps": 10,
        "log_peak_memory_stats": False,
        "device": "cuda",
        "dtype": "bf16" if terms.get("bf16", True) else "fp32",
        "enable_activation_checkpointing": terms["checkpointing"],
        "enable_activation_offloading": False,
    }
    lost = [
        *lost_rates(recipe),
        *([f"steps: {epochs * steps} in whole epochs, not {recipe.steps}"] if epochs * steps != recipe.steps else []),
        "select: nothing is evaluated during training, so the last checkpoint is kept, not the best",
        *([] if here else [f"model {terms['model']}: download it to the folder of this name: tune download"]),
        *(
            f"tokenizer: {file} is not in the model's folder, and torchtune reads no tokenizer.json"
            for file in files.values()
            if here and not (folder / file).is_file()
        ),
        *lost_always(recipe),
    ]
    command = "tune run lora_finetune_single_device --config torchtune.yaml"
    return Export("torchtune", {"torchtune.yaml": to_yaml(content), **data}, command, tuple(lost))


def _version(config: Any, model: str) -> str:
    """Return which of torchtune's models this is.

    Raises:
        ModelError: none.
    """
    family, rope = str(config.model_type), _rope(config)
    if family in ("qwen2", "mistral"):
        return family
    if family != "llama":
        raise ModelError(
            f"--to torchtune: model {model!r} is of the family {family!r}; builders are known for llama, qwen2 and "
            "mistral"
        )
    if rope.get("rope_type") == "llama3":
        return "llama3_2" if config.tie_word_embeddings else "llama3_1"
    return "llama3" if rope.get("rope_theta", 0) >= _LLAMA3_BASE else "llama2"


def _rope(config: Any) -> dict[str, Any]:
    return getattr(config, "rope_parameters", None) or {}


def _shape(config: Any, version: str) -> dict[str, Any]:
    rope = _rope(config)
    base = {} if version == "llama2" else {"rope_base": int(rope.get("rope_theta", 10_000))}
    scaled = {"scale_factor": int(rope["factor"])} if version in ("llama3_1", "llama3_2") else {}
    tied = {"tie_word_embeddings": bool(config.tie_word_embeddings)} if version in ("llama3_2", "qwen2") else {}
    return {
        "vocab_size": config.vocab_size,
        "num_layers": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "num_kv_heads": config.num_key_value_heads,
        "embed_dim": config.hidden_size,
        "intermediate_dim": config.intermediate_size,
        "max_seq_len": config.max_position_embeddings,
        "norm_eps": config.rms_norm_eps,
        **base,
        **scaled,
        **tied,
    }


def _dataset(recipe: Recipe, chats: bool) -> dict[str, Any]:
    source = {"source": "json", "data_files": TRAIN, "split": "train"}
    if chats:
        how = {"conversation_column": "messages", "conversation_style": "openai", "train_on_input": False}
        return {"_component_": "torchtune.datasets.chat_dataset", **source, **how}
    if recipe.task == "lm":
        return {"_component_": "torchtune.datasets.text_completion_dataset", **source, "column": "text"}
    columns = {"column_map": {"input": "prompt", "output": "completion"}, "train_on_input": False}
    return {"_component_": "torchtune.datasets.instruct_dataset", **source, **columns}


def _schedule(terms: dict[str, Any]) -> dict[str, Any]:
    # torchtune's own are cosines; it takes any function of an optimizer, its steps and those of the warmup.
    own = {"num_warmup_steps": terms["warmup_steps"]}
    if terms["schedule"] == "linear":
        return {"_component_": "transformers.optimization.get_linear_schedule_with_warmup", **own}
    name = "transformers.optimization.get_polynomial_decay_schedule_with_warmup"
    return {"_component_": name, **own, "lr_end": 0.0, "power": 0.0}  # to the power of 0: constant


def _epochs(data: dict[str, str], terms: dict[str, Any]) -> tuple[int, int]:
    """Return epochs and the steps of each, which together are no fewer than the recipe's."""
    longest = max(1, data[TRAIN].count("\n") // terms["batch"])
    epochs = -(-terms["steps"] // longest)
    return epochs, -(-terms["steps"] // epochs)
