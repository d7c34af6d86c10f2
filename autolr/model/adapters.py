"""LoRA adapters: their first values, and the same adapter in stock PEFT's form."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from autolr.data import demo
from autolr.errors import ModelError
from autolr.model.backbone import Backbone, fresh_head
from autolr.model.fused import split
from autolr.model.projections import Site, by_module
from autolr.study import MethodKind, Targets


def initial_a(site: Site, rank: int, seed: int) -> Tensor:
    """Return A before the first step, float32 [rank, d_in]; B starts at 0.

    The distribution is PEFT's (Kaiming-uniform with a = sqrt(5), so ±1/sqrt(d_in)). Row i is the
    same for every rank: candidates of different ranks start from the same luck.
    """
    rng = np.random.default_rng([seed, zlib.crc32(site.name.encode())])
    bound = 1 / math.sqrt(site.d_in)
    return torch.from_numpy(rng.uniform(-bound, bound, (rank, site.d_in)).astype(np.float32))


def scaling(kind: MethodKind, alpha: float, rank: int) -> float:
    """Return what an adapter's product B A is multiplied by, as PEFT has it."""
    return alpha / math.sqrt(rank) if kind == "rslora" else alpha / rank


def frozen(backbone: Backbone, site: Site) -> Tensor:
    """Return a site's frozen matrix W, [d_out, d_in].

    Raises:
        ModelError: the site is some rows of a fused matrix, whose other rows a stock DoRA adapter would train too.
    """
    if site.rows:
        raise ModelError(
            f"model {backbone.source!r}: {site.module} holds W_q, W_k and W_v in one matrix, and DoRA would train "
            "the lengths of all its rows; use method.kind lora or rslora"
        )
    module = backbone.model.get_submodule(site.module)
    weight: Tensor = module.weight.detach()
    return weight.T if isinstance(module, Conv1D) else weight


def parameters(backbone: Backbone, targets: Targets, rank: int, kind: MethodKind = "lora") -> dict[str, int]:
    """Count what a candidate trains: `{"adapter": ..., "head": ...}`."""
    sites = backbone.projections.of(targets)
    adapter = sum(rank * (site.d_in + site.d_out) + (site.d_out if kind == "dora" else 0) for site in sites)
    return {"adapter": adapter, "head": sum(p.numel() for p in backbone.head_parameters().values())}


def peft_model(
    backbone: Backbone, targets: Targets, rank: int, alpha: float, seed: int, kind: MethodKind = "lora"
) -> Any:
    """Return the base with a stock PEFT adapter whose first values are those of a slot.

    The base model inside is the backbone's own, changed in place; load the backbone anew to use
    it elsewhere.
    """
    from peft import get_peft_model

    sites = backbone.projections.of(targets)
    # PEFT wraps the head in place, so its first values are read before.
    values: dict[str, Tensor] = {f"{site.name}.lora_A": initial_a(site, rank, seed) for site in sites}
    values |= fresh_head(backbone, seed)
    model = get_peft_model(backbone.model, lora_config(backbone, targets, rank, alpha, kind))
    for name, group in by_module(sites).items():
        if group[0].rows:
            split(model.get_submodule(f"base_model.model.{name}"), group, rank)
    set_values(model, values)
    return model


def lora_config(backbone: Backbone, targets: Targets, rank: int, alpha: float, kind: MethodKind = "lora") -> Any:
    """Return the stock PEFT configuration of an adapter.

    On a fused module its rank is as many times as large as it has roles, and alpha so that the scale stays; see
    `autolr.model.fused`.

    Raises:
        ModelError: DoRA on a fused module.
    """
    from peft import LoraConfig, TaskType

    sites = backbone.projections.of(targets)
    if kind == "dora":
        for site in sites:
            frozen(backbone, site)  # says why where it cannot be
    modules = by_module(sites)
    times = {name: len(sites) for name, sites in modules.items()}
    most = max(times.values())
    fewer = {name: count for name, count in times.items() if count < most}
    base = backbone.model.get_submodule(next(iter(modules)))
    return LoraConfig(
        task_type=TaskType.SEQ_CLS if backbone.head else TaskType.CAUSAL_LM,
        r=most * rank,
        lora_alpha=scaling(kind, alpha, rank) / scaling(kind, 1.0, most * rank),
        rank_pattern={name: count * rank for name, count in fewer.items()},
        alpha_pattern={n: scaling(kind, alpha, rank) / scaling(kind, 1.0, c * rank) for n, c in fewer.items()},
        use_rslora=kind == "rslora",
        use_dora=kind == "dora",
        lora_dropout=0.0,
        bias="none",
        target_modules=_short_names(backbone, list(modules)),
        modules_to_save=list(backbone.head) or None,
        fan_in_fan_out=isinstance(base, Conv1D),
    )


def values_of(model: Any) -> dict[str, Tensor]:
    """Return the trained tensors of a PEFT model under the names slots use.

    `<site>.lora_A`, `<site>.lora_B` and the head's parameters by their names in the base model; a
    site on rows of a fused module is called as `Site.name` says.
    """
    return {
        plain_name(name): p
        for name, p in model.named_parameters()
        if p.requires_grad and ".original_module." not in name
    }


def set_values(model: Any, values: Mapping[str, Tensor]) -> None:
    """Copy `values`, named as by `values_of`, into a PEFT model."""
    own = values_of(model)
    with torch.no_grad():
        for name, value in values.items():
            own[name].copy_(value)


def hub_name(source: str) -> str:
    """Return what an adapter's configuration calls its base model."""
    return demo.HUB.get(source, source)


def plain_name(name: str) -> str:
    """Turn a parameter's name inside a PEFT model into the name slots use."""
    name = name.removeprefix("base_model.model.").replace(".modules_to_save.default.", ".")
    adapter = re.fullmatch(r"(.+)[.](lora_[AB]|lora_magnitude_vector)[.]default[.](weight|[qkv])", name)
    if adapter is None:
        return name
    module, side, part = adapter.groups()
    return f"{module}.{side}" if part == "weight" else f"{module}.{part}.{side}"


def _short_names(backbone: Backbone, modules: list[str]) -> list[str]:
    """Return `["query", "value"]` where these suffixes name the modules and nothing else."""
    short = sorted({name.rpartition(".")[2] for name in modules})
    matched = {
        name for name, _ in backbone.model.named_modules() if any(name == s or name.endswith(f".{s}") for s in short)
    }
    return short if matched == set(modules) else modules
