"""Scoring: losses and predictions of several slots on the same examples, in shared forward passes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from autolr.data.batches import TokenSet
from autolr.data.tasks import Task
from autolr.model.backbone import Backbone
from autolr.pack.slots import Slot
from autolr.schema.training import Training

# A pass takes at least as many tokens and logits as these, however small the training passes are: short ones would
# leave a GPU idle. In float32 the logits are 128 MiB.
TOKENS, LOGITS = 2**14, 2**25
# Examples times slots; a CPU's caches hold no more.
ROWS = {"cpu": 16, "cuda": 512}


class Scored(Protocol):
    """What scoring needs of a pack; see `autolr.pack.pack.Pack`."""

    backbone: Backbone
    training: Training
    task: Task
    data: TokenSet
    device: torch.device
    together: int
    budget: Budget

    def bind(self, slots: list[Slot], *, averaged: bool) -> None:
        """Point the hooks at the rows of some slots."""

    def gather(self, data: TokenSet, rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """Return the rows of each slot as one batch on the device."""

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the logits of a batch."""


@dataclass(frozen=True)
class Budget:
    """What a forward pass may hold at most, if more than one example is in it.

    Attributes:
        rows: examples times slots.
        tokens: rows times the tokens of the longest.
        logits: numbers that the output layer gives.
    """

    rows: int
    tokens: int
    logits: int

    @classmethod
    def of(cls, pack: Scored) -> Budget:
        """Return the budget of a pack: what a training pass of its longest texts holds, and no less than is quick.

        A pass without a way back takes less memory than one with it, so scoring stays below the peak of training.
        """
        lengths, rows = pack.data.lengths(), pack.together * pack.training.batch_size
        tokens, logits = rows * max(lengths, default=1), rows * _width(pack) * max(pack.data.learned, default=1)
        return cls(ROWS.get(pack.device.type, ROWS["cuda"]), max(TOKENS, tokens), max(LOGITS, logits))


def batches(pack: Scored, data: TokenSet, slots: int) -> Iterator[list[int]]:
    """Yield all rows, the longest first, in batches that the pack's budget allows for so many slots."""
    lengths, learned, width = data.lengths(), data.learned, _width(pack)
    order = sorted(range(len(data)), key=lambda row: (-lengths[row], row))
    budget, logits = pack.budget, 0
    batch: list[int] = []
    for row in order:
        longest = lengths[batch[0]] if batch else lengths[row]
        count, more = slots * (len(batch) + 1), slots * learned[row] * width
        if batch and (count > budget.rows or count * longest > budget.tokens or logits + more > budget.logits):
            yield batch
            batch, logits = [], 0
        batch.append(row)
        logits += more
    if batch:
        yield batch


def _width(pack: Scored) -> int:
    """Return the outputs of a row of logits."""
    config = pack.backbone.model.config
    return int(config.get_text_config().vocab_size if pack.data.of_language else config.num_labels)


def half(pack: Scored, data: TokenSet, slots: int, taken: list[list[int]]) -> Budget:
    """Return half of what the largest of these batches hold: what the pack keeps to from now on."""
    lengths, learned = data.lengths(), data.learned
    rows = slots * max(len(batch) for batch in taken)
    tokens = slots * max(len(batch) * lengths[batch[0]] for batch in taken)
    logits = slots * _width(pack) * max(sum(learned[row] for row in batch) for batch in taken)
    return Budget(max(1, rows // 2), max(1, tokens // 2), max(1, logits // 2))


@torch.no_grad()
def score(pack: Scored, slots: list[Slot], data: TokenSet, averaged: bool) -> tuple[Tensor, Tensor]:
    """Return losses and predictions of slots that share each pass, both float64 [slots, examples] on the CPU."""
    count = len(slots)
    pack.bind(slots, averaged=averaged)
    rows: list[int] = []
    losses, predictions = [], []
    for picked in batches(pack, data, count):
        batch = pack.gather(data, [picked] * count)
        logits = pack.forward(batch)
        losses.append(pack.task.losses(logits, batch["labels"]).view(count, -1))
        predictions.append(pack.task.predictions(logits, batch["labels"]).view(count, -1))
        rows += picked
    back = torch.tensor(rows).argsort()  # from the order of lengths to that of the data
    return torch.cat(losses, 1).double().cpu()[:, back], torch.cat(predictions, 1).double().cpu()[:, back]
