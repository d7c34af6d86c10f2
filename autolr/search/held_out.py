"""Examples of *train* that a training has not learned from: with *select*, what candidates are compared by.

*select* is small where data are few, and of two good candidates it then says little. What a training has not seen is
as good a judge, as long as it is cut from the same table: the batches that no trial comes to, since a trial is the
first part of a full run; and of a full run the loss of its last batches before it learns from them (progressive
validation: Blum, Kalai and Langford, 1999), once the rates have fallen, so that the noise of a high rate is gone.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from autolr.data.batches import TokenSet, batch_order
from autolr.data.prepared import Prepared
from autolr.pack.slots import Slot
from autolr.study import Study

# Of a full run these last steps count, and of examples no more than so many times those of *select*.
LAST, TIMES = 0.25, 3


def judges(study: Study, data: Prepared, length: int) -> list[TokenSet]:
    """Return what trials are scored on: *select*, and examples of *train* that they do not come to.

    Together they are no more than `data.most`.

    Args:
        study: gives the seed of the trials; a *select* that is no part of the same table stays alone.
        data: the splits.
        length: steps of a trial.
    """
    if study.data.select_split is not None:
        return [data.select]
    order = batch_order(data.train.lengths(), study.training.batch_size, length, study.seed)
    learned = set(itertools.chain.from_iterable(order))
    rest = [row for row in range(len(data.train)) if row not in learned]
    some = np.random.default_rng([study.seed, 17]).permutation(rest)[: max(0, study.data.most - len(data.select))]
    return [data.select, data.train.take(sorted(some.tolist()))] if len(some) else [data.select]


def last_steps(study: Study, slot: Slot, select: int) -> range:
    """Return the last steps of a full run whose examples had not come before, as places in its losses.

    None are where *select* is no part of the same table, where the rates do not fall, where the training ends before
    its schedule, and from the second epoch on.

    Args:
        study: says where *select* comes from, and the schedule.
        slot: that is through.
        select: examples of *select*.
    """
    steps = slot.config.steps
    if study.data.select_split is not None or study.training.schedule != "linear" or slot.step < steps:
        return range(0)
    end = _first_twice(slot.order[:steps])
    least = max(steps - round(LAST * steps), steps - TIMES * select // study.training.batch_size)
    return range(min(least, end), end)


def _first_twice(order: Sequence[Sequence[int]]) -> int:
    """Return the first step that has an example for the second time; the number of steps where none has."""
    seen: set[int] = set()
    for step, rows in enumerate(order):
        if not seen.isdisjoint(rows):
            return step
        seen.update(rows)
    return len(order)
