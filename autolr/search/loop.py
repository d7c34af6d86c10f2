"""The loop that keeps a pack busy: admit, step, report at rungs, end, refill."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Protocol

from autolr.candidate import Candidate
from autolr.pack.pack import Pack, Slot, SlotConfig
from autolr.search.records import Outcome

# A trial has diverged when its last losses are on average this many times its first ones.
DIVERGED_FACTOR = 2.0
WINDOW = 10
# Losses are looked at after at most so many steps: to look at each would make a GPU wait.
LAG = 8


@dataclass(frozen=True)
class Job:
    """Something to train in a slot."""

    label: str
    candidate: Candidate
    config: SlotConfig
    number: int


@dataclass(eq=False)
class Running:
    """A job in its slot. Setting `outcome` ends it.

    Attributes:
        score: the last select loss measured.
        seconds: its share of the device's time.
    """

    job: Job
    slot: Slot
    outcome: Outcome | None = None
    score: float | None = None
    seconds: float = 0.0


class Source(Protocol):
    """Where jobs come from and where their results go."""

    rungs: tuple[int, ...]

    def next(self) -> Job | None:
        """Return the next job, or None when there is none now or ever."""

    def reached(self, running: list[Running]) -> None:
        """Score all jobs that reached a rung or their end in this step, and decide on each."""

    def ended(self, running: Running) -> None:
        """Keep the result of a job; its slot still holds its weights."""


class Watcher:
    """Sees a search happen. Every method may be overridden; none does anything."""

    def phase(self, name: str, total: int, done: int) -> None:
        """A phase begins that ends with `total` jobs, `done` of which are there from before."""

    def note(self, text: str) -> None:
        """Something the user should know."""

    def stepped(self, running: list[Running], capacity: int) -> None:
        """All slots took a step."""

    def ended(self, running: Running) -> None:
        """A job ended."""


def drive(pack: Pack, source: Source, watcher: Watcher) -> None:
    """Train the source's jobs until there are none.

    A freed slot is filled before the next step. However this returns, also by an exception, the
    pack's slots are free.
    """
    running: list[Running] = []
    try:
        while True:
            while pack.free and (job := source.next()) is not None:
                running.append(Running(job, pack.admit(job.config)))
            if not running:
                return
            start = time.perf_counter()
            pack.step()
            here = [r for r in running if r.slot.step in source.rungs or r.slot.done]
            if here or pack.lag >= LAG:
                pack.flush()
            for one in running:
                if one.slot.unfit:
                    one.outcome = "infeasible"
            if not pack.lag:
                for one in [r for r in running if r.outcome is None]:
                    if diverged(one.slot.losses, pack.task.chance):
                        one.outcome = "diverged"
            here = [one for one in here if one.outcome is None]
            if here:
                source.reached(here)
            share = (time.perf_counter() - start) / len(running)
            for one in running:
                one.seconds += share
            watcher.stepped(running, pack.capacity)
            for one in [r for r in running if r.outcome is not None]:
                source.ended(one)
                watcher.ended(one)
                pack.evict(one.slot)
                running.remove(one)
    finally:
        for one in running:
            pack.evict(one.slot)


def diverged(losses: list[float], chance: float) -> bool:
    """Tell whether a training has gone wrong: no number, or far worse than its own start.

    Args:
        losses: of each step so far.
        chance: loss of a model that knows nothing; losses below twice it are never far worse.
    """
    if not math.isfinite(losses[-1]):
        return True
    if len(losses) < 2 * WINDOW:
        return False
    start = max(sum(losses[:WINDOW]) / WINDOW, chance)
    return sum(losses[-WINDOW:]) / WINDOW > DIVERGED_FACTOR * start
