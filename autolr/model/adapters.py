"""Adapters, and matrices that train whole: their first values, and the same in stock PEFT's form."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from autolr.data import demo
from autolr.errors import ModelError
from autolr.model import full_matrices, fused_peft
from autolr.model.backbone import Backbone, fresh_head
from autolr.model.projections import Site, by_module
from autolr.schema.space import MethodKind, Targets


def initial_a(site: Site, rank: int, seed: int) -> Tensor:
    """Return A before the first step, float32 [rank, d_in]; B starts at 0.

    The distribution is PEFT's (Kaiming-uniform with a = sqrt(5), so ±1/sqrt(d_in)). Row i is the
    same for every rank: candidates of different ranks start from the same luck.
    """
    rng = np.random.default_rng([seed, zlib.crc32(site.name.encode())])
    bound = 1 / math.sqrt(site.d_in)
    return torch.from_numpy(rng.uniform(-bound, bound, (rank, site.d_in)).astype(np.float32))


def scaling(kind: MethodKind, alpha: float, rank: int) -> float:
    """Return what an adapter's product B A is multiplied by, as PEFT has it; full matrices have none."""
    if kind == "full":
        return 1.0
    return alpha / math.sqrt(rank) if kind == "rslora" else alpha / rank


def shapes(site: Site, rank: int, kind: MethodKind) -> dict[str, tuple[int, ...]]:
    """Return the tensors that a method trains for a site, by name, and their shapes."""
    if kind == "full":
        return {f"{site.name}.weight": (site.d_out, site.d_in)}
    lengths = {f"{site.name}.lora_magnitude_vector": (site.d_out,)} if kind == "dora" else {}
    return {f"{site.name}.lora_A": (rank, site.d_in), f"{site.name}.lora_B": (site.d_out, rank), **lengths}


def frozen(backbone: Backbone, site: Site) -> Tensor:
    """Return a site's frozen matrix W, [d_out, d_in]."""
    module = backbone.model.get_submodule(site.module)
    weight: Tensor = module.weight.detach()
    weight = weight.T if isinstance(module, Conv1D) else weight
    return weight[site.rows.index()] if site.rows else weight


def check(backbone: Backbone, sites: Sequence[Site], kind: MethodKind) -> None:
    """Check that a method can train these sites.

    Raises:
        ModelError: DoRA on rows of a fused matrix, whose other rows a stock adapter would train too; or a method that
            needs the numbers of a quantized matrix.
    """
    # A GGUF file's matrices are plain numbers once loaded, though transformers calls the model quantized.
    few_bits = any(not backbone.model.get_submodule(site.module).weight.is_floating_point() for site in sites)
    if kind in ("dora", "full") and few_bits:
        raise ModelError(
            f"model {backbone.source!r}: its matrices are quantized, and method.kind {kind} needs them as they are; "
            "use lora or rslora, or training.precision bf16"
        )
    shared = next((site for site in sites if site.rows), None)
    if kind == "dora" and shared:
        raise ModelError(
            f"model {backbone.source!r}: {shared.module} holds W_q, W_k and W_v in one matrix, and DoRA would train "
            "the lengths of all its rows; use method.kind lora, rslora or full"
        )


def parameters(backbone: Backbone, targets: Targets, rank: int, kind: MethodKind = "lora") -> dict[str, int]:
    """Count what a candidate trains: `{"adapter": ..., "head": ...}`; full matrices count as their adapter."""
    sites = backbone.projections.of(targets)
    adapter = sum(math.prod(shape) for site in sites for shape in shapes(site, rank, kind).values())
    return {"adapter": adapter, "head": sum(p.numel() for p in backbone.head_parameters().values())}


def peft_model(
    backbone: Backbone, targets: Targets, rank: int, alpha: float, seed: int, kind: MethodKind = "lora"
) -> Any:
    """Return the base with a stock PEFT adapter whose first values are those of a slot.

    The base model inside is the backbone's own, changed in place; load the backbone anew to use
    it elsewhere.

    Raises:
        ModelError: see `check`.
    """
    from peft import get_peft_model

    sites = backbone.projections.of(targets)
    check(backbone, sites, kind)
    # PEFT wraps the head in place, so its first values are read before.
    values = fresh_head(backbone, seed)
    config = _whole_config(backbone, sites) if kind == "full" else lora_config(backbone, sites, rank, alpha, kind)
    if kind != "full":
        values |= {f"{site.name}.lora_A": initial_a(site, rank, seed) for site in sites}
    model = get_peft_model(backbone.model, config)
    for name, group in by_module(sites).items():
        layer = model.get_submodule(f"base_model.model.{name}")
        if kind == "full":
            full_matrices.train_rows(layer, group)
        elif group[0].rows:
            fused_peft.split(layer, group, rank)
    set_values(model, values)
    return model


@contextmanager
def adapted(
    backbone: Backbone, targets: Targets, rank: int, alpha: float, seed: int, kind: MethodKind = "lora"
) -> Iterator[Any]:
    """Put an adapter on the base, see `peft_model`, and take it off again; the head is what it was."""
    head = {name: p.detach().clone() for name, p in backbone.head_parameters().items()}
    model = peft_model(backbone, targets, rank, alpha, seed, kind)
    try:
        yield model
    finally:
        backbone.model = model.unload().eval().requires_grad_(False)
        with torch.no_grad():
            for name, parameter in backbone.head_parameters().items():
                parameter.copy_(head[name])


def _whole_config(backbone: Backbone, sites: Sequence[Site]) -> Any:
    """Return the stock PEFT configuration of an adapter that holds the matrices whole.

    PEFT's LN tuning keeps and trains a copy of whatever modules it is given, not of norms alone: what is saved
    holds the trained matrices and the head and nothing else, and loads, merges and is switched off as any adapter.
    The head's are among these modules, since merging would leave them wrapped as `modules_to_save`.
    """
    from peft import LNTuningConfig

    head = dict.fromkeys(name.rpartition(".")[0] for name in backbone.head_parameters())
    return LNTuningConfig(target_modules=[*_short_names(backbone, list(by_module(sites))), *head])


def lora_config(backbone: Backbone, sites: Sequence[Site], rank: int, alpha: float, kind: MethodKind) -> Any:
    """Return the stock PEFT configuration of an adapter.

    On a fused module its rank is as many times as large as it has roles, and alpha so that the scale stays; see
    `autolr.model.fused_peft`.
    """
    from peft import LoraConfig, TaskType

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

    `<site>.lora_A`, `<site>.lora_B`, or the matrix itself as `<site>.weight` [d_out, d_in], and the head's parameters
    by their names in the base model; a site on rows of a fused module is called as `Site.name` says.
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
    """Return what the hub calls a model."""
    return demo.HUB.get(source, source)


def base_place(source: str) -> str:
    """Return where an adapter finds its base model: a hub id, or in full the folder that it was loaded from."""
    path = Path(source).expanduser()
    return str(path.absolute()) if path.exists() else hub_name(source)


def plain_name(name: str) -> str:
    """Turn a parameter's name inside a PEFT model into the name slots use."""
    name = re.sub(r"[.](modules_to_save|ln_tuning_layers)[.]default[.]", ".", name.removeprefix("base_model.model."))
    if name.endswith((".q", ".k", ".v", ".whole")) and ".lora_" not in name:
        return f"{name.removesuffix('.whole')}.weight"
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
