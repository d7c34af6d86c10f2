"""Parameter groups by role, for anyone's training loop."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from autolr.model.projections import NAMES
from autolr.recipe import Recipe

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
        ValueError: a rate is not positive and finite, W_q or W_v is not trained, or something is
            trained that has no role.
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
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    members: dict[str, list[nn.Parameter]] = {role: [] for role in rates}
    strangers = []
    for name, parameter in trainable.items():
        role = role_of(name)
        if role is None:
            strangers.append(name)
        else:
            members[role].append(parameter)
    if strangers:
        shown = ", ".join(strangers[:3]) + (", ..." if len(strangers) > 3 else "")
        raise ValueError(
            f"{len(strangers)} trainable parameters are neither W_q, W_k, W_v nor head: {shown}; freeze them, or "
            "give adapters the targets of W_q and W_v alone"
        )
    for role in ("q", "v"):
        if not members[role]:
            raise ValueError(f"no W_{role} is trained; give the adapter targets such as q_proj and v_proj")
    # named_parameters names a shared tensor once, so a tensor can be in one group only.
    assert sum(len(params) for params in members.values()) == len({id(p) for p in trainable.values()})
    return [
        {"params": params, "lr": rates[role], "weight_decay": weight_decay, "name": role}
        for role, params in members.items()
        if params
    ]


def role_of(name: str) -> str | None:
    """Return the role of a parameter by its full name; None where it has none.

    A matrix inside an attention layer has its own role; whatever PEFT keeps as `modules_to_save`,
    and whatever is no adapter and lies in no numbered layer, is the head.
    """
    parts = name.split(".")
    role = next((_ROLE_OF[part] for part in parts if part in _ROLE_OF), None)
    if role is not None:
        return role
    is_adapter = any(part.startswith("lora_") for part in parts)
    if "modules_to_save" in parts or (not is_adapter and not any(part.isdigit() for part in parts)):
        return "head" if "embeddings" not in parts and "embed_tokens" not in parts else None
    return None


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
