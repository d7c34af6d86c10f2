"""What a pack does if memory runs out: fewer slots in a pass, then batches in parts, then the slot ends as unfit.

Training takes the same steps throughout: a batch in parts is gradient accumulation. Scoring halves its budget, then
takes slot by slot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from autolr.data.batches import TokenSet
from autolr.data.tasks import Task
from autolr.errors import RunError
from autolr.pack import scoring
from autolr.pack.memory import is_out_of_memory, release
from autolr.pack.scoring import Scored
from autolr.pack.slots import Slot
from autolr.pack.thread_pool import ThreadPool

T = TypeVar("T")


class Retreating(Scored, Protocol):
    """What a retreat needs of a pack; see `autolr.pack.pack.Pack`."""

    slots: list[Slot]
    thrifty: bool
    crew: ThreadPool

    def groups(self, count: int) -> list[slice]:
        """Return the places of slots that share a pass."""

    def train(self, group: slice) -> None:
        """Leave the losses and gradients of the slots of a group in their buffers."""

    def drop_gradients(self, group: slice) -> None:
        """Set the gradients of a group to 0."""

    def make_room(self) -> None:
        """Give back the memory that recorded passes and leaves hold."""


def attempt(work: Callable[[], T], *, thrifty: bool) -> T | None:
    """Return what `work` returns; None if memory ran out, which is raised unless `thrifty`."""
    try:
        return work()
    except (RuntimeError, MemoryError) as error:
        if not (thrifty and is_out_of_memory(error)):
            raise
    return None


def train(pack: Retreating, groups: Sequence[slice]) -> list[int]:
    """Train all groups; if memory runs out, what did not fit slot by slot. Return the places of unfit slots."""
    short: list[slice] = []

    def try_group(group: slice) -> None:
        if not _fits(pack, group):
            short.append(group)

    pack.crew.work(try_group, groups)
    if not short:
        return []
    pack.make_room()
    pack.together = max(1, pack.together // 2)
    pack.crew.halve()
    places = [place for group in short for place in range(group.start, group.stop)]
    return [place for place in places if not _fits_in_parts(pack, place)]


def shares(task: Task, data: TokenSet, slots: Sequence[Slot], parts: int) -> Iterator[tuple[list[list[int]], Tensor]]:
    """Yield a part of each slot's batch, and of how much of its loss that part is the mean, float64 [slots]."""
    whole = [slot.order[slot.step] for slot in slots]
    of_all = task.counts(data.collate(sum(whole, []))["labels"], len(slots))
    for part in zip(*(np.array_split(rows, parts) for rows in whole), strict=True):
        rows = [own.tolist() for own in part]
        labels = data.collate(sum(rows, []))["labels"]
        yield rows, task.counts(labels, len(slots)) / of_all.double()


def evaluate(pack: Retreating, slots: Sequence[Slot], data: TokenSet, *, averaged: bool) -> tuple[Tensor, Tensor]:
    """Score slots of a pack; see `Pack.evaluate`."""
    shape = (len(slots), len(data))
    losses, predictions = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
    order = sorted(range(len(slots)), key=lambda place: slots[place].config.place, reverse=True)

    def score(group: slice) -> None:
        places = order[group]
        own = [slots[place] for place in places]
        losses[places], predictions[places] = _score(pack, own, data, averaged)

    pack.crew.work(score, pack.groups(len(slots)))
    return losses, predictions


def _fits(pack: Retreating, group: slice) -> bool:
    """Train a group; return False if memory ran out, and leave no gradient then."""

    def work() -> bool:
        pack.train(group)
        return True

    if attempt(work, thrifty=pack.thrifty):
        return True
    pack.drop_gradients(group)
    return False


def _fits_in_parts(pack: Retreating, place: int) -> bool:
    """Train one slot, its batch in as many parts as it takes; return False if not one example fits."""
    slot = pack.slots[place]
    rows = slot.order[slot.step]
    while not _fits(pack, slice(place, place + 1)):
        release(pack.device)
        if slot.parts >= len(rows):
            longest = max(len(pack.data.ids[row]) for row in rows)
            slot.unfit = f"one example of {longest} tokens does not fit the device's memory, trained by itself"
            return False
        slot.parts = min(len(rows), 2 * slot.parts)
    return True


def _score(pack: Retreating, slots: list[Slot], data: TokenSet, averaged: bool) -> tuple[Tensor, Tensor]:
    """Score slots together; if memory runs out, with fewer examples at a time, then slot by slot.

    Raises:
        RunError: a single example of a single slot does not fit.
    """
    while True:
        scores = attempt(lambda: scoring.score(pack, slots, data, averaged), thrifty=pack.thrifty)
        if scores is not None:
            return scores
        release(pack.device)
        taken = list(scoring.batches(pack, data, len(slots)))
        if max(map(len, taken)) > 1:
            pack.budget = scoring.half(pack, data, len(slots), taken)
        elif len(slots) > 1:
            each = [_score(pack, [slot], data, averaged) for slot in slots]
            return torch.cat([losses for losses, _ in each]), torch.cat([predictions for _, predictions in each])
        else:
            raise RunError(
                f"scoring one text of up to {max(data.lengths())} tokens does not fit the device's memory; lower "
                "data.max_length, or use another --device"
            )
