"""Parameter groups by role, for anyone's training loop: each trainable parameter once, at the rate of its role."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from autolr.finetune.roles import layer_stacks, role_of
from autolr.model import families
from autolr.pack.optimizers import row_optimizer
from autolr.schema.recipe import Rates, Recipe
from autolr.schema.space import Role, roles_of

# Modules that hold W_q, W_k and W_v in one tensor.
_FUSED = frozenset(families.CHILDREN.values())
# What follows a role's name where its biases and norms are a group without weight decay.
UNDECAYED = "_undecayed"
# A recipe, its rates, or the keyword arguments of `parameter_groups`.
RatesLike = Recipe | Rates | Mapping[str, float]


def parameter_groups(
    model: nn.Module,
    *,
    lr_q: float,
    ratio: float,
    lr_head: float | None = None,
    lr_k: float | None = None,
    lr_o: float | None = None,
    lr_mlp: float | None = None,
    loraplus_lr_ratio: float = 1.0,
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
        loraplus_lr_ratio: LoRA+'s ρ = lr_B / lr_A: every adapter's B learns this many times as fast as its A.
        max_lr_b: ratios multiply; no B learns faster than this, whatever λ and ρ say. None: no limit.
        weight_decay: of all groups.

    Returns:
        Groups with `params`, `lr`, `weight_decay` and `name` (the role; `q_B` and so on for what learns at a B's own
        rate); empty ones are left out.
        MergedState they hold every trainable parameter exactly once.

    Raises:
        ValueError: a rate is not positive and finite, W_q or W_v is not trained, something is
            trained that has no role, or one tensor is shared by two roles.
    """
    if not all(math.isfinite(value) and value > 0 for value in (lr_q, ratio, loraplus_lr_ratio)):
        raise ValueError(
            "lr_q, ratio and loraplus_lr_ratio must be positive, finite numbers: "
            f"{lr_q}, {ratio}, {loraplus_lr_ratio}"
        )
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
    if loraplus_lr_ratio != 1:
        rates_b = {role: min(rate * loraplus_lr_ratio, most) for role, rate in rates.items() if role != "head"}
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
    stacks = layer_stacks(name for name, _ in named)
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
    if strangers:
        raise ValueError(_about(strangers, rates))
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


def _about(strangers: Sequence[str], rates: Mapping[Role, float]) -> str:
    """Return what is wrong with parameters that are trained and have no rate, and what to do."""
    fused = [name for name in strangers if ".lora_" in name and not _FUSED.isdisjoint(name.split("."))]
    if fused:
        return (
            f"{fused[0]}: one tensor for W_q, W_k and W_v, which cannot learn at rates of their own; let "
            "autolr.model.adapters.peft_model put on the adapter: it trains the same in parts, and saves a stock one"
        )
    shown = ", ".join(strangers[:3]) + (", ..." if len(strangers) > 3 else "")
    return (
        f"{len(strangers)} trainable parameters are none of {', '.join(rates)}: {shown}; freeze them, give "
        "the adapter other targets (a recipe's: autolr.lora_config(recipe)), or give them a rate, such as lr_mlp"
    )


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


def groups_at(model: nn.Module, rates: RatesLike) -> list[dict[str, Any]]:
    """Sort a model's trainable parameters into groups at the rates of a recipe, of its `rates`, or of arguments.

    Raises:
        ValueError: as `parameter_groups` and `recipe_groups`.
    """
    if isinstance(rates, Recipe):
        return recipe_groups(model, rates)
    if isinstance(rates, Rates):
        return grouped(model, rates.trained(), rates.b)
    return parameter_groups(model, **{name: value for name, value in rates.items() if name != "weight_decay"})


def split_by_decay(
    model: nn.Module, groups: Sequence[dict[str, Any]], weight_decay: float, decayed: Collection[str]
) -> list[dict[str, Any]]:
    """Return groups in which only parameters named in `decayed` decay, as in a Trainer; others are groups apart."""
    names = set(decayed)
    decays = {id(parameter) for name, parameter in model.named_parameters() if name in names}
    split = []
    for group in groups:
        for does, suffix in ((True, ""), (False, UNDECAYED)):
            params = [p for p in group["params"] if (not weight_decay or id(p) in decays) == does]
            if params:
                decay = weight_decay if does else 0.0
                split.append({**group, "params": params, "weight_decay": decay, "name": group["name"] + suffix})
    return split


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
