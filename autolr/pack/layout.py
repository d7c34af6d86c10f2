"""All that a pack trains, as one matrix: a slot is a row.

Adapters and heads of all slots lie in a buffer [slots, parameters]. A column range belongs to
one tensor of one role, so the optimizer works on few large blocks, a slot is reset by writing
one row, and a row can be averaged, copied or saved by itself.

Ranks differ between slots: every adapter has room for the largest, and rows of A and columns of
B beyond a slot's rank are zero. They stay zero under AdamW by themselves, because the gradient
of each is a product with the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal, get_args

import torch
from torch import Tensor

from autolr.model.adapters import shapes
from autolr.model.backbone import Backbone
from autolr.schema.space import MethodKind, Role

ROLES: tuple[Role, ...] = get_args(Role)
# LoRA+ gives every B a rate of its own; all else of a role learns at that of A.
Side = Literal["A", "B"]
Block = tuple[Role, Side]


@dataclass(frozen=True)
class Segment:
    """The columns of one tensor: `start` to `start + prod(shape)`, for one slot of shape `shape`."""

    name: str
    role: Role
    start: int
    shape: tuple[int, ...]

    @property
    def end(self) -> int:
        """First column after the segment."""
        return self.start + prod(self.shape)


class Layout:
    """Which columns hold which tensor. Segments of a block, which learns at one rate, are neighbours.

    Args:
        backbone: the base whose sites and head are laid out.
        max_rank: the largest rank of any slot.
        roles: the roles any slot may train; the others get no columns.
        kinds: the methods of any slot.
    """

    def __init__(
        self, backbone: Backbone, max_rank: int, roles: tuple[Role, ...], kinds: Sequence[MethodKind] = ("lora",)
    ) -> None:
        self.max_rank = max_rank
        self.segments: dict[str, Segment] = {}
        self.blocks: dict[Block, slice] = {}
        at = 0
        for role in ROLES:
            tensors: dict[str, tuple[int, ...]] = {}
            if role == "head":
                tensors = {name: tuple(p.shape) for name, p in backbone.head_parameters().items()}
            elif role in roles:
                for site in (site for site in backbone.projections.sites if site.role == role):
                    for kind in kinds:
                        tensors |= shapes(site, max_rank, kind)
            sides: tuple[Side, Side] = ("A", "B")
            for side in sides:
                start = at
                for name, shape in tensors.items():
                    if name.endswith(".lora_B") == (side == "B"):
                        self.segments[name] = Segment(name, role, at, shape)
                        at += prod(shape)
                if at > start:
                    self.blocks[role, side] = slice(start, at)
        self.columns = at

    def write(self, row: Tensor, values: Mapping[str, Tensor]) -> None:
        """Set `row`, [columns], to `values`; what they do not name or fill becomes zero.

        Values of the machine's memory go to a GPU in one copy, which is not waited for.
        """
        host = torch.zeros(row.shape, dtype=row.dtype)
        for name, value in values.items():
            if value.device.type == "cpu":
                self.fill(host, name, value)
        row.copy_(host.pin_memory() if row.device.type == "cuda" else host, non_blocking=True)
        for name, value in values.items():
            if value.device.type != "cpu":
                self.fill(row, name, value)

    def fill(self, row: Tensor, name: str, value: Tensor) -> None:
        """Set one tensor of `row`; all else stays."""
        part = self._part(row, name, tuple(value.shape))
        if part.shape != value.shape:
            raise RuntimeError(f"{name} is {list(value.shape)}, which is more than {list(part.shape)}")
        part.copy_(value)

    def read(self, row: Tensor, tensors: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
        """Return copies of the tensors of `row` that a slot owns, of these shapes."""
        return {name: self._part(row, name, shape).detach().clone() for name, shape in tensors.items()}

    def _part(self, row: Tensor, name: str, shape: tuple[int, ...]) -> Tensor:
        segment = self.segments[name]
        whole = row[segment.start : segment.end].view(segment.shape)
        return whole[tuple(slice(0, size) for size in shape)]

    def view(self, rows: Tensor, name: str) -> Tensor:
        """Return one tensor of all `rows` [slots, columns] as [slots, *shape], sharing storage."""
        segment = self.segments[name]
        part: Tensor = rows[:, segment.start : segment.end]
        return part.unflatten(1, segment.shape)  # type: ignore[no-untyped-call, no-any-return]

    def narrow(self, tensors: Mapping[str, Tensor], slots: slice, rank: int) -> dict[str, Tensor]:
        """Return the adapters' tensors, [slots, *shape], of some slots whose ranks are no larger than `rank`."""
        count = slots.stop - slots.start
        own = {name: tensor for name, tensor in tensors.items() if self.segments[name].role != "head"}
        some = {name: tensor if len(tensor) == count else tensor[slots] for name, tensor in own.items()}
        if rank == self.max_rank:
            return some
        for name, tensor in some.items():
            if name.endswith(".lora_A"):
                some[name] = tensor[:, :rank]
            elif name.endswith(".lora_B"):
                some[name] = tensor[..., :rank]
        return some
