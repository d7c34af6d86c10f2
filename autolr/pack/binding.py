"""Which rows the hooks read in a pass: leaves with gradients in training, plain views or copies in scoring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from autolr.pack.hooks import Hooks, Part
from autolr.pack.memory import moved
from autolr.pack.row_block import RowBlock
from autolr.pack.slots import Slot
from autolr.schema.space import MethodKind

# Neighbours are multiplied together, at the largest of their ranks, while that is less than this many times the rank
# of each: fewer products, and little more work.
MAX_RANK_RATIO = 4


@dataclass
class Binding:
    """Points a pack's hooks at rows of its block.

    Attributes:
        hooks: read the tensors.
        block: holds the rows, and gets the gradients of training passes.
    """

    hooks: Hooks
    block: RowBlock
    _leaves: dict[tuple[int, int], dict[str, Tensor]] = field(default_factory=dict)

    def to_train(self, slots: Sequence[Slot], group: slice, *, padded: bool) -> None:
        """Point the hooks at the rows of a group, as leaves whose gradients land in one buffer.

        Gradients are added there: a leaf of several rows has gaps, and torch warns of a gradient with gaps in `grad`.

        Args:
            slots: of the group.
            group: their places.
            padded: multiply all at the largest rank of the pack, so that passes differ in their slots' kinds alone.
        """
        self._point(self.leaves(group), slots, self.block.scales[group], padded=padded)

    def to_score(self, slots: Sequence[Slot], places: Sequence[int], *, averaged: bool) -> None:
        """Point the hooks at the rows of slots at these places, in their order; neighbours are not copied."""
        rows, scales = self.block.averages if averaged else self.block.rows, self.block.scales
        if list(places) == list(range(places[0], places[0] + len(places))):
            rows, scales = rows[places[0] : places[-1] + 1], scales[places[0] : places[-1] + 1]
        else:
            picked = moved(torch.tensor(places), rows.device)
            rows, scales = rows.index_select(0, picked), scales.index_select(0, picked)
        tensors = {name: self.block.layout.view(rows, name) for name in self.block.layout.segments}
        self._point(tensors, slots, scales, padded=False)

    def leaves(self, group: slice) -> dict[str, Tensor]:
        """Return the tensors of a group, [slots, ...], as leaves; the same ones each time until `forget`."""
        key = (group.start, group.stop)
        if key not in self._leaves:
            self._leaves[key] = {}
            for name in self.block.layout.segments:
                leaf = self.block.layout.view(self.block.rows[group], name).detach().requires_grad_()
                land = partial(_land, self.block.layout.view(self.block.gradients[group], name))
                leaf.register_post_accumulate_grad_hook(land)  # type: ignore[no-untyped-call]
                self._leaves[key][name] = leaf
        return self._leaves[key]

    def forget(self) -> None:
        """Give back the memory of all leaves."""
        self._leaves = {}

    def _point(self, tensors: dict[str, Tensor], slots: Sequence[Slot], scales: Tensor, *, padded: bool) -> None:
        now = self.hooks.now
        now.parts = [
            Part(run, kind, self.block.layout.narrow(tensors, run, rank), scales[run].view(-1, 1, 1))
            for run, kind, rank in _runs(slots, self.block.layout.max_rank if padded else None)
        ]
        now.head = {
            name: tensor for name, tensor in tensors.items() if self.block.layout.segments[name].role == "head"
        }
        now.used = {role for slot in slots for role in slot.config.roles}


def _runs(slots: Sequence[Slot], padded_to: int | None) -> list[tuple[slice, MethodKind, int]]:
    """Return each run of slots that are multiplied together, their method, and the rank of their product."""
    runs: list[tuple[slice, MethodKind, int]] = []
    for place, slot in enumerate(slots):
        kind, own = slot.config.kind, slot.config.rank if padded_to is None else padded_to
        run, before, rank = runs[-1] if runs else (slice(0, 0), kind, own)
        if runs and before == kind and rank < MAX_RANK_RATIO * max(1, own):
            runs[-1] = (slice(run.start, place + 1), kind, rank)
        else:
            runs.append((slice(place, place + 1), kind, own))
    return runs


def _land(place: Tensor, leaf: Tensor) -> None:
    """Add the gradient of a leaf to its place, where that of a batch's earlier parts is, and give back its memory."""
    if leaf.grad is not None:
        place.add_(leaf.grad)
        leaf.grad = None
