"""What the checks of the kit share: a model, a few tokens, and what one check leaves for the next."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autolr.data.batches import IGNORED, TokenSet
from autolr.data.tasks import Task
from autolr.model.backbone import Backbone
from autolr.pack.slots import SlotConfig
from autolr.schema.space import Targets
from autolr.schema.training import Training

ALPHA = 16.0
STEPS = 3
# Under Adam a gradient that is nothing but rounding moves a weight as far as any other; eps says from where on
# a gradient counts: nearly all of them in float64, in float32 those that stand clear of the rounding.
EPS = {torch.float64: 1e-8}
FLOAT32_EPS = 1e-4
# Distance of what two ways of computing the same give, relative to its norm.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
GAP = 2  # tokens between the place that is changed and the place that is watched


class ProblemError(Exception):
    """What a check has found wrong."""


# Tensors, losses and batches of a slot after its training.
Trained = tuple[dict[str, Tensor], list[float], list[list[int]]]


@dataclass
class Bench:
    """A model, what it is trained on here, and what one check leaves for the next.

    Attributes:
        base: the model.
        data: random tokens.
        task: gives the loss.
        slots: targets and settings of the slots that are compared.
        packed: what each slot has learned in a pack.
        folder: for the adapter that is saved.
        frozen: fingerprint of the base before training.
        stock: the last adapter that was saved, loaded in stock PEFT.
        logits: what `stock` gives on all examples.
    """

    base: Backbone
    data: TokenSet
    task: Task
    slots: list[tuple[Targets, SlotConfig]]
    packed: list[Trained]
    folder: Path
    frozen: str = ""
    stock: Any = None
    logits: Tensor | None = None

    def first(self, kind: str) -> int:
        """Return the number of the first slot of a method."""
        return next(number for number, (_, config) in enumerate(self.slots) if config.kind == kind)

    @property
    def dtype(self) -> torch.dtype:
        """Of the base's weights."""
        return next(self.base.model.parameters()).dtype  # type: ignore[no-any-return]

    @cached_property
    def training(self) -> Training:
        """Settings in which all that an optimizer step consists of does something."""
        eps = EPS.get(self.dtype, FLOAT32_EPS)
        return Training(batch_size=2, weight_decay=0.1, max_grad_norm=0.5, betas=(0.9, 0.99), eps=eps)

    @property
    def tolerance(self) -> float:
        """The largest distance that rounding explains."""
        return TOLERANCE.get(self.dtype, 5e-2)

    def batch(self, rows: list[int]) -> dict[str, Tensor]:
        """Return examples, padded, on the model's device."""
        device = next(self.base.model.parameters()).device
        return {name: value.to(device) for name, value in self.data.collate(rows).items()}


def random_tokens(base: Backbone, classes: int, seed: int = 0) -> TokenSet:
    """Return eight examples of 4 to 9 tokens, none of them special; language models learn all but the first three."""
    config = base.model.config.get_text_config()
    special = set(getattr(base.tokenizer, "all_special_ids", None) or ())
    special |= {v for v in (config.pad_token_id, config.eos_token_id, config.bos_token_id) if isinstance(v, int)}
    rng = np.random.default_rng(seed)
    usable = np.setdiff1d(np.arange(min(int(config.vocab_size), 5000)), list(special))
    ids = [rng.choice(usable, 4 + number % 6).tolist() for number in range(8)]
    pad_id = int(config.pad_token_id or 0)
    if not base.head:
        return TokenSet(ids, [[*[IGNORED] * (GAP + 1), *own[GAP + 1 :]] for own in ids], pad_id)
    return TokenSet(ids, [number % classes for number in range(8)], pad_id)


@torch.no_grad()
def logits_of(bench: Bench, model: Any, rows: list[int]) -> Tensor:
    """Return the logits of examples, those of a language model at real tokens."""
    batch = bench.batch(rows)
    logits: Tensor = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return logits if logits.dim() == 2 else logits[batch["attention_mask"].bool()]
