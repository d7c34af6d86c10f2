"""The engine of every search: successive halving over a table of stages, around packs or a function of the user's.

Idea: most candidates can be told from the best after a part of a training, so many train a little and few train on.
The steps, each of which any number of workers share:

1. Trials: a sampler proposes candidates, all of them are scored at rungs, and a pruner ends those without a chance.
2. Each stage after that promotes the best of the stage before. They resume from where they were, and train to the
   stage's end; a baseline that the stage compares trains beside them.
3. The first stage that is judged on the splits chooses the winner. The last one trains it again, and all baselines,
   with several seeds: that is what the verdict rests on.

What is recorded is never trained again, so a search that was interrupted does what is missing, stage by stage.

References: Jamieson and Talwalkar, "Non-stochastic best arm identification and hyperparameter optimization", 2016
(successive halving); Li et al., "Hyperband: a novel bandit-based approach to hyperparameter optimization", 2018.

Example, with a driver that trains nothing but a formula:

    engine = Engine(work, driver)      # work: study, space, stages, folder, claims, callback
    selection = engine.run()             # trials, then each stage of the table
    selection.winner, selection.evidence(full_runs=3.9).verdict
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

from autolr.errors import RunError
from autolr.progress.callbacks import Callback
from autolr.progress.jobs import Job, Running
from autolr.progress.state import Callbacks
from autolr.rundir import records
from autolr.rundir.folder import RunFolder
from autolr.rundir.records import Phase
from autolr.tuner.execute.checkpoints import Checkpoints
from autolr.tuner.execute.loop import Source, drive
from autolr.tuner.execute.scoring import EndScorer, PackScorer, RungScorer, SubsetScorer
from autolr.tuner.execute.trainings import Trainings
from autolr.tuner.execute.trials import Trials
from autolr.tuner.hardware import Machine
from autolr.tuner.judge.selection import Selection
from autolr.tuner.propose.optuna_trials import OptunaTrials
from autolr.tuner.setting import Setting
from autolr.tuner.stages import Stage, resumable
from autolr.tuner.work import Work
from autolr.tuner.workers.leases import Leases

# Attribute of the Optuna study: seconds that the trials have taken, those of interrupted sittings too.
SECONDS = "seconds"
# Seconds between lines of the bill.
BILL_EVERY = 60.0


@dataclass(frozen=True)
class Room:
    """Where the trainings of one stage happen.

    Attributes:
        rungs: scores trials.
        ends: scores trainings that are through.
        drive: trains a source's jobs until there are none, here or with other workers.
    """

    rungs: RungScorer
    ends: EndScorer
    drive: Callable[[Source, Callback], None]


class Driver(Protocol):
    """Trains the jobs of a stage: in packs, or one after another by a function of the user's."""

    def room(self, work: Work, stage: Stage, count: int) -> AbstractContextManager[Room]:
        """Return where `count` trainings of a stage happen."""


class Engine:
    """Runs a worker's part of all stages; see the module.

    Args:
        work: the search.
        driver: trains its jobs.
    """

    def __init__(self, work: Work, driver: Driver) -> None:
        self.work = work
        self.driver = driver

    def run(self) -> Selection:
        """Do what no other worker does of each stage, until all are through.

        Raises:
            RunError: no trial gave a score, or a storage does not answer.
        """
        work = self.work
        self._try()
        selection = Selection.read(work)
        if not selection.tried:
            raise RunError(
                f"{work.folder.path}: none of the {len(selection.result.ended())} trials gave a score: all diverged "
                "or did not fit the memory. Lower space.lr_v, method.lr_head or space.rank, leave out examples "
                "without a finite loss, or give more trials"
            )
        for stage in work.stages[1:]:
            # Who wins may add to who is compared: what is missing is asked for again.
            while left := selection.missing(stage):
                self._train(stage, left, selection)
                selection = selection.read_again()
        return selection

    def _try(self) -> None:
        work, stage = self.work, self.work.stages[0]
        done = len(OptunaTrials(work.claims, work.space).counted())
        if done >= work.study.budget.trials:
            return
        spent = float(work.claims.study.user_attrs.get(SECONDS, 0.0))
        with self.driver.room(work, stage, work.study.budget.trials) as room:
            trials = Trials(work, room.rungs, spent)
            work.callback.phase(stage.name, work.study.budget.trials, done)
            self._drive(stage, room, trials)

    def _train(self, stage: Stage, left: list[Job], selection: Selection) -> None:
        work = self.work
        everyone = stage.seeds * len(selection.entrants(stage, selection.winner))
        with self.driver.room(work, stage, everyone) as room:
            # Checkpoints are written as often as in trials: what a kill costs is a rung's work at most.
            every = min(work.study.search.rung_steps(work.stages[0].steps), default=0)
            source = Trainings(
                left,
                work.folder.trainings,
                room.ends,
                work.claims,
                stage,
                save_every=every,
                resumed_later=stage.seeds == 1 and resumable(work.stages, stage.steps) > 0,
            )
            work.callback.phase(stage.name, everyone, everyone - len(left))
            self._drive(stage, room, source)

    def _drive(self, stage: Stage, room: Room, source: Trials | Trainings) -> None:
        """Train a source's jobs, and write down what that takes, also if it is interrupted."""
        bill = _Bill(self.work.folder, self.work.claims, stage, source)
        try:
            room.drive(source, Callbacks([self.work.callback, bill]))
        finally:
            bill.write()


class _Bill(Callback):
    """Writes down from time to time what a stage has taken since it last did."""

    def __init__(self, folder: RunFolder, claims: Leases, stage: Stage, source: Trials | Trainings) -> None:
        self.folder = folder
        self.claims = claims
        self.stage = stage
        self.source = source
        self._started = self._written = time.perf_counter()
        self._trained = self._evaluated = 0
        self._before = float(claims.study.user_attrs.get(SECONDS, 0.0))

    def stepped(self, running: list[Running], capacity: int) -> None:
        """Write, if it is time."""
        if time.perf_counter() - self._written > BILL_EVERY:
            self.write()

    def write(self) -> None:
        """Add a line to the bill."""
        now, source = time.perf_counter(), self.source
        phase = Phase(
            phase=self.stage.name,
            seconds=round(now - self._written, 3),
            trained_tokens=source.trained_tokens - self._trained,
            evaluated_tokens=source.evaluated_tokens - self._evaluated,
        )
        self._written, self._trained, self._evaluated = now, source.trained_tokens, source.evaluated_tokens
        with self.claims.lock():
            records.append(self.folder.phases, phase)
            if isinstance(source, Trials):
                spent = self._before + now - self._started
                study = self.claims.study
                study.set_user_attr(SECONDS, max(spent, float(study.user_attrs.get(SECONDS, 0.0))))


@dataclass(frozen=True)
class PackDriver:
    """Trains jobs in packs, many at once.

    Attributes:
        setting: model, data and space.
        found: what fits the machine and pays.
    """

    setting: Setting
    found: Machine

    @contextmanager
    def room(self, work: Work, stage: Stage, count: int) -> Iterator[Room]:
        """Return a pack for `count` trainings of a stage, and what scores them."""
        found, setting = self.found, self.setting
        with setting.pack(min(found.slots, count), found.passes, found.graphs) as pack:

            def train(source: Source, callback: Callback) -> None:
                drive(pack, source, callback, Checkpoints(work.folder.slots, work.callback, work.claims.me))

            rungs = SubsetScorer(pack, setting.data, work.study, stage.steps, work.claims)
            yield Room(rungs, PackScorer(pack, setting.data, work.study, stage), train)
