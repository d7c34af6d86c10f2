"""Parameter groups by role, for anyone's training loop."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from autolr.model import layouts
from autolr.model.projections import NAMES
from autolr.pack.optimizers import row_optimizer
from autolr.recipe import Recipe
from autolr.study import Role, roles_of

_FUSED = frozenset(layouts.CHILDREN.values())
# Where PEFT keeps a matrix that trains whole, and what else lies inside one of its layers.
WHOLE = "ln_tuning_layers"
_LAYERS = ("base_layer", WHOLE)
_ROLE_OF: dict[str, Role] = {name: role for names in NAMES for role, name in names.items()}  # type: ignore[misc]


def parameter_groups(
    model: nn.Module,
    *,
    lr_q: float,
    ratio: float,
    lr_head: float | None = None,
    lr_k: float | None = None,
    lr_o: float | None = None,
    lr_mlp: float | None = None,
    rho: float = 1.0,
    max_lr_b: float | None = None,
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
        lr_mlp: rate of the matrices of the MLPs where they are trained; None: that of W_v.
        rho: LoRA+'s ρ = lr_B / lr_A: every adapter's B learns this many times as fast as its A.
        max_lr_b: ratios multiply; no B learns faster than this, whatever λ and ρ say. None: no limit.
        weight_decay: of all groups.

    Returns:
        Groups with `params`, `lr`, `weight_decay` and `name` (the role; `q_B` and so on for what learns at a B's own
        rate); empty ones are left out.
        Together they hold every trainable parameter exactly once.

    Raises:
        ValueError: a rate is not positive and finite, W_q or W_v is not trained, something is
            trained that has no role, or one tensor is shared by two roles.
    """
    if not all(math.isfinite(value) and value > 0 for value in (lr_q, ratio, rho)):
        raise ValueError(f"lr_q, ratio and rho must be positive, finite numbers: {lr_q}, {ratio}, {rho}")
    rates: dict[Role, float] = {
        "q": lr_q,
        "k": lr_q if lr_k is None else lr_k,
        "v": lr_q * ratio,
        "o": lr_q * ratio if lr_o is None else lr_o,
        "mlp": lr_q * ratio if lr_mlp is None else lr_mlp,
        "head": lr_q if lr_head is None else lr_head,
    }
    most = math.inf if max_lr_b is None else max_lr_b
    rates_b: dict[Role, float] = {}
    if rho != 1:
        rates_b = {role: min(rate * rho, most) for role, rate in rates.items() if role != "head"}
    return grouped(model, rates, rates_b, weight_decay=weight_decay, needed=("q", "v"))


def grouped(
    model: nn.Module,
    rates: Mapping[Role, float],
    rates_b: Mapping[Role, float] | None = None,
    *,
    weight_decay: float = 0.0,
    needed: Collection[Role] = (),
) -> list[dict[str, Any]]:
    """Sort a model's trainable parameters into groups, as `parameter_groups` does, at any rates.

    Args:
        model: the model.
        rates: of the roles that may be trained.
        rates_b: of the B of roles whose adapters have one at a rate of its own.
        weight_decay: of all groups.
        needed: roles that must be trained.

    Raises:
        ValueError: as `parameter_groups`; and where a role is trained that has no rate.
    """
    rates_b = rates_b or {}
    for role, value in (*rates.items(), *rates_b.items()):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"the rate of {role} must be a positive, finite number: {value}")
    # Every name of a shared tensor counts: each must say the same role.
    named = list(model.named_parameters(remove_duplicate=False))
    stacks = _layer_stacks(name for name, _ in named)
    # A role, and whether it is its B at a rate of its own.
    members: dict[tuple[Role, bool], list[nn.Parameter]] = {
        (role, is_b): [] for role in rates for is_b in (False, True)
    }
    seen: dict[int, tuple[str, str]] = {}
    strangers = []
    for name, parameter in named:
        if not parameter.requires_grad:
            continue
        own = role_of(name, stacks)
        if own is None or own not in rates:
            strangers.append(name)
        elif id(parameter) not in seen:
            seen[id(parameter)] = own, name
            members[own, own in rates_b and "lora_B" in name.split(".")].append(parameter)
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
            f"{len(strangers)} trainable parameters are none of {', '.join(rates)}: {shown}; freeze them, give "
            "the adapter other targets (a recipe's: autolr.lora_config(recipe)), or give them a rate, such as lr_mlp"
        )
    for wanted in needed:
        if not (members.get((wanted, False)) or members.get((wanted, True))):
            raise ValueError(f"no W_{wanted} is trained; give the adapter targets such as q_proj and v_proj")
    held = [id(p) for params in members.values() for p in params]
    if sorted(held) != sorted(id(p) for p in model.parameters() if p.requires_grad):
        raise ValueError("the groups do not hold every trainable parameter exactly once")
    return [
        {
            "params": params,
            "lr": rates_b[role] if is_b else rates[role],
            "weight_decay": weight_decay,
            "name": f"{role}_B" if is_b else role,
        }
        for (role, is_b), params in members.items()
        if params
    ]


def role_of(name: str, stacks: Collection[str] = ()) -> Role | None:
    """Return the role of a parameter by its full name; None where it has none.

    W_q, W_k, W_v, W_o and the matrices of the MLPs themselves, and what LoRA adds to them, have their own roles.
    Whatever PEFT keeps as `modules_to_save`, and whatever is no adapter and lies outside the model's layers and
    input embeddings, is the head.

    Args:
        name: such as `base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.default.weight`.
        stacks: where the model keeps its layers, such as `base_model.model.bert.encoder.layer.`.
    """
    parts = name.split(".")
    matrix = _matrix(parts)
    if matrix is not None:
        return matrix[1]
    module = _module(parts)
    if layouts.is_output(module):
        return "o"
    if layouts.is_mlp(module):
        return "mlp"
    is_adapter = any(part.startswith("lora_") for part in parts)
    if "modules_to_save" in parts or (not is_adapter and not name.startswith(tuple(stacks))):
        return "head" if "embeddings" not in parts and "embed_tokens" not in parts else None
    return None


def _module(parts: list[str]) -> str:
    """Return the name of the module that a parameter, or its adapter, belongs to."""
    end = next((i for i, part in enumerate(parts) if part.startswith("lora_") or part in _LAYERS), None)
    return ".".join(parts[: len(parts) - 1 if end is None else end])


def _matrix(parts: list[str]) -> tuple[int, Role] | None:
    """Return which part names the module, and the role, if a parameter is W_q's, W_k's, W_v's or their adapter's."""
    # What `autolr.model.fused` and `whole` train on the rows of one role: c_attn.lora_A.default.q
    if len(parts) > 3 and parts[-3] in ("lora_A", "lora_B", WHOLE) and parts[-1] in ("q", "k", "v"):
        return len(parts) - 4, parts[-1]  # type: ignore[return-value]
    for index, part in enumerate(parts):
        if part not in _ROLE_OF:
            continue
        rest = parts[index + 1 :]
        if rest[:1] in (["modules_to_save"], [WHOLE]):
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


def recipe_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Sort a model's trainable parameters into groups, as `parameter_groups` does, at a recipe's rates.

    Raises:
        ValueError: as `parameter_groups`; or a matrix of the recipe is not trained.
    """
    targets = recipe.candidate.targets
    # Not every model has all there is in all-linear.
    needed: tuple[Role, ...] = ("q", "v") if targets == "all-linear" else roles_of(targets)
    decay = recipe.training.weight_decay
    return grouped(model, recipe.rates.trained(), recipe.rates.b, weight_decay=decay, needed=needed)


def create_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Return AdamW with a recipe's rates, betas, eps and weight decay.

    It goes wherever an optimizer goes: a loop of one's own, `Trainer(optimizers=(optimizer, None))`, or
    `configure_optimizers` of a LightningModule.

    Args:
        model: trains what the recipe does: an adapter on its matrices, and its head where it has one.
        recipe: gives the rates.

    Raises:
        ValueError: see `recipe_groups`.
    """
    groups, training = recipe_groups(model, recipe), recipe.training
    return row_optimizer().alone(groups, training)
