"""Does a packed slot learn what the same adapter learns alone?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from autolr.conformance.bench import ALPHA, STEPS, Bench, ProblemError, Trained
from autolr.finetune.param_groups import grouped
from autolr.model import adapters
from autolr.model.backbone import Backbone, fresh_head
from autolr.model.projections import Site
from autolr.model.sparse_logits import forward
from autolr.pack.layout import ROLES
from autolr.pack.optimizers import row_optimizer
from autolr.pack.pack import Pack
from autolr.pack.schedule import schedule_factor
from autolr.pack.slots import SlotConfig
from autolr.schema.space import Role, Targets


def packed_equals_alone(bench: Bench) -> str:
    """Train slots in packs, and each again alone: PEFT's layers, torch's AdamW."""
    bench.frozen = bench.base.fingerprint()
    # Adapters of all kinds share a pack; whole matrices have one of their own.
    bench.slots.sort(key=lambda slot: slot[1].kind == "full")
    for full in (False, True):
        bench.packed += _pack(bench, [config for _, config in bench.slots if (config.kind == "full") == full])
    worst = 0.0
    for (targets, config), (values, losses, order) in zip(bench.slots, bench.packed, strict=True):
        with adapted(bench.base, targets, config) as model:
            alone_losses = _train(bench, model, config, order)
            alone = {name: value.detach().clone() for name, value in adapters.values_of(model).items()}
        if values.keys() != alone.keys():
            raise ProblemError(f"other tensors are trained alone: {sorted(values.keys() ^ alone.keys())[:4]}")
        distance = max(_distance(values, alone), _distance_of(losses, alone_losses))
        if not distance <= bench.tolerance:
            raise ProblemError(
                f"a slot of kind {config.kind} on {targets} differs from a run alone by {distance:.1e} of its norm "
                f"(allowed: {bench.tolerance:g})"
            )
        worst = max(worst, distance)
    kinds = ", ".join(dict.fromkeys(config.kind for _, config in bench.slots))
    return f"{len(bench.slots)} slots ({kinds}), {STEPS} steps, relative distance {worst:.1e}"


def _pack(bench: Bench, configs: list[SlotConfig]) -> list[Trained]:
    """Return tensors, losses and batches of slots after their training."""
    options: dict[str, Any] = {
        "capacity": len(configs),
        "max_rank": max(config.rank for config in configs),
        "lora_alpha": ALPHA,
        "roles": ROLES,
        "kinds": list(dict.fromkeys(config.kind for config in configs)),
    }
    with Pack(bench.base, bench.training, bench.task, bench.data, together=2, **options) as pack:
        slots = [pack.admit(config) for config in configs]
        for _ in range(STEPS):
            pack.step()
        pack.flush()
        return [(pack.values(slot), slot.losses, slot.order) for slot in slots]


@contextmanager
def adapted(base: Backbone, targets: Targets, config: SlotConfig) -> Iterator[Any]:
    """Put an adapter on the base as the full run does, and take it off again."""
    with adapters.adapted(base, targets, config.rank, ALPHA, config.seed, config.kind) as model:
        for parameter in model.parameters():
            if parameter.requires_grad and base.model.dtype == torch.float64:
                parameter.data = parameter.data.double()
        yield model


def _train(bench: Bench, model: Any, config: SlotConfig, order: list[list[int]]) -> list[float]:
    rates = {role: rate for role, rate in config.rates.items() if rate > 0}
    groups = grouped(model, rates, config.rates_b, weight_decay=bench.training.weight_decay)
    trained = [p for p in model.parameters() if p.requires_grad]
    return _steps(bench, model, groups, trained, order)


def _steps(
    bench: Bench, model: Any, groups: list[dict[str, Any]], trained: list[Any], order: list[list[int]]
) -> list[float]:
    optimizer = row_optimizer().alone(groups, bench.training)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule_factor(bench.training, step, STEPS))
    losses = []
    for rows in order:
        batch = bench.batch(rows)
        if bench.base.head:
            loss = bench.task.batch_losses(forward(model, batch), batch["labels"])[0]
        else:  # transformers' own loss of whole logits, which rounds those of float64 to float32
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trained, bench.training.max_grad_norm or float("inf"))
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    return losses


def split_by_hand(bench: Bench) -> str:
    """Train slots of a fused model without PEFT, an adapter and W itself: W's rows are looked up one by one."""
    if not any(site.rows for site in bench.base.projections.sites):
        return "no fused projections"
    worst = 0.0
    for kind in ("lora", "full"):
        number = bench.first(kind)
        targets, config = bench.slots[number]
        values, losses, order = bench.packed[number]
        others, by_hand = _by_hand(bench, targets, config, order)
        worst = max(worst, _distance(values, others), _distance_of(losses, by_hand))
    if not worst <= bench.tolerance:
        raise ProblemError(f"the slot differs from a split by hand by {worst:.1e} of its norm")
    return f"relative distance {worst:.1e}"


def _by_hand(
    bench: Bench, targets: Targets, config: SlotConfig, order: list[list[int]]
) -> tuple[dict[str, Tensor], list[float]]:
    """Return what hooks on the rows of each site learn, and their losses."""
    modules = dict(bench.base.model.named_modules())
    head = bench.base.head_parameters()
    kept = {name: p.detach().clone() for name, p in head.items()}
    with torch.no_grad():
        for name, value in fresh_head(bench.base, config.seed).items():
            head[name].copy_(value)
    own: dict[str, Tensor] = {}
    role: dict[str, Role] = {}
    handles = []

    def hook_of(site: Site, parts: list[Tensor]) -> Callable[..., Tensor]:
        rows = site.rows.index() if site.rows else list(range(site.d_out))
        index = torch.tensor(rows, device=parts[0].device)

        def hook(module: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if config.kind == "full":
                bias = None if module.bias is None else module.bias[index]
                return output.index_copy(-1, index, functional.linear(args[0], parts[0], bias))
            term = functional.linear(functional.linear(args[0], parts[0]), parts[1]) * (ALPHA / config.rank)
            return output.index_add(-1, index, term)

        return hook

    for site in bench.base.projections.of(targets):
        like = next(bench.base.model.parameters())
        tensors = {
            name: like.new_zeros(shape) for name, shape in adapters.shapes(site, config.rank, config.kind).items()
        }
        first = next(iter(tensors.values()))
        if config.kind == "full":
            first.copy_(adapters.frozen(bench.base, site))
        else:
            first.copy_(adapters.initial_a(site, config.rank, config.seed))
        for name, tensor in tensors.items():
            own[name], role[name] = tensor.requires_grad_(), site.role
        handles.append(modules[site.module].register_forward_hook(hook_of(site, list(tensors.values()))))
    try:
        for parameter in head.values():
            parameter.requires_grad_()
        own |= head
        groups = [
            {"params": [t], "lr": config.rates[role.get(name, "head")], "weight_decay": bench.training.weight_decay}
            for name, t in own.items()
        ]
        by_hand = _steps(bench, bench.base.model, groups, list(own.values()), order)
        return {name: tensor.detach().clone() for name, tensor in own.items()}, by_hand
    finally:
        for handle in handles:
            handle.remove()
        with torch.no_grad():
            for name, parameter in head.items():
                parameter.copy_(kept[name]).requires_grad_(False)
                parameter.grad = None


def _distance(values: dict[str, Tensor], others: dict[str, Tensor]) -> float:
    return max(
        float(
            torch.linalg.vector_norm(value - others[name]) / torch.linalg.vector_norm(others[name]).clamp_min(1e-30)
        )
        for name, value in values.items()
    )


def _distance_of(losses: list[float], others: list[float]) -> float:
    return max(abs(loss - other) / abs(other) for loss, other in zip(losses, others, strict=True))
