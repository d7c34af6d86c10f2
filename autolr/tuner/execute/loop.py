"""The loop that keeps a pack busy: admit, step, report at rungs, end, refill.

A worker's clock counts the steps it has taken. A search whose process was killed resumes from the checkpoints of its
jobs, each of which tells the clock of its time: the earliest is stepped alone until the next joins, and so on; slots
of jobs that had ended are filled when the clock is where it was then. Between its last checkpoint and the kill
nothing was decided on a job that goes on, or it would have a later one; so all decisions that follow fall in the
order in which they would have fallen.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Protocol

from autolr.divergence import diverged
from autolr.progress.callbacks import Callback
from autolr.progress.jobs import Job, Running

if TYPE_CHECKING:
    from autolr.pack.pack import Pack

# Losses are looked at after at most so many steps: to look at each would make a GPU wait.
LAG = 8
# Seconds between questions for a job where there was none: another worker may leave one behind.
ASK_AGAIN = 1.0


class CheckpointStore:
    """Keeps how far jobs are. This one keeps nothing."""

    due = False

    def clock(self, job: Job) -> int | None:
        """Return this worker's clock when it kept a job; None: it did not."""
        return None

    def save_all(self, pack: Pack, running: list[Running], clock: int) -> None:
        """Keep all that are under way."""

    def save(self, pack: Pack, one: Running, clock: int) -> None:
        """Keep one."""

    def restore(self, pack: Pack, job: Job) -> Running:
        """Start a job in a free slot, from what was kept of it."""
        return Running(job, pack.admit(job.config))

    def drop(self, job: Job) -> None:
        """Forget a job."""


class Source(Protocol):
    """Where jobs come from and where their results go.

    Attributes:
        rungs: steps at which jobs are scored and decided on, and their checkpoints written.
        save_every: steps between checkpoints of a job that has no rungs for so long; 0: the clock on the wall tells.
        clock: steps this worker has taken; the loop keeps it up to date.
    """

    rungs: tuple[int, ...]
    save_every: int = 0
    clock: int = 0

    def resumed(self, keeper: CheckpointStore) -> list[tuple[int, Job | None]]:
        """Return the jobs that this worker left under way in an earlier sitting, and its clock when they join.

        No job, but a clock: before then no slot is filled, since that of a job that ended then is the next.

        Args:
            keeper: knows how far they were.
        """
        return []

    def waiting(self) -> bool:
        """Return True if other workers have jobs under way, which they might leave behind."""
        return False

    def next(self) -> Job | None:
        """Return the next job, or None when there is none now or ever."""

    def reached(self, running: list[Running]) -> None:
        """Score all jobs that reached a rung or their end in this step, and decide on each."""

    def ended(self, running: Running) -> bool | None:
        """Keep the result of a job; its slot still holds its weights. False: it had become another worker's."""

    def is_beginning(self, running: Running) -> bool:
        """Return True if a job that has ended may be the beginning of another, which would go on from its end."""
        return False


def drive(pack: Pack, source: Source, callback: Callback, keeper: CheckpointStore | None = None) -> None:
    """Train the source's jobs until there are none, here or with other workers.

    A freed slot is filled before the next step. However this returns, also by an exception, the
    pack's slots are free.
    """
    keeper = keeper or CheckpointStore()
    running: list[Running] = []
    late = sorted(source.resumed(keeper), key=lambda entry: entry[0])
    source.clock = late[0][0] if late else 0
    asked = -math.inf  # when there was no job
    try:
        while True:
            while late and late[0][0] <= source.clock and pack.free:
                if (job := late.pop(0)[1]) is not None:
                    running.append(keeper.restore(pack, job))
            while not late and pack.free and time.monotonic() - asked > ASK_AGAIN:
                job = source.next()
                if job is None:
                    asked = time.monotonic()
                else:
                    running.append(keeper.restore(pack, job))
            if not running and late:
                source.clock = late[0][0]
                continue
            if not running:
                over = not source.waiting()
                if (job := source.next()) is not None:
                    running.append(keeper.restore(pack, job))
                elif over:
                    return
                else:
                    time.sleep(ASK_AGAIN / 2)
                    continue
            if _step(pack, source, running, keeper):
                asked = -math.inf
            callback.stepped(running, pack.capacity)
            for one in [r for r in running if r.outcome is not None]:
                if source.ended(one) is not False:
                    callback.ended(one)
                    if source.is_beginning(one):
                        keeper.save(pack, one, source.clock)
                    else:
                        keeper.drop(one.job)
                pack.evict(one.slot)
                running.remove(one)
            if keeper.due:
                pack.flush()
                keeper.save_all(pack, running, source.clock)
    finally:
        for one in running:
            pack.evict(one.slot)


def _step(pack: Pack, source: Source, running: list[Running], keeper: CheckpointStore) -> bool:
    """Take a step in all slots and decide on those that reached a rung; tell whether any has ended."""
    start = time.perf_counter()
    pack.step()
    source.clock += 1
    here = [r for r in running if r.slot.step in source.rungs or r.slot.done]
    kept = [r for r in running if r in here or (source.save_every and r.slot.step % source.save_every == 0)]
    if kept or pack.lag >= LAG or keeper.due:
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
    for one in kept:
        if one.outcome is None:
            keeper.save(pack, one, source.clock)
    return any(one.outcome is not None for one in running)
