"""What a choice of matrices costs, and how paper 1's Theorem 1 ranks it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from autolr.model import adapters
from autolr.model.backbone import Backbone
from autolr.model.projections import by_module
from autolr.pack.optimizers import row_optimizer
from autolr.schema.space import MethodKind, Targets

# Of Theorem 1, where the loss lies in [0, 1]: it is 1/2-sub-Gaussian.
SUB_GAUSSIAN = 0.5
BITS_PER_PARAMETER = 16
# Adapters are saved in float32.
SAVED_BYTES = 4


@dataclass(frozen=True)
class Cost:
    """What a choice costs.

    Attributes:
        adapter: parameters of adapters or matrices that get a gradient, each counted once; without the head.
        head: parameters of the new output layer.
        saved_bytes: of the saved adapter's tensors in float32, which hold zeros where roles share a matrix.
        optimizer_bytes: weights, gradients and optimizer state, adapter and head.
        gap: Theorem 1's bound on the generalization gap; vacuous in itself, good for ratios alone.
    """

    targets: Targets
    kind: MethodKind
    rank: int
    adapter: int
    head: int
    saved_bytes: int
    optimizer_bytes: int
    gap: float


def gap(parameters: int, examples: int, bits: int = BITS_PER_PARAMETER, sub_gaussian: float = SUB_GAUSSIAN) -> float:
    """Return the bound on the generalization gap: sqrt(2 R² q P / N) (Theorem 1, in its general form).

    With LoRA of one rank on W_q and W_v this is the paper's sqrt(4 R²/N q r Σ(d_in + d_out)), with W_k as well its
    sqrt(6 R²/N ...). Its value is vacuous, far above any loss, and it always favours fewer parameters: rank with it,
    and do not promise with it.

    Args:
        parameters: trained, the head not counted.
        examples: N, that are trained on.
        bits: q, of a parameter.
        sub_gaussian: R, of the loss.
    """
    return math.sqrt(2 * sub_gaussian**2 * bits * parameters / examples)


def cost(backbone: Backbone, targets: Targets, rank: int, kind: MethodKind, examples: int) -> Cost:
    """Return what a choice costs on a model; grouped queries count as they are.

    Raises:
        ModelError: the model has no such matrices.
    """
    rank = 0 if kind == "full" else rank
    count = adapters.parameters(backbone, targets, rank, kind)
    return Cost(
        targets,
        kind,
        rank,
        count["adapter"],
        count["head"],
        SAVED_BYTES * (_saved(backbone, targets, rank, kind) + count["head"]),
        row_optimizer().bytes_per_parameter() * sum(count.values()),
        gap(count["adapter"], examples),
    )


def ratios(costs: Sequence[Cost]) -> list[float]:
    """Return each bound by the first one."""
    return [one.gap / costs[0].gap for one in costs]


def _saved(backbone: Backbone, targets: Targets, rank: int, kind: MethodKind) -> int:
    """Count what PEFT saves for the matrices: see `autolr.model.fused_peft` and `autolr.model.full_matrices`."""
    total = 0
    for name, sites in by_module(backbone.projections.of(targets)).items():
        rows = sites[0].rows.total if sites[0].rows else sites[0].d_out
        if kind == "full":
            total += sum(p.numel() for p in backbone.model.get_submodule(name).parameters())
        else:
            total += len(sites) * rank * (sites[0].d_in + rows) + (rows if kind == "dora" else 0)
    return total
