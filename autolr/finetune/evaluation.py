"""Scoring a model as anybody who loads it gets it: losses, predictions and the task's metric."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from autolr.data.batches import TokenSet, by_length
from autolr.data.tasks import Task
from autolr.errors import RunError
from autolr.model import precision
from autolr.model.sparse_logits import forward
from autolr.pack.memory import is_out_of_memory, release


def evaluate(model: Any, data: TokenSet, task: Task, batch_size: int = 32) -> dict[str, float]:
    """Return the mean loss and the metric of a model on data.

    Raises:
        RunError: see `outcomes`.
    """
    losses, said = outcomes(model, data, task, batch_size)
    return {"loss": float(losses.mean()), task.metric: task.score(said, data.labels)}


def outcomes(model: Any, data: TokenSet, task: Task, batch_size: int = 32) -> tuple[Tensor, Tensor]:
    """Return loss and prediction of each example, float64 [examples] on the CPU, of a model in eval mode.

    Args:
        model: bare, or inside PEFT's.
        data: the examples.
        task: gives losses and predictions.
        batch_size: examples scored at once; fewer if memory runs out.

    Raises:
        RunError: not even one example fits the device's memory.
    """
    while True:
        try:
            return _outcomes(model, data, task, batch_size)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        release(next(model.parameters()).device)
        if batch_size == 1:
            raise RunError(
                f"scoring one text of up to {max(data.lengths())} tokens does not fit the device's memory. Lower "
                "data.max_length, or use another --device"
            )
        batch_size = max(1, batch_size // 2)


@torch.no_grad()
def _outcomes(model: Any, data: TokenSet, task: Task, batch_size: int) -> tuple[Tensor, Tensor]:
    model.eval()
    first = next(model.parameters())
    device, half = first.device, first.dtype == torch.bfloat16
    losses, said = [], []
    picked: list[int] = []
    with precision.exact(model), torch.autocast(device.type, torch.bfloat16, enabled=half):
        for rows in by_length(data.lengths(), batch_size):
            batch = {key: value.to(device) for key, value in data.collate(rows).items()}
            logits = forward(model, batch).float()
            losses.append(task.losses(logits, batch["labels"]).double().cpu())
            said.append(task.predictions(logits, batch["labels"]).double().cpu())
            picked += rows
    back = torch.tensor(picked).argsort()  # from the order of lengths to that of the data
    return torch.cat(losses)[back], torch.cat(said)[back]
