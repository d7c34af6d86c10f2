"""A search from study to recipe: prepare, search, confirm, write down."""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from autolr.candidate import Candidate
from autolr.data import cache
from autolr.errors import AutoLRError, RunError
from autolr.model.device import choose_device, devices_of
from autolr.pack.pack import Pack
from autolr.recipe import Rates, Recipe
from autolr.search import machine, notebook, provenance, records, unchanged, verdict
from autolr.search.checkpoints import Checkpoints
from autolr.search.claims import MAIN, Claims
from autolr.search.cluster import RayFleet
from autolr.search.confirm import (
    Confirmation,
    Semifinals,
    confirmation_jobs,
    final_jobs,
    missing,
    semifinal_jobs,
)
from autolr.search.contest import Contest
from autolr.search.folder import RunFolder
from autolr.search.loop import Job, Running, Watcher, drive
from autolr.search.machine import Machine
from autolr.search.records import RepeatRecord, SemifinalRecord
from autolr.search.result import Phase, SearchResult
from autolr.search.setting import Setting, read_setting
from autolr.search.state import Watchers, observed
from autolr.search.trackers import tracker
from autolr.search.trials import Trials
from autolr.search.unchanged import Fingerprints
from autolr.search.workers import Fleet, LocalFleet, Order, coordinate, devices
from autolr.study import Study

# Attribute of the Optuna study: seconds that the search has taken, those of interrupted sittings too.
SECONDS = "seconds"
# Exit code of a worker whose search is gone.
EX_ORPHANED = 75
# Seconds between lines of the bill.
BILL_EVERY = 60.0


def search(
    study: Study,
    out: str | Path | None = None,
    *,
    device: str | None = None,
    watcher: Watcher | None = None,
    allow_code: bool = False,
    trust_remote_code: bool = False,
    workers: int | str = 1,
    ray_address: str | None = None,
    storage: str | None = None,
    report_to: Sequence[str] = (),
) -> SearchResult:
    """Search a study's space and confirm the best.

    A folder that holds the same study already is gone on with: trials that ended count, those under way go on from
    their last checkpoints, repeats of the confirmation that are there are not repeated, and a finished search is
    returned as it is.

    Args:
        study: what to search.
        out: the run folder; None: `runs/<name>-<identity>`.
        device: such as `cpu` or `cuda:0`; None: the GPU where there is one.
        watcher: is told what happens; None: in a notebook a live view, elsewhere nobody.
        allow_code: whether the study's metric may be code of your own, `my_module:function`.
        trust_remote_code: whether Python code that comes with the model may run, where the study asks for it.
        workers: processes of this machine, each with a device of its own; or `ray` or `ray:4`, actors of a cluster.
        ray_address: of the cluster; None: the one this machine belongs to, or a new one on it.
        storage: database that holds the trials, such as `postgresql://me@host/autolr`; None: the run folder does.
        report_to: trackers that several workers report to; that of a single one is the watcher's.

    Returns:
        The result, with its recipe.

    Raises:
        AutoLRError: input is at fault; nothing has been trained.
        KeyboardInterrupt: passed on; what ended before is kept.
    """
    folder = RunFolder(out if out is not None else default_folder(study))
    if workers != 1:
        order = Order(
            folder.path.absolute(),
            (),
            allow_code=allow_code,
            trust_remote_code=trust_remote_code,
            report_to=report_to,
        )
        _together(study, folder, watcher or notebook.live(), order, workers, ray_address, device, storage)
        return SearchResult.load(folder.path)
    where = choose_device(device)
    setting = read_setting(study, where, allow_code=allow_code, trust_remote_code=trust_remote_code)
    with folder.lock(), observed(folder, where, watcher or notebook.live()) as watcher:
        folder.open(study, storage)
        if study.search.length != "auto" and setting.length < study.search.length:
            watcher.note(f"trials are {setting.length} steps, not {study.search.length}: the full run has no more")
        for line in setting.data.summary:
            watcher.note(line)
        work(setting, folder, watcher, MAIN)
        shutil.rmtree(folder.slots, ignore_errors=True)
    return SearchResult.load(folder.path)


def _together(
    study: Study,
    folder: RunFolder,
    watcher: Watcher | None,
    order: Order,
    workers: int | str,
    ray_address: str | None,
    device: str | None,
    storage: str | None,
) -> None:
    """Let several workers search; this process trains nothing."""
    kind, _, count = str(workers).partition(":")
    if kind == "ray":
        if count and not count.isdecimal():
            raise AutoLRError(f"--workers {workers}: give a number, ray, or ray and a number such as ray:4")
        fleet: Fleet = RayFleet(replace(order, devices=["ray"] * int(count or 0)), _join_ordered, ray_address)
    elif kind.isdecimal() and not count:
        fleet = LocalFleet(replace(order, devices=devices(int(kind), device)))
    else:
        raise AutoLRError(f"--workers {workers}: give a number, ray, or ray and a number such as ray:4")
    with folder.lock():
        folder.open(study, storage)
        shutil.rmtree(folder.workers, ignore_errors=True)
        folder.workers.mkdir()
        coordinate(fleet, folder, watcher or Watcher())
        shutil.rmtree(folder.slots, ignore_errors=True)


def join(
    folder: RunFolder,
    *,
    storage: str | None = None,
    device: str | None = None,
    watcher: Watcher | None = None,
    allow_code: bool = False,
    trust_remote_code: bool = False,
    parent: int | None = None,
) -> None:
    """Work on a search that has begun, until it is through.

    Args:
        folder: the run folder, which all workers see.
        storage: database that holds the trials, where its address has a password.
        device: such as `cpu` or `cuda:0`; None: the GPU where there is one.
        watcher: is told what happens here.
        allow_code: whether the study's metric may be code of your own.
        trust_remote_code: whether Python code that comes with the model may run, where the study asks for it.
        parent: process that started this one; when it is gone, so is this.

    Raises:
        AutoLRError: the search cannot be joined.
    """
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    if not folder.study.is_file():
        raise RunError(f"{folder.path}: no search has begun here; begin it with: autolr search --out {folder.path}")
    study, where = Study.load(folder.study), choose_device(device)
    if storage is not None:
        folder.use(storage, study)
    setting = read_setting(study, where, allow_code=allow_code, trust_remote_code=trust_remote_code)
    name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
    with observed(folder, where, watcher, name) as told:
        work(setting, folder, told, name)


def wait_for(folder: RunFolder, seconds: float) -> None:
    """Wait until a search has begun in a folder, but no longer than so many seconds."""
    until = time.monotonic() + seconds
    while not (folder.study.is_file() and folder.has_trials) and time.monotonic() < until:
        time.sleep(1.0)


def _join_ordered(order: Order, device: str | None) -> None:
    """Join as an actor of a cluster."""
    trackers = [tracker(name, RunFolder(order.folder), order.folder.name) for name in order.report_to]
    join(
        RunFolder(order.folder),
        device=device,
        watcher=Watchers(trackers),
        allow_code=order.allow_code,
        trust_remote_code=order.trust_remote_code,
    )


def _end_with(parent: int) -> None:
    """End this process at once when the one that started it is gone; all that is needed to go on is on the disk."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(EX_ORPHANED)


def default_folder(study: Study) -> Path:
    """Return the folder a search uses when none is given: the same study, the same folder."""
    return Path("runs") / f"{study.name}-{study.identity()}"


def work(setting: Setting, folder: RunFolder, watcher: Watcher, name: str) -> None:
    """Do a worker's part of a search: all that no other worker does, until there is a recipe.

    Args:
        setting: what is searched.
        folder: the run folder, which all workers see.
        watcher: is told what happens.
        name: of the worker. One that comes back under its name goes on with what it left behind.

    Raises:
        RunError: data, model or tokens are not those of the search, no trial gave a score, or a storage does not
            answer.
    """
    claims = Claims(folder, folder.optuna(setting.study), name)
    with claims.working():
        now = Fingerprints.of(setting)
        if not folder.machine.is_file():
            watcher.note("trying what fits this machine and pays, with the longest texts")
        with claims.lock():
            for line in (unchanged.check(now, setting.study, folder), *folder.mend()):
                if line:
                    watcher.note(line)
            found = machine.fit(setting, folder)
        watcher.note(found.describe())
        task = _Task(setting, folder, claims, watcher, found)
        _search(task)
        _confirm(task)
        with claims.lock():
            machine.keep(machine.used(found, devices_of(setting.backbone.model)), folder)
            _recipe(setting, task.contest()).save(folder.recipe)


@dataclass(frozen=True)
class _Task:
    """What a worker works on, and with."""

    setting: Setting
    folder: RunFolder
    claims: Claims
    watcher: Watcher
    found: Machine

    def contest(self) -> Contest:
        """Return the contest as the folder tells it now."""
        return Contest(SearchResult.load(self.folder.path), self.setting.study, self.setting.space)

    def drive(self, name: str, pack: Pack, source: Trials | Confirmation) -> None:
        """Train a source's jobs, and write down what that takes, also when it is interrupted."""
        bill = _Bill(self.folder, self.claims, name, source)
        keeper = Checkpoints(self.folder.slots, self.watcher, self.claims.me)
        try:
            drive(pack, source, Watchers([self.watcher, bill]), keeper)
        finally:
            bill.write()


class _Bill(Watcher):
    """Writes down from time to time what a phase has taken since it last did."""

    def __init__(self, folder: RunFolder, claims: Claims, name: str, source: Trials | Confirmation) -> None:
        self.folder = folder
        self.claims = claims
        self.name = name
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
            phase=self.name,
            seconds=round(now - self._written, 3),
            trained_tokens=source.trained_tokens - self._trained,
            evaluated_tokens=source.evaluated_tokens - self._evaluated,
        )
        self._written, self._trained, self._evaluated = now, source.trained_tokens, source.evaluated_tokens
        with self.claims.lock():
            records.append(self.folder.phases, phase)
            if self.name == "search":
                spent = self._before + now - self._started
                study = self.claims.study
                study.set_user_attr(SECONDS, max(spent, float(study.user_attrs.get(SECONDS, 0.0))))


def _search(task: _Task) -> None:
    setting, folder, found = task.setting, task.folder, task.found
    study = setting.study
    before = SearchResult.load(folder.path)
    if len(before.ended()) >= study.budget.trials:
        return
    spent = float(task.claims.study.user_attrs.get(SECONDS, 0.0))
    with setting.pack(min(found.slots, study.budget.trials), found.passes, found.graphs) as pack:
        trials = Trials(
            study, setting.space, setting.length, folder, pack, setting.data, task.watcher, task.claims, spent
        )
        task.watcher.phase("search", study.budget.trials, len(trials.counted()))
        task.drive("search", pack, trials)


def _confirm(task: _Task) -> None:
    """Let the best go on to half, and to the end; then confirm the winner, or all finalists, and the rules."""
    setting, folder = task.setting, task.folder
    contest = task.contest()
    if not contest.contenders:
        raise RunError(
            f"{folder.path}: none of the {len(contest.result.ended())} trials gave a score, all diverged or did not "
            "fit the memory; lower space.lr_v, method.lr_head or space.rank, or give more trials"
        )
    study, space, trials = setting.study, setting.space, contest.result.trials
    # An older search that is through without semifinals keeps to that, unless it has had more trials since.
    recipe = contest.result.recipe
    judged = recipe.evidence.trials["total"] if recipe and recipe.evidence else 0
    is_through = judged == len(contest.result.ended()) and not contest.result.semifinals
    if setting.semifinal_steps and not is_through and len(contest.semifinalists) > study.search.finalists:
        jobs = semifinal_jobs(study, space, contest.semifinalists, trials, setting.semifinal_steps)
        _repeat(task, "semifinals", jobs, contest.result.semifinals, folder.semifinals, Semifinals)
        contest = task.contest()
    if setting.has_finals:
        finals = final_jobs(study, space, contest.in_the_finals, trials)
        _repeat(task, "finals", finals, contest.result.finals, folder.finals)
    else:
        _repeat_with_seeds(task, contest.contenders)
    _repeat_with_seeds(task, task.contest().confirmed)


def _repeat_with_seeds(task: _Task, candidates: dict[Candidate, str]) -> None:
    setting, folder = task.setting, task.folder
    jobs = confirmation_jobs(setting.study, setting.space, candidates, setting.length)
    _repeat(task, "confirmation", jobs, SearchResult.load(folder.path).repeats, folder.confirm)


def _repeat(
    task: _Task,
    phase: str,
    jobs: list[Job],
    done: Sequence[RepeatRecord | SemifinalRecord],
    path: Path,
    kind: type[Confirmation] = Confirmation,
) -> None:
    """Do those of a phase's jobs that are not done."""
    setting, found = task.setting, task.found
    left = missing(jobs, done)
    if not left:
        return
    with setting.pack(min(found.slots, len(jobs)), found.passes, found.graphs) as pack:
        # As often as in trials: what a kill costs is a rung's work at most.
        rungs = setting.study.search.rung_steps(setting.length)
        every = min(rungs, default=0)
        source = kind(left, path, pack, setting.data, task.claims, save_every=every, study=setting.study)
        task.watcher.phase(phase, len(jobs), len(jobs) - len(left))
        task.drive(phase, pack, source)


def _rates(setting: Setting, winner: Candidate) -> Rates:
    """Return the rates of what the model has, all-linear or not."""
    has = {site.role for site in setting.backbone.projections.of(winner.targets)} | {"head"}
    rates = {role: rate for role, rate in winner.rates(setting.space.lr_head).items() if role in has and rate > 0}
    rates_b = winner.rates_b(setting.space.max_lr_b)
    return Rates(**rates, b={role: rate for role, rate in rates_b.items() if role in has})


def _recipe(setting: Setting, contest: Contest) -> Recipe:
    study, winner = setting.study, contest.winner
    trained = sum(phase.trained_tokens for phase in contest.result.phases)
    more = verdict.at_the_end(contest.finals, winner, setting.length, setting.steps)
    return Recipe(
        name=study.name,
        model=study.model,
        trust_remote_code=study.trust_remote_code,
        model_fingerprint=setting.backbone.fingerprint(),
        data=study.data,
        data_fingerprint=setting.examples.fingerprint,
        tokenizer_fingerprint=cache.tokenizer_fingerprint(setting.backbone.tokenizer),
        tokenization=cache.TOKENIZATION,
        classes=setting.examples.classes,
        task=study.task,
        metric=setting.task.metric,
        method=study.method.model_copy(
            update={
                "lr_head": setting.space.lr_head or "auto",
                "max_lr_b": setting.space.max_lr_b,
                "kind": [winner.kind],
            }
        ),
        candidate=winner,
        rates=_rates(setting, winner),
        training=study.training,
        steps=setting.steps,
        split_seed=study.seed,
        seed=study.seed,
        evidence=contest.evidence(trained / setting.full_run_tokens, more),
        versions=provenance.versions(),
        commit=provenance.commit(),
    )
