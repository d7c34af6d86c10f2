"""Parameter groups by role, for anyone's training loop."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import nn

from autolr.model import layouts
from autolr.model.projections import NAMES
from autolr.recipe import Recipe

_FUSED = frozenset(layouts.CHILDREN.values())
_ROLE_OF = {name: role for names in NAMES for role, name in names.items()}


def parameter_groups(
    model: nn.Module,
    *,
    lr_q: float,
    ratio: float,
    lr_head: float | None = None,
    lr_k: float | None = None,
    weight_decay: float = 0.0,
) -> list[dict[str, Any]]:
    """Sort a model's trainable parameters into groups of one rate each.

    Paper 1's strategy: W_v learns `ratio` times as fast as W_q. Works on a PEFT model and on a
    model whose matrices train themselves. Pass the groups to any torch optimizer.

    Args:
        model: the model; what it trains is what has `requires_grad`.
        lr_q: rate of W_q.
        ratio: λ = lr_v / lr_q.
        lr_head: rate of the task's new output layer; None: lr_q.
        lr_k: rate of W_k where it is trained; None: lr_q.
        weight_decay: of all groups.

    Returns:
        Groups with `params`, `lr`, `weight_decay` and `name` (the role); empty ones are left out.
        Together they hold every trainable parameter exactly once.

    Raises:
        ValueError: a rate is not positive and finite, W_q or W_v is not trained, something is
            trained that has no role, or one tensor is shared by two roles.
    """
    rates = {
        "q": lr_q,
        "k": lr_q if lr_k is None else lr_k,
        "v": lr_q * ratio,
        "head": lr_q if lr_head is None else lr_head,
    }
    for name, value in {
        "lr_q": lr_q,
        "ratio": ratio,
        **{f"rate of {r}": v for r, v in rates.items()},
    }.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be a positive, finite number: {value}")
    # Every name of a shared tensor counts: each must say the same role.
    named = list(model.named_parameters(remove_duplicate=False))
    stacks = _layer_stacks(name for name, _ in named)
    members: dict[str, list[nn.Parameter]] = {role: [] for role in rates}
    seen: dict[int, tuple[str, str]] = {}
    strangers = []
    for name, parameter in named:
        if not parameter.requires_grad:
            continue
        role = role_of(name, stacks)
        if role is None:
            strangers.append(name)
        elif id(parameter) not in seen:
            seen[id(parameter)] = role, name
            members[role].append(parameter)
        elif seen[id(parameter)][0] != role:
            raise ValueError(
                f"{seen[id(parameter)][1]} and {name} share one tensor, which cannot learn at two rates; untie them"
            )
    fused = [name for name in strangers if ".lora_" in name and not _FUSED.isdisjoint(name.split("."))]
    if fused:
        raise ValueError(
            f"{fused[0]}: one tensor for W_q, W_k and W_v, which cannot learn at rates of their own; let "
            "autolr.model.adapters.peft_model put on the adapter: it trains the same in parts, and saves a stock one"
        )
    if strangers:
        shown = ", ".join(strangers[:3]) + (", ..." if len(strangers) > 3 else "")
        raise ValueError(
            f"{len(strangers)} trainable parameters are neither W_q, W_k, W_v nor head: {shown}; freeze them, or "
            "give adapters the targets of W_q and W_v alone"
        )
    for role in ("q", "v"):
        if not members[role]:
            raise ValueError(f"no W_{role} is trained; give the adapter targets such as q_proj and v_proj")
    grouped = [id(p) for params in members.values() for p in params]
    if sorted(grouped) != sorted(id(p) for p in model.parameters() if p.requires_grad):
        raise ValueError("the groups do not hold every trainable parameter exactly once")
    return [
        {"params": params, "lr": rates[role], "weight_decay": weight_decay, "name": role}
        for role, params in members.items()
        if params
    ]


def role_of(name: str, stacks: Collection[str] = ()) -> str | None:
    """Return the role of a parameter by its full name; None where it has none.

    W_q, W_k and W_v themselves, and what LoRA adds to them, have their own roles. Whatever PEFT
    keeps as `modules_to_save`, and whatever is no adapter and lies outside the model's layers and
    input embeddings, is the head.

    Args:
        name: such as `base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.default.weight`.
        stacks: where the model keeps its layers, such as `base_model.model.bert.encoder.layer.`.
    """
    parts = name.split(".")
    matrix = _matrix(parts)
    if matrix is not None:
        return matrix[1]
    is_adapter = any(part.startswith("lora_") for part in parts)
    if "modules_to_save" in parts or (not is_adapter and not name.startswith(tuple(stacks))):
        return "head" if "embeddings" not in parts and "embed_tokens" not in parts else None
    return None


def _matrix(parts: list[str]) -> tuple[int, str] | None:
    """Return which part names the module, and the role, if a parameter is W_q's, W_k's, W_v's or their adapter's."""
    # What `autolr.model.fused` trains on the rows of one role: c_attn.lora_A.default.q
    if len(parts) > 3 and parts[-3] in ("lora_A", "lora_B") and parts[-1] in ("q", "k", "v"):
        return len(parts) - 4, parts[-1]
    for index, part in enumerate(parts):
        if part not in _ROLE_OF:
            continue
        rest = parts[index + 1 :]
        if rest[:1] == ["modules_to_save"]:
            rest = rest[2:]
        if rest[:1] == ["base_layer"]:
            rest = rest[1:]
        # A module that is merely called `value`, such as a critic, has parameters further down.
        if rest in (["weight"], ["bias"]) or (rest and rest[0].startswith("lora_")):
            return index, _ROLE_OF[part]
    return None


def _layer_stacks(names: Iterable[str]) -> set[str]:
    """Return the prefixes under which the numbered layers with W_q, W_k and W_v lie."""
    stacks = set()
    for name in names:
        parts = name.split(".")
        matrix = _matrix(parts)
        if matrix is None:
            continue
        number = next((i for i, part in enumerate(parts[: matrix[0]]) if part.isdigit()), None)
        if number is not None:
            stacks.add(".".join(parts[:number]) + ".")
    return stacks


def create_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """Return AdamW with a recipe's rates, betas, eps and weight decay."""
    groups = parameter_groups(
        model,
        lr_q=recipe.rates.q,
        ratio=recipe.rates.v / recipe.rates.q,
        lr_head=recipe.rates.head,
        lr_k=recipe.rates.k,
        weight_decay=recipe.training.weight_decay,
    )
    return torch.optim.AdamW(groups, betas=recipe.training.betas, eps=recipe.training.eps)
