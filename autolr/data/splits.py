"""Three splits: *train*, *validation* (pruning, choosing) and *test* (the numbers a user is told)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from autolr.data.sources import Examples
from autolr.errors import DataError
from autolr.schema.data import Data

# The first of these that holds a text keeps it; it is left out of the others.
KEEPERS = ("test", "validation", "train")


@dataclass(frozen=True)
class Splits:
    """Indices into the examples; disjoint, and together all of them but those the notices tell of.

    No text stands in two splits, so nothing learned by heart helps on validation or test.
    """

    train: list[int]
    validation: list[int]
    test: list[int]
    notices: tuple[str, ...] = ()


def split(examples: Examples, data: Data, batch_size: int, seed: int) -> Splits:
    """Split the examples, stratified by label; a text, or a pair, that occurs twice stays on one side.

    A split that the data names is taken as it is, at most `data.max_eval_samples` of its examples; the others are
    cut from
    *train*.

    Raises:
        DataError: a class or a split would be left without enough examples.
    """
    where = f"data {data.source!r}"
    named = set(examples.parts or ()) - {"train"}
    groups, notices = _groups(examples)
    rng = np.random.default_rng([seed, 7])
    total = sum(len(group) for group in groups["train"])
    most = data.max_eval_samples / max(1, total)
    share = {name: 0.0 if name in named else min(getattr(data, name), most) for name in ("validation", "test")}
    parts: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for name in sorted(named):
        parts[name] = _at_most(groups[name], data.max_eval_samples, rng)
        left = sum(len(group) for group in groups[name]) - len(parts[name])
        notices += (
            [f"{name}: {left:,} examples above data.max_eval_samples ({data.max_eval_samples:,}) are left out"]
            if left
            else []
        )
    small = []
    for stratum, texts in _by_stratum(groups["train"], examples.strata).items():
        if len(texts) < 3 - len(named):
            name = examples.classes[stratum] if len(examples.classes) > 1 else f"labels, part {stratum + 1}"
            small.append(f"{name!r} has {len(texts)}")
            continue
        order = rng.permutation(len(texts))
        test, validation = (
            0 if name in named else max(1, round(share[name] * len(texts))) for name in ("test", "validation")
        )
        test = min(test, len(texts) - 1 - bool(validation))
        validation = min(validation, len(texts) - test - 1)
        bounds = {
            "test": (0, test),
            "validation": (test, test + validation),
            "train": (test + validation, None),
        }
        for name, (start, end) in bounds.items():
            parts[name] += [index for position in order[start:end] for index in texts[position]]
    if small:
        raise DataError(
            f"{where}: each class needs at least {3 - len(named)} different texts to train on, but {', '.join(small)}"
        )
    for name in ("validation", "test"):
        if len(parts[name]) < 2:
            raise DataError(f"{where}: {name} is left with {len(parts[name])} examples; give it more")
    if len(parts["train"]) < batch_size:
        raise DataError(
            f"{where}: {len(examples)} examples leave {len(parts['train'])} for training, fewer than one "
            f"batch of {batch_size}; give more data or a smaller training.batch_size"
        )
    return Splits(**{name: sorted(indices) for name, indices in parts.items()}, notices=tuple(notices))


def _groups(examples: Examples) -> tuple[dict[str, list[list[int]]], list[str]]:
    """Return the examples of each named part in groups of one text, and what was left out because another has it."""
    seconds = examples.pairs or [""] * len(examples)
    parts = examples.parts or ["train"] * len(examples)
    same: dict[str, dict[str, list[int]]] = {}
    for index, (text, second) in enumerate(zip(examples.texts, seconds, strict=True)):
        same.setdefault(f"{text.strip()}\x1d{second.strip()}", {}).setdefault(parts[index], []).append(index)
    groups: dict[str, list[list[int]]] = {name: [] for name in KEEPERS}
    dropped: Counter[tuple[str, str]] = Counter()
    for places in same.values():
        keeper = next(name for name in KEEPERS if name in places)
        groups[keeper].append(places[keeper])
        dropped.update({(name, keeper): len(rows) for name, rows in places.items() if name != keeper})
    notices = [
        f"{name}: {count:,} examples left out, since {keeper} has their texts"
        for (name, keeper), count in dropped.items()
    ]
    return groups, notices


def _by_stratum(groups: list[list[int]], own: list[int]) -> dict[int, list[list[int]]]:
    strata: dict[int, list[list[int]]] = {stratum: [] for stratum in sorted({own[row] for g in groups for row in g})}
    for members in groups:
        strata[own[members[0]]].append(members)
    return strata


def _at_most(groups: list[list[int]], most: int, rng: np.random.Generator) -> list[int]:
    rows = [row for group in groups for row in group]
    return rows if len(rows) <= most else [rows[place] for place in rng.permutation(len(rows))[:most]]
