"""Examples of *train* that a training has not learned from: with *validation*, what candidates are compared by.

*validation* is small where data are few, and of two good candidates it then says little. What a training has not
seen is
as good a judge, as long as it is cut from the same table: the batches that no trial comes to, since a trial is the
first part of a full run; and of a full run the loss of its last batches before it learns from them (progressive
validation: Blum, Kalai and Langford, 1999), once the rates have fallen, so that the noise of a high rate is gone.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from autolr.data.batches import TokenSet, batch_order
from autolr.data.pipeline import Prepared
from autolr.pack.slots import Slot
from autolr.schema.study import Study

# Of a full run these last steps count, and of examples no more than so many times those of *validation*.
LAST, TIMES = 0.25, 3


def judges(study: Study, data: Prepared, length: int) -> list[TokenSet]:
    """Return what trials are scored on: *validation*, and examples of *train* that they do not come to.

    MergedState they are no more than `data.max_eval_samples`.

    Args:
        study: gives the seed of the trials; a *validation* that is no part of the same table stays alone.
        data: the splits.
        length: steps of a trial.
    """
    if study.data.validation_split is not None:
        return [data.validation]
    order = batch_order(data.train.lengths(), study.training.batch_size, length, study.seed)
    learned = set(itertools.chain.from_iterable(order))
    rest = [row for row in range(len(data.train)) if row not in learned]
    some = np.random.default_rng([study.seed, 17]).permutation(rest)[
        : max(0, study.data.max_eval_samples - len(data.validation))
    ]
    return [data.validation, data.train.take(sorted(some.tolist()))] if len(some) else [data.validation]


def last_steps(study: Study, slot: Slot, validation: int) -> range:
    """Return the last steps of a full run whose examples had not come before, as places in its losses.

    There are none if *validation* is no part of the same table, if the rates do not fall, if the training ends before
    its schedule, and from the second epoch on.

    Args:
        study: says where *validation* comes from, and the schedule.
        slot: that is through.
        validation: examples of *validation*.
    """
    steps = slot.config.steps
    if study.data.validation_split is not None or study.training.lr_scheduler_type != "linear" or slot.step < steps:
        return range(0)
    end = _first_twice(slot.order[:steps])
    least = max(steps - round(LAST * steps), steps - TIMES * validation // study.training.batch_size)
    return range(min(least, end), end)


def _first_twice(order: Sequence[Sequence[int]]) -> int:
    """Return the first step that has an example for the second time; the number of steps where none has."""
    seen: set[int] = set()
    for step, rows in enumerate(order):
        if not seen.isdisjoint(rows):
            return step
        seen.update(rows)
    return len(order)
