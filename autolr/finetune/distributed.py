"""The processes of a full run: each trains its share of every batch, and together they take the recipe's steps."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.distributed.tensor import DTensor

from autolr.errors import RunError
from autolr.model.device import choose_device


@dataclass(frozen=True)
class Processes:
    """How many processes train together, as `accelerate launch` or `torchrun` started them, and which one this is."""

    count: int = 1
    rank: int = 0
    local: int = 0

    @classmethod
    def here(cls) -> Processes:
        """Return what the launcher says; one process where there is none."""
        count, rank, local = (int(os.environ.get(name, "0")) for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"))
        return cls(max(1, count), rank, local)

    @property
    def sharded(self) -> bool:
        """Whether the processes share out the model's weights among them (FSDP)."""
        return self.count > 1 and os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0

    def join(self, device: str | None, batch_size: int) -> torch.device:
        """Meet the other processes, and return this one's device.

        Args:
            device: such as `cpu` or `cuda:1`; None: the GPU if there is one. A launcher gives each process its own.
            batch_size: of all processes together.

        Raises:
            AutoLRError: the machine has no such device.
            RunError: they cannot share a batch evenly.
        """
        if self.count == 1:
            return choose_device(device)
        if batch_size % self.count:
            fitting = [count for count in range(1, batch_size + 1) if batch_size % count == 0]
            raise RunError(
                f"a batch of {batch_size} cannot be shared evenly by {self.count} processes; launch "
                f"{', '.join(map(str, fitting))} of them (--num_processes)"
            )
        from accelerate import PartialState

        on_gpu = device.startswith("cuda") if device else torch.cuda.is_available()
        PartialState(cpu=not on_gpu)
        return choose_device(f"cuda:{self.local}" if on_gpu else device or "cpu")

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.count > 1:
            torch.distributed.barrier()

    def most(self, number: int) -> int:
        """Return the largest of the processes' numbers."""
        if self.count == 1:
            return number
        from accelerate import PartialState

        told = torch.tensor(number, device=PartialState().device)
        torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MAX)
        return int(told)

    @staticmethod
    def gathered(model: torch.nn.Module) -> dict[str, torch.Tensor]:
        """Return what a model trains, whole and on the CPU; all processes must ask."""
        return {
            name: (p.full_tensor() if isinstance(p, DTensor) else p).detach().cpu()
            for name, p in model.named_parameters()
            if p.requires_grad
        }

    def share(self, order: Sequence[Sequence[int]], parts: int = 1) -> list[list[int]]:
        """Return this process's rows of each batch, each in so many parts, one after another."""
        shares = []
        for rows in order:
            each = len(rows) // self.count
            own = rows[self.rank * each : (self.rank + 1) * each]
            shares += [part.tolist() for part in np.array_split(own, parts)]
        return shares
