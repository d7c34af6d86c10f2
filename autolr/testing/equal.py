"""Does a packed slot learn what the same adapter learns alone?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from autolr.model import adapters
from autolr.model.backbone import Backbone, fresh_head
from autolr.model.labelled import forward
from autolr.model.projections import Site
from autolr.pack.optimizer import schedule_factor
from autolr.pack.pack import Pack, SlotConfig
from autolr.pack.rows import ROLES
from autolr.study import Targets
from autolr.testing.bench import ALPHA, STEPS, Bench, ProblemError
from autolr.train.optimizer import grouped


def packed_equals_alone(bench: Bench) -> str:
    """Train three slots in a pack, and each again alone: PEFT's layers, torch's AdamW."""
    bench.frozen = bench.base.fingerprint()
    configs = [config for _, config in bench.slots]
    largest = max(config.rank for config in configs)
    options: dict[str, Any] = {"capacity": len(configs), "max_rank": largest, "alpha": ALPHA, "roles": ROLES}
    with Pack(bench.base, bench.training, bench.task, bench.data, together=2, **options) as pack:
        slots = [pack.admit(config) for config in configs]
        for _ in range(STEPS):
            pack.step()
        pack.flush()
        bench.packed = [(pack.values(slot), slot.losses, slot.order) for slot in slots]
    worst = 0.0
    for (targets, config), (values, losses, order) in zip(bench.slots, bench.packed, strict=True):
        with adapted(bench.base, targets, config) as model:
            alone_losses = _train(bench, model, config, order)
            alone = {name: value.detach().clone() for name, value in adapters.values_of(model).items()}
        if values.keys() != alone.keys():
            raise ProblemError(f"other tensors are trained alone: {sorted(values.keys() ^ alone.keys())[:4]}")
        worst = max(worst, _distance(values, alone), _distance_of(losses, alone_losses))
    if not worst <= bench.tolerance:
        raise ProblemError(
            f"slots differ from runs alone by {worst:.1e} of their norm (allowed: {bench.tolerance:g})"
        )
    return f"{len(configs)} slots, {STEPS} steps, relative distance {worst:.1e}"


@contextmanager
def adapted(base: Backbone, targets: Targets, config: SlotConfig) -> Iterator[Any]:
    """Put an adapter on the base as the full run does, and take it off again."""
    head = {name: p.detach().clone() for name, p in base.head_parameters().items()}
    model = adapters.peft_model(base, targets, config.rank, ALPHA, config.seed)
    for parameter in model.parameters():
        if parameter.requires_grad and base.model.dtype == torch.float64:
            parameter.data = parameter.data.double()
    try:
        yield model
    finally:
        base.model = model.unload().eval().requires_grad_(False)
        with torch.no_grad():
            for name, parameter in base.head_parameters().items():
                parameter.copy_(head[name])


def _train(bench: Bench, model: Any, config: SlotConfig, order: list[list[int]]) -> list[float]:
    rates = {role: rate for role, rate in config.rates.items() if rate > 0}
    groups = grouped(model, rates, weight_decay=bench.training.weight_decay)
    trained = [p for p in model.parameters() if p.requires_grad]
    return _steps(bench, model, groups, trained, order)


def _steps(
    bench: Bench, model: Any, groups: list[dict[str, Any]], trained: list[Any], order: list[list[int]]
) -> list[float]:
    optimizer = torch.optim.AdamW(groups, betas=bench.training.betas, eps=bench.training.eps)
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
        torch.nn.utils.clip_grad_norm_(trained, bench.training.clip_norm or float("inf"))
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    return losses


def split_by_hand(bench: Bench) -> str:
    """Train the first slot of a fused model without PEFT: W's rows are looked up one by one."""
    targets, config = bench.slots[0]
    sites = bench.base.projections.of(targets)
    if not any(site.rows for site in sites):
        return "no fused projections"
    values, losses, order = bench.packed[0]
    modules = dict(bench.base.model.named_modules())
    head = bench.base.head_parameters()
    kept = {name: p.detach().clone() for name, p in head.items()}
    with torch.no_grad():
        for name, value in fresh_head(bench.base, config.seed).items():
            head[name].copy_(value)
    own: dict[str, Tensor] = {}
    handles = []

    def hook_of(site: Site, a: Tensor, b: Tensor) -> Callable[..., Tensor]:
        assert site.rows
        index = torch.tensor(site.rows.index(), device=a.device)

        def hook(_module: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            term = functional.linear(functional.linear(args[0], a), b) * (ALPHA / config.rank)
            return output.index_add(-1, index, term)

        return hook

    for site in sites:
        like = next(bench.base.model.parameters())
        a = adapters.initial_a(site, config.rank, config.seed).to(like).requires_grad_()
        b = a.new_zeros(site.d_out, config.rank).requires_grad_()
        own |= {f"{site.name}.lora_A": a, f"{site.name}.lora_B": b}
        handles.append(modules[site.module].register_forward_hook(hook_of(site, a, b)))
    role = {f"{site.name}.lora_{side}": site.role for site in sites for side in "AB"}
    try:
        for parameter in head.values():
            parameter.requires_grad_()
        own |= head
        groups = [
            {"params": [t], "lr": config.rates[role.get(name, "head")], "weight_decay": bench.training.weight_decay}
            for name, t in own.items()
        ]
        by_hand = _steps(bench, bench.base.model, groups, list(own.values()), order)
        worst = max(_distance(values, {n: t.detach().clone() for n, t in own.items()}), _distance_of(losses, by_hand))
    finally:
        for handle in handles:
            handle.remove()
        with torch.no_grad():
            for name, parameter in head.items():
                parameter.copy_(kept[name]).requires_grad_(False)
                parameter.grad = None
    if not worst <= bench.tolerance:
        raise ProblemError(f"the slot differs from a split by hand by {worst:.1e} of its norm")
    return f"relative distance {worst:.1e}"


def _distance(values: dict[str, Tensor], others: dict[str, Tensor]) -> float:
    return max(
        float(
            torch.linalg.vector_norm(value - others[name]) / torch.linalg.vector_norm(others[name]).clamp_min(1e-30)
        )
        for name, value in values.items()
    )


def _distance_of(losses: list[float], others: list[float]) -> float:
    return max(abs(loss - other) / abs(other) for loss, other in zip(losses, others, strict=True))
