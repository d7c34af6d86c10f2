"""A saved PEFT adapter: its configuration and its tensors, without its base model."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from autolr.errors import ModelError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
Kind = Literal["lora", "full"]
_KINDS: dict[str, Kind] = {"LORA": "lora", "LN_TUNING": "full"}
_PREFIX = "base_model.model."
_A = re.compile(r"(?P<module>.+)[.]lora_(?P<embedding>embedding_)?A(?P<weight>[.]weight)?")


@dataclass(frozen=True)
class Adapter:
    """A PEFT adapter as its folder holds it.

    Attributes:
        label: its name in messages and reports.
        config: what `adapter_config.json` says.
        tensors: those of `adapter_model.safetensors`, by their names there.
    """

    label: str
    config: dict[str, Any]
    tensors: dict[str, Tensor]

    @classmethod
    def read(cls, folder: Path, label: str) -> Adapter:
        """Read an adapter's folder; its tensors stay in the machine's memory.

        Raises:
            ModelError: a file is missing or damaged.
        """
        try:
            config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            config = None
        if not isinstance(config, dict) or "peft_type" not in config:
            raise ModelError(f"{folder / CONFIG}: is no adapter configuration of PEFT. Save the adapter with PEFT")
        try:
            tensors = load_file(folder / WEIGHTS)
        except (OSError, SafetensorError):
            raise ModelError(
                f"{folder / WEIGHTS}: is missing or damaged. Save it as safetensors; other weights are never loaded"
            ) from None
        return cls(label, config, tensors)

    def save(self, folder: Path) -> None:
        """Write the two files that stock PEFT loads."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.contiguous() for name, tensor in self.tensors.items()}
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        text = json.dumps(self.config, indent=2, sort_keys=True)
        (folder / CONFIG).write_text(text, encoding="utf-8")

    @property
    def kind(self) -> Kind | None:
        """`lora`, `full` for whole matrices, or None for a PEFT method that is not averaged."""
        return _KINDS.get(str(self.config["peft_type"]))

    def factors(self) -> dict[str, tuple[str, str]]:
        """Return for each module of the base the names of its A [rank, d_in] and B [d_out, rank]."""
        found = {}
        for name in self.tensors:
            match = _A.fullmatch(name)
            if match:
                b = f"{match['module']}.lora_{match['embedding'] or ''}B{match['weight'] or ''}"
                found[match["module"].removeprefix(_PREFIX)] = (name, b)
        return found

    def others(self) -> dict[str, Tensor]:
        """Return the tensors that are no A or B: the head, whole matrices, biases."""
        factors = {name for pair in self.factors().values() for name in pair}
        return {name: tensor for name, tensor in self.tensors.items() if name not in factors}

    def ranks(self) -> dict[str, int]:
        """Return the rank of each module's adapter."""
        return {module: len(self.tensors[a]) for module, (a, _) in self.factors().items()}

    def scaling(self, module: str) -> float:
        """Return the factor that PEFT multiplies B A by: alpha / rank, or alpha / sqrt(rank) with rsLoRA."""
        from peft.utils.other import get_pattern_key

        patterns: dict[str, float] = self.config.get("alpha_pattern") or {}
        alpha = patterns.get(get_pattern_key(list(patterns), module), self.config["lora_alpha"])
        rank = self.ranks()[module]
        return float(alpha) / (math.sqrt(rank) if self.config.get("use_rslora") else rank)


def with_factors(
    label: str,
    config: Mapping[str, Any],
    factors: Mapping[str, tuple[Tensor, Tensor]],
    names: Mapping[str, tuple[str, str]],
    others: Mapping[str, Tensor],
) -> Adapter:
    """Return a LoRA adapter from A and B of each module; PEFT will multiply their product by 1.

    Args:
        label: of the new adapter.
        config: whose other settings it gets.
        factors: A [rank, d_in] and B [d_out, rank] by module; ranks may differ.
        names: of both in the file, by module.
        others: all other tensors.
    """
    ranks = {module: len(a) for module, (a, _) in factors.items()}
    usual = Counter(ranks.values()).most_common(1)[0][0]
    unusual = {module: rank for module, rank in ranks.items() if rank != usual}
    tensors = dict(others)
    for module, pair in factors.items():
        tensors.update(zip(names[module], pair, strict=True))
    own = {
        "r": usual,
        "lora_alpha": usual,
        "rank_pattern": unusual,
        "alpha_pattern": unusual,
        "use_rslora": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }
    return Adapter(label, {**config, **own}, tensors)


def kept(value: Tensor, like: Tensor) -> Tensor:
    """Return a result in the type that it is stored in: that of its ingredients, and float32 at least."""
    return value.to(torch.promote_types(like.dtype, torch.float32))
