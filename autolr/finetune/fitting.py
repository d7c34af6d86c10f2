"""In how many parts a full run trains its batches, so that they fit the device's memory."""

from __future__ import annotations

import math
from typing import Any

import torch

from autolr.data.batches import TokenSet
from autolr.data.tasks import Task
from autolr.errors import RunError
from autolr.finetune.distributed import Processes
from autolr.model.sparse_logits import forward
from autolr.pack.memory import is_out_of_memory, release
from autolr.pack.optimizers import row_optimizer
from autolr.schema.recipe import Recipe

# Copies of each trained number beside weight and gradient: the optimizer's state, and one more within its step.
EXTRA_COPIES = len(row_optimizer().STATE) + 1


def parts_that_fit(model: Any, task: Task, data: TokenSet, recipe: Recipe, processes: Processes) -> int:
    """Return in how many parts a process's share of a batch fits its device, tried on the longest examples.

    Raises:
        RunError: one example does not fit.
    """
    lengths, device = data.lengths(), next(model.parameters()).device
    share, parts = recipe.training.batch_size // processes.count, 1
    longest = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    while not _fits(model, task, data, longest[: math.ceil(share / parts)]):
        release(device)
        if parts >= share:
            raise RunError(
                f"one text of {max(lengths)} tokens does not fit the device's memory; lower data.max_length, set "
                "training.gradient_checkpointing=true, or take more devices"
            )
        parts = min(share, 2 * parts)
    release(device)
    return processes.most(parts)


def _fits(model: Any, task: Task, data: TokenSet, rows: list[int]) -> bool:
    """Return True if there is the memory for a training step on these examples; nothing is changed."""
    first = next(model.parameters())
    device, half = first.device, first.dtype == torch.bfloat16
    held: list[torch.Tensor] = []
    try:
        held += [torch.empty_like(p) for p in model.parameters() if p.requires_grad for _ in range(EXTRA_COPIES)]
        batch = {key: value.to(device) for key, value in data.collate(rows).items()}
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            losses = task.batch_losses(forward(model, batch), batch["labels"])
        losses.sum().backward()  # type: ignore[no-untyped-call]
        return True
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        model.zero_grad(set_to_none=True)
