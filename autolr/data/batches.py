"""Tokens, the order they are seen in, and padding: the same for a packed trial and a full run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

# Batches are cut from this many shuffled batches sorted by length: little padding, enough mixing.
BUCKET = 32
# Lengths come round after this many steps, so trials that started a multiple of it apart have batches of like
# lengths, and share a forward pass with little padding between them.
CYCLE = 8
STRIDE = 5  # from one step's place among the lengths to the next; short and long batches alternate
# Label of a token that is not learned, as transformers has it.
IGNORED = -100
# Strata of what is no class: numbers and lengths.
BINS = 10

Labels = Sequence[int] | Sequence[float] | Sequence[Sequence[int]]


@dataclass(frozen=True)
class TokenSet:
    """Tokenized examples of one split.

    Attributes:
        ids: token ids, one list an example, without padding.
        labels: class index of each example, or its number; where texts are learned, the token ids that are, one
            list an example as long as its ids, with `IGNORED` at the others.
        pad_id: id used to pad.
    """

    ids: list[list[int]]
    labels: list[int] | list[float] | list[list[int]]
    pad_id: int

    def __len__(self) -> int:
        return len(self.ids)

    def lengths(self) -> list[int]:
        """Return the number of tokens of each example."""
        return [len(ids) for ids in self.ids]

    @property
    def of_language(self) -> bool:
        """Whether it is tokens that are learned."""
        return bool(self.labels) and isinstance(self.labels[0], list)

    @property
    def strata(self) -> list[int] | list[float]:
        """What a part should hold in proportion: the labels; of texts that are learned, their lengths."""
        return tenths(self.lengths()) if self.of_language else self.labels  # type: ignore[return-value]

    def take(self, rows: Sequence[int]) -> TokenSet:
        """Return `rows` as a set of their own, in their order."""
        return TokenSet([self.ids[row] for row in rows], [self.labels[row] for row in rows], self.pad_id)  # type: ignore[arg-type]

    @cached_property
    def learned(self) -> list[int]:
        """How many predictions each example is scored on: a language model's learned tokens, else one."""
        _, learned, starts, sizes = self._flat
        if learned is None:
            return [1] * len(self)
        before = np.concatenate([[0], np.cumsum(learned != IGNORED)])
        counts: list[int] = (before[starts + sizes] - before[starts + np.minimum(sizes, 1)]).tolist()
        return counts

    def collate(self, rows: Sequence[int], multiple: int = 1, limit: int | None = None) -> dict[str, Tensor]:
        """Return `rows` as a batch padded on the right to its longest example.

        Args:
            rows: numbers of examples.
            multiple: the batch is padded further, to so many tokens or a multiple of them.
            limit: and never for that beyond this many tokens, which the model does not take; None: any.

        Returns:
            `input_ids` and `attention_mask`, [rows, tokens]; `labels`, [rows], or of language [rows, tokens].
        """
        flat, learned, starts, sizes = self._flat
        picked = np.asarray(rows)
        size = sizes[picked]
        longest = int(size.max())
        width = -(-longest // multiple) * multiple
        place = np.arange(width if limit is None else max(longest, min(width, limit)))
        real = place < size[:, None]  # [rows, tokens]
        at = np.minimum(starts[picked][:, None] + place, len(flat) - 1)
        ids = np.where(real, flat[at], self.pad_id)
        if learned is None:
            labels = torch.tensor([self.labels[row] for row in rows])  # int64 or float32
        else:
            labels = torch.from_numpy(np.where(real, learned[at], IGNORED).astype(np.int64))
        return {
            "input_ids": torch.from_numpy(ids.astype(np.int64)),
            "attention_mask": torch.from_numpy(real.astype(np.int64)),
            "labels": labels,
        }

    @cached_property
    def _flat(self) -> tuple[np.ndarray, np.ndarray | None, np.ndarray, np.ndarray]:
        """All tokens in a row, their labels where they have any, where each example starts, and how long it is."""
        sizes = np.asarray(self.lengths())
        learned = _in_a_row(self.labels) if self.of_language else None  # type: ignore[arg-type]
        return _in_a_row(self.ids), learned, np.cumsum(sizes) - sizes, sizes


def _in_a_row(lists: Sequence[Sequence[int]]) -> np.ndarray:
    return np.fromiter((value for own in lists for value in own), np.int32, sum(len(own) for own in lists))


def joined(parts: Sequence[TokenSet]) -> TokenSet:
    """Return sets of the same tokenizer and task as one, in their order."""
    ids = [own for part in parts for own in part.ids]
    labels = [label for part in parts for label in part.labels]
    return TokenSet(ids, labels, parts[0].pad_id)  # type: ignore[arg-type]


def predicting(labels: Tensor) -> Tensor:
    """Return which places of a language model predict a learned token: those before one. Shape as `labels`."""
    return functional.pad(labels[:, 1:] != IGNORED, (0, 1))


def tenths(values: Sequence[float]) -> list[int]:
    """Return into which tenth each value falls; of few values, into which part of about ten."""
    place = np.argsort(np.argsort(values, kind="stable"), kind="stable")
    return [int(place * min(BINS, max(1, len(values) // 10)) // len(values)) for place in place]


def tokenize(
    tokenizer: Any, texts: Sequence[str], max_length: int, pairs: Sequence[str] | None = None
) -> list[list[int]]:
    """Tokenize texts, or pairs of texts, each cut to `max_length` tokens."""
    both = (list(texts),) if pairs is None else (list(texts), list(pairs))
    encoded = tokenizer(*both, truncation=True, max_length=max_length, padding=False)
    return [list(tokens) or [int(tokenizer.pad_token_id)] for tokens in encoded["input_ids"]]


def batch_order(lengths: Sequence[int], batch_size: int, steps: int, seed: int) -> list[list[int]]:
    """Return the rows of each of `steps` batches.

    Every epoch visits each example once (the incomplete last batch is dropped), in an order that
    depends on `seed` alone: a longer run begins with the batches of a shorter one. Batches hold
    examples of similar length, and lengths come round after `CYCLE` steps.

    Args:
        lengths: tokens of each example; at least `batch_size` of them.
        batch_size: examples of a batch.
        steps: number of batches.
        seed: of the order.
    """
    size = np.asarray(lengths)
    rng = np.random.default_rng([seed, 11])
    batches: list[list[int]] = []
    while len(batches) < steps:
        batches += _epoch(size, batch_size, rng, len(batches))
    return batches[:steps]


def _epoch(size: np.ndarray, batch_size: int, rng: np.random.Generator, first: int) -> list[list[int]]:
    order = rng.permutation(len(size))
    whole = len(order) // batch_size * batch_size
    by_place: list[list[list[int]]] = [[] for _ in range(CYCLE)]
    for start in range(0, whole, BUCKET * batch_size):
        bucket = order[start : min(start + BUCKET * batch_size, whole)]
        bucket = bucket[np.argsort(size[bucket], kind="stable")]
        count = len(bucket) // batch_size
        for at, batch in enumerate(bucket.reshape(count, batch_size)):
            by_place[at * CYCLE // count].append(batch.tolist())
    for batches in by_place:
        rng.shuffle(batches)
    epoch = []
    for step in range(first, first + whole // batch_size):
        wanted = step * STRIDE % CYCLE
        nearest = min((place for place in range(CYCLE) if by_place[place]), key=lambda place: abs(place - wanted))
        epoch.append(by_place[nearest].pop())
    return epoch


def by_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Yield all rows in batches, longest first: for evaluation, where the order does not matter."""
    order = np.argsort(-np.asarray(lengths), kind="stable").tolist()
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]
