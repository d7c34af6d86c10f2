"""LoRA on some rows of a fused projection, in stock PEFT's form.

One rank-r adapter for each of c roles is one adapter of rank c r and alpha c times as large, with
A = [A_q; A_v] and B zero but for B_q on the q rows and the first r columns and B_v on the v rows
and the last r columns. Rows of no role, such as W_k's, get exactly zero.

While training, each role's tensors are parameters of their own, so that they can learn at rates
of their own; saved, loaded and merged, they are one `lora_A.weight` and one `lora_B.weight`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from autolr.model.families import Rows
from autolr.model.full_matrices import InParts
from autolr.model.projections import Site


def stack(sites: Sequence[Site], tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Write the adapters of several sites of one fused module as one.

    Args:
        sites: on rows of the same module.
        tensors: `<site>.lora_A` [slots, rank, d_in] and `<site>.lora_B` [slots, d_out, rank] of each.

    Returns:
        A [slots, sites * rank, d_in] and B [slots, total, sites * rank].
    """
    a = torch.cat([tensors[f"{site.name}.lora_A"] for site in sites], dim=-2)
    return a, _stack_b([site.rows for site in sites if site.rows], [tensors[f"{s.name}.lora_B"] for s in sites])


def _stack_b(rows: Sequence[Rows], parts: Sequence[Tensor]) -> Tensor:
    """Write B of several roles as one: [..., total, roles * rank] from [..., rows of the role, rank]."""
    first, rank = parts[0], parts[0].shape[-1]
    whole = first.new_zeros(*first.shape[:-2], rows[0].total, len(parts) * rank)
    for number, (own, part) in enumerate(zip(rows, parts, strict=True)):
        columns = slice(number * rank, (number + 1) * rank)
        own.of(whole)[..., columns] = part.unflatten(-2, (own.groups, -1))  # type: ignore[no-untyped-call]
    return whole


class _Stacked(InParts):
    """A parameter for each role."""

    def __init__(self, sites: Sequence[Site], shapes: Sequence[tuple[int, int]], like: Tensor) -> None:
        super().__init__()
        self.roles = [site.role for site in sites]
        self.rows = [site.rows for site in sites if site.rows]
        for role, shape in zip(self.roles, shapes, strict=True):
            self.register_parameter(role, nn.Parameter(like.new_zeros(shape)))

    @property
    def parts(self) -> list[Tensor]:
        return [self.get_parameter(role) for role in self.roles]

    def split(self, weight: Tensor) -> list[Tensor]:
        """Return the parts of a weight, one for each role."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight)

    def fill(self, weight: Tensor) -> None:
        for own, value in zip(self.parts, self.split(weight), strict=True):
            own.copy_(value)


class _StackedA(_Stacked):
    """A = [A_q; A_v], [roles * rank, d_in]."""

    @property
    def weight(self) -> Tensor:
        return torch.cat(self.parts)

    def split(self, weight: Tensor) -> list[Tensor]:
        return list(weight.chunk(len(self.roles)))


class _StackedB(_Stacked):
    """B in blocks, [total, roles * rank]."""

    @property
    def weight(self) -> Tensor:
        return _stack_b(self.rows, self.parts)

    def split(self, weight: Tensor) -> list[Tensor]:
        columns = weight.chunk(len(self.roles), dim=1)
        return [own.of(part).flatten(0, 1) for own, part in zip(self.rows, columns, strict=True)]


def split(layer: Any, sites: Sequence[Site], rank: int, adapter: str = "default") -> None:
    """Replace A and B of a stock PEFT LoRA layer on a fused module by parameters for each role, all zero.

    Args:
        layer: the PEFT layer, its adapter of rank `len(sites) * rank`.
        sites: those of the module that are trained.
        rank: of each role.
        adapter: the adapter's name.
    """
    like = layer.lora_A[adapter].weight.detach()
    layer.lora_A[adapter] = _StackedA(sites, [(rank, site.d_in) for site in sites], like)
    layer.lora_B[adapter] = _StackedB(sites, [(site.d_out, rank) for site in sites], like)
