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
    """Split the examples, stratified by label; a text, or a pair, that occurs twice stays on one side.

    Raises:
        DataError: a class or a split would be left without enough examples.
    """
    where = f"data {data.source!r}"
    groups: dict[str, list[int]] = {}
    seconds = examples.pairs or [""] * len(examples)
    for index, (text, second) in enumerate(zip(examples.texts, seconds, strict=True)):
        groups.setdefault(f"{text.strip()}\x1d{second.strip()}", []).append(index)
    own = examples.strata
    strata: dict[int, list[list[int]]] = {stratum: [] for stratum in sorted(set(own))}
    for members in groups.values():
        strata[own[members[0]]].append(members)
    rng = np.random.default_rng([seed, 7])
    most = data.most / len(examples)
    share = {"select": min(data.select, most), "confirm": min(data.confirm, most)}
    parts: dict[str, list[int]] = {"train": [], "select": [], "confirm": []}
    small = []
    for stratum, texts in strata.items():
        if len(texts) < 3:
            name = examples.classes[stratum] if len(examples.classes) > 1 else f"labels, part {stratum + 1}"
            small.append(f"{name!r} has {len(texts)}")
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
