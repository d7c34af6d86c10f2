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
MIN_CPU_ROWS = 4
PLACES = "places"


class _Places(threading.local):
    """Which tokens the forward pass that this thread is in wants logits of, [learned], counted over all rows."""

    wanted: Tensor | None = None


_places = _Places()


def with_places(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a batch of the machine's memory that says where a language model predicts its learned tokens.

    A GPU would have to be waited for to learn how many they are.
    """
    return {**batch, PLACES: _where(batch["labels"])} if batch["labels"].dim() == 2 else batch


def _where(labels: Tensor) -> Tensor:
    return predicting(labels).flatten().nonzero().squeeze(1)


def forward(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Return the logits of a batch, [rows, outputs]; those of a language model are [learned tokens, vocabulary].

    Args:
        model: a classification model; or a language model that `watch` has seen, bare or inside PEFT's.
        batch: as `TokenSet.collate` or `with_places` gives it, on the model's device.
    """
    labels = batch["labels"]
    wanted = (batch[PLACES] if PLACES in batch else _where(labels)) if labels.dim() == 2 else None
    _places.wanted = wanted
    try:
        output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    finally:
        _places.wanted = None
    logits: Tensor = output.logits
    return logits if wanted is None else logits[: len(wanted)]


def watch(model: Any) -> None:
    """Let a language model's output layer read the wanted places alone."""
    model.get_output_embeddings().register_forward_pre_hook(_pick)


def _pick(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    if _places.wanted is None:
        return None
    hidden = args[0]  # [rows, tokens, hidden], on the last device of a base that is split
    picked = hidden.flatten(0, 1).index_select(0, _places.wanted.to(hidden.device))
    if hidden.device.type == "cpu":
        picked = functional.pad(picked, (0, 0, 0, max(0, MIN_CPU_ROWS - len(picked))))
    return (picked,)
