"""Paper 1's Theorem 2 as a diagnosis: what one step of W_q, and one of W_v, changes in the real model.

The change of a layer's attention output f in one step falls into three terms: δ_q, that of W_q's update alone, δ_v,
that of W_v's alone, and δ_qv, what both do only together. Learning is efficient where none of them vanishes beside
the others; since each is in proportion to its rate, the ratio that would make δ_v as large as δ_q is λ δ_q / δ_v.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from autolr.data.batches import TokenSet, batch_order
from autolr.data.tasks import Task
from autolr.finetune.param_groups import grouped
from autolr.insight.activations import output_sites
from autolr.model import adapters
from autolr.model.backbone import Backbone
from autolr.model.projections import Site
from autolr.model.sparse_logits import forward
from autolr.pack.optimizers import row_optimizer
from autolr.schema.candidate import Candidate
from autolr.schema.space import Role
from autolr.schema.training import Training

# Steps that are looked at, and examples that outputs are compared on.
LOOKED_AT_STEPS = (1, 2, 4, 8, 16, 32)
PROBED_EXAMPLES = 32


class Step(NamedTuple):
    """One optimizer step. Sizes are root mean squares, by that of the output itself.

    Attributes:
        step: 1 is the first.
        loss: it was taken on.
        layers_q, layers_v, layers_both: δ_q, δ_v and δ_qv of each layer's attention output. W_q and W_v of all layers
            move at once, so that a layer's output also changes by what reaches it from below.
        logits_q, logits_v, logits_both: of the model's output.
        updates: for each role |ΔW| / |W| (Frobenius), the mean over layers, ΔW this step's change of the adapter.
        grown: the same of all that was learned so far.
    """

    step: int
    loss: float
    layers_q: list[float]
    layers_v: list[float]
    layers_both: list[float]
    logits_q: float
    logits_v: float
    logits_both: float
    updates: dict[str, float]
    grown: dict[str, float]

    def balance(self, ratio: float) -> float:
        """Return the λ at which W_q and W_v would change the attention's output alike, layers being averaged.

        Args:
            ratio: the λ that the step was taken with.
        """
        changes = [q / v for q, v in zip(self.layers_q, self.layers_v, strict=True) if v > 0]
        return ratio * float(torch.tensor(changes).log().mean().exp()) if changes else ratio


def measure(
    backbone: Backbone,
    task: Task,
    data: TokenSet,
    training: Training,
    candidate: Candidate,
    *,
    lr_head: float,
    alpha: float = 16.0,
    at: Sequence[int] = LOOKED_AT_STEPS,
    seed: int = 0,
) -> list[Step]:
    """Train a candidate for its first steps and look into some of them.

    The base model is as it was afterwards.

    Args:
        backbone: the frozen base.
        task: gives the losses.
        data: *train*, of which the first steps' batches are taken; the last examples of their order are compared on.
        training: batch size and optimizer settings; the rates stay as they are.
        candidate: trains W_q and W_v.
        lr_head: rate of the head.
        alpha: LoRA's alpha.
        at: steps that are looked into.
        seed: of adapter, head and data order.
    """
    last = max(at)
    order = batch_order(data.lengths(), training.batch_size, last + 1, seed)
    rows = [row for one in order[last:] for row in one][:PROBED_EXAMPLES]
    device = next(backbone.model.parameters()).device
    # W as it is before PEFT wraps it.
    weights = {site: adapters.frozen(backbone, site).double() for site in backbone.projections.of(candidate.targets)}
    rates: dict[Role, float] = {role: rate for role, rate in candidate.rates(lr_head).items() if rate > 0}
    probe = {key: value.to(device) for key, value in data.collate(rows).items()}
    steps = []
    with adapters.adapted(backbone, candidate.targets, candidate.rank, alpha, seed, candidate.kind) as model:
        optimizer = row_optimizer().alone(grouped(model, rates), training)
        trained = [p for p in model.parameters() if p.requires_grad]
        for step in range(1, last + 1):
            batch = {key: value.to(device) for key, value in data.collate(order[step - 1]).items()}
            loss = task.batch_losses(forward(model, batch), batch["labels"])[0]
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(trained, training.max_grad_norm or float("inf"))
            before = _values(model)
            optimizer.step()
            if step in at:
                after = _values(model)
                looked = _look(
                    backbone, model, candidate, alpha, weights, probe, before, after, step, float(loss.detach())
                )
                steps.append(looked)
                adapters.set_values(model, after)
    return steps


def _look(
    backbone: Backbone,
    model: Any,
    candidate: Candidate,
    alpha: float,
    weights: Mapping[Site, Tensor],
    probe: dict[str, Tensor],
    before: dict[str, Tensor],
    after: dict[str, Tensor],
    step: int,
    loss: float,
) -> Step:
    names = {
        role: [name for site in weights if site.role == role for name in _names(site, candidate)]
        for role in ("q", "v")
    }

    def outputs(*moved: str) -> list[Tensor]:
        now = {name: after[name] for role in moved for name in names[role]}
        adapters.set_values(model, {**before, **now})
        return _outputs(backbone, model, probe)

    still, q, v, both = outputs(), outputs("q"), outputs("v"), outputs("q", "v")
    sizes = [float(one.square().mean().sqrt()) for one in still]

    def change(parts: Iterator[Tensor]) -> list[float]:
        return [float(part.square().mean().sqrt()) / size for part, size in zip(parts, sizes, strict=True)]

    of_q = change(a - s for a, s in zip(q, still, strict=True))
    of_v = change(a - s for a, s in zip(v, still, strict=True))
    together = change(b - x - y + s for b, x, y, s in zip(both, q, v, still, strict=True))
    *layers_q, logits_q = of_q  # `outputs` puts the logits last
    *layers_v, logits_v = of_v
    *layers_both, logits_both = together
    updates, grown = (_sizes(weights, candidate, alpha, values, after) for values in (before, None))
    return Step(
        step, loss, layers_q, layers_v, layers_both, logits_q, logits_v, logits_both, updates=updates, grown=grown
    )


@torch.no_grad()
def _outputs(backbone: Backbone, model: Any, batch: dict[str, Tensor]) -> list[Tensor]:
    """Return each layer's attention output at real tokens, and at the end the logits, in float64."""
    real = batch["attention_mask"].bool()
    with _seen(backbone, model) as outputs:
        logits = forward(model, batch)
    return [*(one[real].double() for one in outputs), logits.double()]


@contextmanager
def _seen(backbone: Backbone, model: Any) -> Iterator[list[Tensor]]:
    found: list[Tensor] = []

    def read(_module: Any, args: tuple[Tensor, ...]) -> None:
        found.append(args[0])

    modules = [model.get_submodule(f"base_model.model.{site.module}") for site in output_sites(backbone)]
    handles = [module.register_forward_pre_hook(read) for module in modules]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _sizes(
    weights: Mapping[Site, Tensor],
    candidate: Candidate,
    alpha: float,
    before: dict[str, Tensor] | None,
    after: dict[str, Tensor],
) -> dict[str, float]:
    """Return the size of what an update, or all of them, has added to W, by that of W: the mean of each role."""
    found: dict[str, list[float]] = {}
    scale = adapters.scaling(candidate.kind, alpha, candidate.rank)
    for site, w in weights.items():

        def added(values: dict[str, Tensor], site: Site = site, w: Tensor = w) -> Tensor:
            if candidate.kind == "full":
                return values[f"{site.name}.weight"].double() - w
            return scale * values[f"{site.name}.lora_B"].double() @ values[f"{site.name}.lora_A"].double()

        change = added(after) - (added(before) if before is not None else 0.0)
        found.setdefault(site.role, []).append(float(change.norm() / w.norm()))
    return {role: sum(ratios) / len(ratios) for role, ratios in found.items()}


def _names(site: Site, candidate: Candidate) -> Sequence[str]:
    return list(adapters.shapes(site, candidate.rank, candidate.kind))


def _values(model: Any) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in adapters.values_of(model).items()}
