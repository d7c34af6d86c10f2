"""A forward pass that computes a language model's logits where they predict a learned token, and nowhere else.

[batch, tokens, vocabulary] numbers would be most of the memory of a step, and most of them belong to prompts.
"""

from __future__ import annotations

import threading
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from autolr.data.batches import predicting

# A CPU's products of fewer rows than this sum over the vocabulary 200 times less precisely, on the way back.
FEWEST = 4


class _Places(threading.local):
    """Which places the forward pass that this thread is in wants logits of, [rows, tokens]; None: all."""

    wanted: Tensor | None = None


_places = _Places()


def forward(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Return the logits of a batch, [rows, outputs]; those of a language model are [learned tokens, vocabulary].

    Args:
        model: a classification model; or a language model that `watch` has seen, bare or inside PEFT's.
        batch: as `TokenSet.collate` gives it, on the model's device.
    """
    labels = batch["labels"]
    _places.wanted = predicting(labels) if labels.dim() == 2 else None
    try:
        output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    finally:
        wanted, _places.wanted = _places.wanted, None
    logits: Tensor = output.logits
    return logits if wanted is None else logits[: int(wanted.sum())]


def watch(model: Any) -> None:
    """Let a language model's output layer read the wanted places alone."""
    model.get_output_embeddings().register_forward_pre_hook(_pick)


def _pick(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    if _places.wanted is None:
        return None
    picked = args[0][_places.wanted]
    return (functional.pad(picked, (0, 0, 0, max(0, FEWEST - len(picked)))),)
