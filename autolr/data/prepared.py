"""Data ready for training: the three splits as tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from autolr.data import cache
from autolr.data.batches import TokenSet
from autolr.data.sources import Examples
from autolr.data.splits import split
from autolr.study import Data


@dataclass(frozen=True)
class Prepared:
    """The three splits, tokenized."""

    train: TokenSet
    select: TokenSet
    confirm: TokenSet

    def tokens_per_epoch(self) -> int:
        """Return the tokens of *train*, padding not counted."""
        return sum(self.train.lengths())


def prepare(
    examples: Examples, data: Data, tokenizer: Any, batch_size: int, seed: int, longest: int | None = None
) -> Prepared:
    """Split and tokenize.

    Args:
        examples: all labelled texts.
        data: the shares of the splits and the length to cut texts at.
        tokenizer: the model's.
        batch_size: examples of a training batch, to check that there are enough.
        seed: of the split.
        longest: the most tokens the model takes; None where unlimited.

    Raises:
        DataError: a split is left without enough examples.
    """
    parts = split(examples, data, batch_size, seed)
    length = min(data.max_length, longest or data.max_length)

    ids = cache.tokens(examples, tokenizer, length)
    all_examples = TokenSet(ids, examples.labels, int(tokenizer.pad_token_id))
    return Prepared(*(all_examples.take(rows) for rows in (parts.train, parts.select, parts.confirm)))
