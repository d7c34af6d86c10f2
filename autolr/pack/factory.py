"""Packs that differ in slots, passes and recording alone: a device is measured with some and then trains another."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from autolr.data.batches import TokenSet
from autolr.data.tasks import Task
from autolr.model.backbone import Backbone
from autolr.pack.graphs import Graphs
from autolr.pack.layout import ROLES
from autolr.pack.pack import Pack
from autolr.schema.space import MethodKind, Role
from autolr.schema.training import Training


@dataclass(frozen=True)
class PackFactory:
    """Makes empty packs; for its attributes see `Pack`."""

    backbone: Backbone
    training: Training
    task: Task
    data: TokenSet
    max_rank: int
    lora_alpha: float
    kinds: Collection[MethodKind]
    roles: Collection[Role]

    def __call__(self, capacity: int, passes: int | None = None, graphs: bool = False) -> Pack:
        """Return an empty pack.

        Args:
            capacity: slots there is room for.
            passes: that run side by side on a CPU; None: as many as torch has threads.
            graphs: record training passes and replay them.
        """
        recorder = Graphs(self.data.pad_id, limit=self.backbone.max_length) if graphs else None
        return Pack(
            self.backbone,
            self.training,
            self.task,
            self.data,
            capacity=capacity,
            max_rank=self.max_rank,
            lora_alpha=self.lora_alpha,
            kinds=list(self.kinds),
            roles=tuple(role for role in ROLES if role in self.roles),
            passes=passes,
            graphs=recorder,
        )
