"""Adapters as stock PEFT saves them, over tiny models, with random values in all that would be trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from autolr.merging.adapter import Adapter
from tests import tiny

TARGETS = {"bert": ["query", "value"], "llama/lm": ["q_proj", "v_proj"], "gpt2": ["c_attn"], "gpt2/lm": ["c_attn"]}
HEADS = {"bert": ["pooler", "classifier"], "gpt2": ["score"]}


def base(family: str) -> torch.nn.Module:
    """Return the base model that all adapters of a family have, in float64."""
    return tiny.model(family, torch.float64)


def saved(folder: Path, family: str, seed: int, **options: Any) -> Path:
    """Save an adapter: A and head of one initialization, moved by what the seed draws."""
    settings = {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": TARGETS[family],
        "modules_to_save": list(HEADS.get(family, [])) or None,  # PEFT adds to it
        "task_type": "CAUSAL_LM" if family.endswith("lm") else "SEQ_CLS",
        **options,
    }
    torch.manual_seed(0)
    model = get_peft_model(base(family), LoraConfig(**settings), autocast_adapter_dtype=False)
    model.peft_config["default"].base_model_name_or_path = f"tiny-{family}"
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    model.double().save_pretrained(folder)
    return folder


def read(folder: Path) -> Adapter:
    """Read an adapter under its folder's name."""
    return Adapter.read(folder, folder.name)


def loaded(family: str, folder: Path) -> PeftModel:
    """Load an adapter as anybody does."""
    return PeftModel.from_pretrained(base(family), folder, autocast_adapter_dtype=False).double().eval()


def logits(model: torch.nn.Module) -> torch.Tensor:
    """Return what a model says of a batch."""
    ids = torch.tensor(tiny.tokens(8).ids[0:1])
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


def dense(family: str, folders: list[Path], weights: list[float]) -> torch.nn.Module:
    """Return a plain model with the weighted mean of what each adapter makes of the base's parameters."""
    plain = base(family)
    start = {name: value.clone() for name, value in plain.state_dict().items()}
    with torch.no_grad():
        for folder, weight in zip(folders, weights, strict=True):
            alone = loaded(family, folder).merge_and_unload()
            for name, value in alone.state_dict().items():
                plain.state_dict()[name] += weight * (value - start[name])
    return plain.eval()
