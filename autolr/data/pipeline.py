"""Data ready for training: the three splits as tokens, and what is to be known about them beforehand."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from autolr.data import cache
from autolr.data.batches import IGNORED, TokenSet
from autolr.data.sources import Examples
from autolr.data.splits import split
from autolr.errors import DataError
from autolr.schema.data import LANGUAGE, Data

# Classes named in a summary: the largest and the smallest.
SHOWN_KINDS = 6


@dataclass(frozen=True)
class Prepared:
    """The three splits, tokenized.

    Attributes:
        summary: lines about labels and lengths, and about examples that were left out.
    """

    train: TokenSet
    validation: TokenSet
    test: TokenSet
    summary: tuple[str, ...] = ()

    def tokens_per_epoch(self) -> int:
        """Return the tokens of *train*, padding not counted."""
        return sum(self.train.lengths())

    def fingerprint(self) -> str:
        """Return a sha256 over tokens and labels of the three splits, in their order."""
        digest = hashlib.sha256()
        for part in (self.train, self.validation, self.test):
            for ids, label in zip(part.ids, part.labels, strict=True):
                digest.update(f"{len(ids)} {label if not isinstance(label, list) else len(label)} ".encode())
                digest.update(array("q", ids + label if isinstance(label, list) else ids).tobytes())
            digest.update(b"end")
        return digest.hexdigest()


def prepare(
    examples: Examples,
    data: Data,
    tokenizer: Any,
    batch_size: int,
    seed: int,
    longest: int | None = None,
    vocabulary: int | None = None,
) -> Prepared:
    """Split and tokenize.

    Args:
        examples: all of them.
        data: the shares of the splits and the length to cut texts at.
        tokenizer: the model's.
        batch_size: examples of a training batch, to check that there are enough.
        seed: of the split.
        longest: the most tokens the model takes; None where unlimited.
        vocabulary: how many tokens the model has an embedding for; None: as many as the tokenizer has.

    Raises:
        DataError: a split is left without enough examples, or texts cannot be learned with this tokenizer.
    """
    parts = split(examples, data, batch_size, seed)
    length = min(data.max_length, longest or data.max_length)

    whole, notes = token_set(examples, tokenizer, length, longest)
    _refuse_unknown(whole, examples, tokenizer, vocabulary)
    kept = [[row for row in rows if whole.ids[row]] for rows in (parts.train, parts.validation, parts.test)]
    if len(kept[0]) < batch_size or min(len(rows) for rows in kept[1:]) < 2:
        raise DataError(
            f"{examples.where}: {', '.join(notes)}; {', '.join(str(len(rows)) for rows in kept)} examples are left "
            f"of train, validation and test. Give more data, or a training.batch_size below {batch_size}"
        )
    notices = [*examples.notices, *notes, *parts.notices, *_unknown(whole, tokenizer)]
    train, validation, test = (whole.take(rows) for rows in kept)
    return Prepared(train, validation, test, (*_summary(examples.classes, train, length), *notices))


def _refuse_unknown(whole: TokenSet, examples: Examples, tokenizer: Any, vocabulary: int | None) -> None:
    """Refuse a token for which the model has no embedding."""
    row = next((row for row, own in enumerate(whole.ids) if vocabulary and max(own, default=0) >= vocabulary), None)
    if row is None:
        return
    token, number = max(whole.ids[row]), row if examples.rows is None else examples.rows[row]
    word = tokenizer.convert_ids_to_tokens(token)
    raise DataError(
        f"{examples.where}: row {number + 1} contains the token {word!r} (id {token}), for which the model has no "
        f"embedding (it has {vocabulary}). Remove it from the text, or enlarge the model's embeddings"
    )


def token_set(examples: Examples, tokenizer: Any, length: int, limit: int | None) -> tuple[TokenSet, tuple[str, ...]]:
    """Tokenize examples.

    Args:
        examples: all of them.
        tokenizer: the model's.
        length: tokens kept of each.
        limit: the most tokens the model takes; None where unlimited.

    Returns:
        Their tokens, none of those that are left out; and what is to be said of them.

    Raises:
        DataError: see `autolr.data.lm_labels.learn`.
    """
    learned = cache.tokens(examples, tokenizer, length, limit)
    labels = learned.labels if examples.task in LANGUAGE else examples.labels
    return TokenSet(learned.ids, labels, int(tokenizer.pad_token_id)), learned.notices


def _unknown(whole: TokenSet, tokenizer: Any) -> list[str]:
    """Return a line about examples that hold nothing the tokenizer knows."""
    special = set(getattr(tokenizer, "all_special_ids", ()))
    count = sum(special.issuperset(own) for own in whole.ids if own)
    if not count:
        return []
    return [f"{count:,} of {len(whole):,} examples hold no word or sign that the model's tokenizer knows"]


def _summary(classes: list[str], train: TokenSet, limit: int) -> list[str]:
    """Return lines about the lengths and labels of *train*."""
    lengths = np.array(train.lengths())
    median, most = np.quantile(lengths, [0.5, 0.9])
    cut = int((lengths >= limit).sum())
    lines = [
        f"tokens of a text: median {median:.0f}, 90% up to {most:.0f}, longest {lengths.max()}"
        + (f"; {cut:,} of {len(train):,} fill max_length {limit}, what is longer is cut" if cut else "")
    ]
    if train.of_language:
        learned = [sum(label != IGNORED for label in own[1:]) for own in train.labels]  # type: ignore[index]
        share = sum(learned) / lengths.sum()
        return [*lines, f"tokens learned of a text: median {np.median(learned):.0f}, {share:.0%} of all"]
    if len(classes) < 2:
        spread = np.quantile(train.labels, [0, 0.5, 1])
        return [*lines, "labels: lowest {:.3g}, median {:.3g}, highest {:.3g}".format(*spread)]
    counts = Counter(train.labels).most_common()
    shown = counts if len(counts) <= SHOWN_KINDS else [*counts[: SHOWN_KINDS // 2], *counts[-SHOWN_KINDS // 2 :]]
    shares = ", ".join(f"{classes[int(label)]} {count / len(train):.1%}" for label, count in shown)  # type: ignore[call-overload]
    left = f" ({len(counts) - SHOWN_KINDS} classes between them are not shown)" if len(counts) > SHOWN_KINDS else ""
    lines.append(f"classes: {shares}{left}")
    times = counts[0][1] / counts[-1][1]
    if times >= 3:
        lines.append(
            f"the largest class has {times:.0f} times the examples of the smallest; consider metric f1 or matthews"
        )
    return lines
