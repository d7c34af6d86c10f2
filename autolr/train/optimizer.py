"""Parameter groups by role, for anyone's training loop."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from autolr.model import layouts
from autolr.model.projections import NAMES
from autolr.recipe import Recipe
from autolr.study import Role

_FUSED = frozenset(layouts.CHILDREN.values())
_ROLE_OF: dict[str, Role] = {name: role for names in NAMES for role, name in names.items()}  # type: ignore[misc]


def parameter_groups(
    model: nn.Module,
    *,
    lr_q: float,
    ratio: float,
    lr_head: float | None = None,
    lr_k: float | None = None,
    lr_o: float | None = None,
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
        lr_o: rate of the output projection W_o where it is trained; None: that of W_v.
        weight_decay: of all groups.

    Returns:
        Groups with `params`, `lr`, `weight_decay` and `name` (the role); empty ones are left out.
        Together they hold every trainable parameter exactly once.

    Raises:
        ValueError: a rate is not positive and finite, W_q or W_v is not trained, something is
            trained that has no role, or one tensor is shared by two roles.
    """
    if not (math.isfinite(lr_q) and lr_q > 0 and math.isfinite(ratio) and ratio > 0):
        raise ValueError(f"lr_q and ratio must be positive, finite numbers: {lr_q}, {ratio}")
    rates: dict[Role, float] = {
        "q": lr_q,
        "k": lr_q if lr_k is None else lr_k,
        "v": lr_q * ratio,
        "o": lr_q * ratio if lr_o is None else lr_o,
        "head": lr_q if lr_head is None else lr_head,
    }
    return grouped(model, rates, weight_decay=weight_decay, needed=("q", "v"))


def grouped(
    model: nn.Module, rates: Mapping[Role, float], *, weight_decay: float = 0.0, needed: Collection[Role] = ()
) -> list[dict[str, Any]]:
    """Sort a model's trainable parameters into groups, as `parameter_groups` does, at any rates.

    Args:
        model: the model.
        rates: of the roles that may be trained.
        weight_decay: of all groups.
        needed: roles that must be trained.

    Raises:
        ValueError: as `parameter_groups`; and where a role is trained that has no rate.
    """
    for role, value in rates.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"the rate of {role} must be a positive, finite number: {value}")
    # Every name of a shared tensor counts: each must say the same role.
    named = list(model.named_parameters(remove_duplicate=False))
    stacks = _layer_stacks(name for name, _ in named)
    members: dict[Role, list[nn.Parameter]] = {role: [] for role in rates}
    seen: dict[int, tuple[str, str]] = {}
    strangers = []
    for name, parameter in named:
        if not parameter.requires_grad:
            continue
        own = role_of(name, stacks)
        if own is None or own not in members:
            strangers.append(name)
        elif id(parameter) not in seen:
            seen[id(parameter)] = own, name
            members[own].append(parameter)
        elif seen[id(parameter)][0] != own:
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
            f"{len(strangers)} trainable parameters are none of {', '.join(rates)}: {shown}; freeze them, or give "
            "adapters the targets of W_q and W_v alone"
        )
    for wanted in needed:
        if not members.get(wanted):
            raise ValueError(f"no W_{wanted} is trained; give the adapter targets such as q_proj and v_proj")
    held = [id(p) for params in members.values() for p in params]
    if sorted(held) != sorted(id(p) for p in model.parameters() if p.requires_grad):
        raise ValueError("the groups do not hold every trainable parameter exactly once")
    return [
        {"params": params, "lr": rates[role], "weight_decay": weight_decay, "name": role}
        for role, params in members.items()
        if params
    ]


def role_of(name: str, stacks: Collection[str] = ()) -> Role | None:
    """Return the role of a parameter by its full name; None where it has none.

    W_q, W_k, W_v and W_o themselves, and what LoRA adds to them, have their own roles. Whatever PEFT
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
    if layouts.is_output(_module(parts)):
        return "o"
    is_adapter = any(part.startswith("lora_") for part in parts)
    if "modules_to_save" in parts or (not is_adapter and not name.startswith(tuple(stacks))):
        return "head" if "embeddings" not in parts and "embed_tokens" not in parts else None
    return None


def _module(parts: list[str]) -> str:
    """Return the name of the module that a parameter, or its adapter, belongs to."""
    end = next((i for i, part in enumerate(parts) if part.startswith("lora_") or part == "base_layer"), None)
    return ".".join(parts[: len(parts) - 1 if end is None else end])


def _matrix(parts: list[str]) -> tuple[int, Role] | None:
    """Return which part names the module, and the role, if a parameter is W_q's, W_k's, W_v's or their adapter's."""
    # What `autolr.model.fused` trains on the rows of one role: c_attn.lora_A.default.q
    if len(parts) > 3 and parts[-3] in ("lora_A", "lora_B") and parts[-1] in ("q", "k", "v"):
        return len(parts) - 4, parts[-1]  # type: ignore[return-value]
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
    rates = recipe.rates.trained()
    groups = grouped(model, rates, weight_decay=recipe.training.weight_decay, needed=list(recipe.candidate.targets))  # type: ignore[arg-type]
    return torch.optim.AdamW(groups, betas=recipe.training.betas, eps=recipe.training.eps)
