"""Three splits: *train*, *select* (pruning, choosing) and *confirm* (the numbers a user is told)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autolr.data.sources import Examples
from autolr.errors import DataError
from autolr.study import Data


@dataclass(frozen=True)
class Splits:
    """Indices into the examples; disjoint, and together all of them.

    No text stands in two splits, so nothing learned by heart helps on select or confirm.
    """

    train: list[int]
    select: list[int]
    confirm: list[int]


def split(examples: Examples, data: Data, batch_size: int, seed: int) -> Splits:
    """Split the examples, stratified by label.

    Raises:
        DataError: a class or a split would be left without enough examples.
    """
    where = f"data {data.source!r}"
    groups: dict[str, list[int]] = {}
    for index, text in enumerate(examples.texts):
        groups.setdefault(text.strip(), []).append(index)
    strata: dict[int, list[list[int]]] = {label: [] for label in range(len(examples.classes))}
    for members in groups.values():
        strata[examples.labels[members[0]]].append(members)
    rng = np.random.default_rng([seed, 7])
    most = data.most / len(examples)
    share = {"select": min(data.select, most), "confirm": min(data.confirm, most)}
    parts: dict[str, list[int]] = {"train": [], "select": [], "confirm": []}
    small = []
    for label, texts in strata.items():
        if len(texts) < 3:
            small.append(f"{examples.classes[label]!r} has {len(texts)}")
            continue
        order = rng.permutation(len(texts))
        confirm = min(max(1, round(share["confirm"] * len(texts))), len(texts) - 2)
        select = min(max(1, round(share["select"] * len(texts))), len(texts) - confirm - 1)
        bounds = {
            "confirm": (0, confirm),
            "select": (confirm, confirm + select),
            "train": (confirm + select, None),
        }
        for name, (start, end) in bounds.items():
            parts[name] += [index for position in order[start:end] for index in texts[position]]
    if small:
        raise DataError(f"{where}: each class needs at least 3 different texts, but {', '.join(small)}")
    if len(parts["train"]) < batch_size:
        raise DataError(
            f"{where}: {len(examples)} examples leave {len(parts['train'])} for training, fewer than one "
            f"batch of {batch_size}; give more data or a smaller training.batch_size"
        )
    return Splits(**{name: sorted(indices) for name, indices in parts.items()})
