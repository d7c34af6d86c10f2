"""A search from study to recipe: prepare, let workers do all stages, write down."""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from autolr.errors import AutoLRError, RunError
from autolr.model.device import choose_device, devices_of
from autolr.progress import notebook
from autolr.progress.callbacks import Callback
from autolr.progress.state import Callbacks, observed
from autolr.progress.trackers import tracker
from autolr.rundir.folder import RunFolder
from autolr.rundir.result import SearchResult
from autolr.schema.study import Study
from autolr.tuner import fingerprints, hardware
from autolr.tuner.engine import Engine, PackDriver
from autolr.tuner.fingerprints import Fingerprints
from autolr.tuner.recipes import build_recipe
from autolr.tuner.setting import Setting, read_setting
from autolr.tuner.work import Work
from autolr.tuner.workers.leases import MAIN, Leases
from autolr.tuner.workers.local import LocalPool, Order, WorkerPool, coordinate, devices
from autolr.tuner.workers.ray import RayFleet

# Exit code of a worker whose search is gone.
EX_ORPHANED = 75


def search(
    study: Study,
    out: str | Path | None = None,
    *,
    device: str | None = None,
    callback: Callback | None = None,
    allow_code: bool = False,
    trust_remote_code: bool = False,
    workers: int | str = 1,
    ray_address: str | None = None,
    storage: str | None = None,
    report_to: Sequence[str] = (),
) -> SearchResult:
    """Search a study's space, and compare the best with the baselines.

    If the folder holds the same study already, the search resumes: trials that ended count, those under way resume
    from their last checkpoints, trainings that are there are not repeated, and a finished search is returned as it
    is.

    Args:
        study: what to search.
        out: the run folder; None: `runs/<name>-<identity>`.
        device: such as `cpu` or `cuda:0`; None: the GPU where there is one.
        callback: is told what happens; None: in a notebook a live view, elsewhere nobody.
        allow_code: whether the study's metric may be code of your own, `my_module:function`.
        trust_remote_code: whether Python code that comes with the model may run, where the study asks for it.
        workers: processes of this machine, each with a device of its own; or `ray` or `ray:4`, actors of a cluster.
        ray_address: of the cluster; None: the one this machine belongs to, or a new one on it.
        storage: database that holds the trials, such as `postgresql://me@host/autolr`; None: the run folder does.
        report_to: trackers that several workers report to; that of a single one is the callback's.

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
        _together(study, folder, callback or notebook.live(), order, workers, ray_address, device, storage)
        return SearchResult.load(folder.path)
    where = choose_device(device)
    setting = read_setting(study, where, allow_code=allow_code, trust_remote_code=trust_remote_code)
    with folder.lock(), observed(folder, where, callback or notebook.live()) as callback:
        folder.open(study, storage)
        wanted = study.search.stages[0].to
        if wanted > setting.steps:
            callback.note(f"trials are {setting.length} steps, not {wanted}: the full run has no more")
        for line in setting.data.summary:
            callback.note(line)
        work(setting, folder, callback, MAIN)
        shutil.rmtree(folder.slots, ignore_errors=True)
    return SearchResult.load(folder.path)


def _together(
    study: Study,
    folder: RunFolder,
    callback: Callback | None,
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
        fleet: WorkerPool = RayFleet(replace(order, devices=["ray"] * int(count or 0)), _join_ordered, ray_address)
    elif kind.isdecimal() and not count:
        fleet = LocalPool(replace(order, devices=devices(int(kind), device)))
    else:
        raise AutoLRError(f"--workers {workers}: give a number, ray, or ray and a number such as ray:4")
    with folder.lock():
        folder.open(study, storage)
        shutil.rmtree(folder.workers, ignore_errors=True)
        folder.workers.mkdir()
        coordinate(fleet, folder, callback or Callback())
        shutil.rmtree(folder.slots, ignore_errors=True)


def join(
    folder: RunFolder,
    *,
    storage: str | None = None,
    device: str | None = None,
    callback: Callback | None = None,
    allow_code: bool = False,
    trust_remote_code: bool = False,
    parent: int | None = None,
) -> None:
    """Work on a search that has begun, until it is through.

    Args:
        folder: the run folder, which all workers see.
        storage: database that holds the trials, where its address has a password.
        device: such as `cpu` or `cuda:0`; None: the GPU where there is one.
        callback: is told what happens here.
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
    with observed(folder, where, callback, name) as told:
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
        callback=Callbacks(trackers),
        allow_code=order.allow_code,
        trust_remote_code=order.trust_remote_code,
    )


def _end_with(parent: int) -> None:
    """End this process at once when the one that started it is gone; all that is needed to resume is on the disk."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(EX_ORPHANED)


def default_folder(study: Study) -> Path:
    """Return the folder a search uses when none is given: the same study, the same folder."""
    return Path("runs") / f"{study.name}-{study.identity()}"


def work(setting: Setting, folder: RunFolder, callback: Callback, name: str) -> None:
    """Do a worker's part of a search: all that no other worker does, until there is a recipe.

    Args:
        setting: what is searched.
        folder: the run folder, which all workers see.
        callback: is told what happens.
        name: of the worker. One that comes back under its name resumes what it left behind.

    Raises:
        RunError: data, model or tokens are not those of the search, no trial gave a score, or a storage does not
            answer.
    """
    claims = Leases(folder, folder.optuna(setting.study), name)
    with claims.working():
        now = Fingerprints.of(setting)
        if not folder.machine.is_file():
            callback.note("trying what fits this machine and pays, with the longest texts")
        with claims.lock():
            for line in (fingerprints.check(now, setting.study, folder), *folder.mend()):
                if line:
                    callback.note(line)
            found = hardware.fit(setting, folder)
        callback.note(found.describe())
        part = Work(setting.study, setting.space, setting.stages, folder, claims, callback)
        selection = Engine(part, PackDriver(setting, found)).run()
        with claims.lock():
            hardware.keep(hardware.used(found, devices_of(setting.backbone.model)), folder)
            selection = selection.read_again()  # with what all workers have trained
            trained = sum(phase.trained_tokens for phase in selection.result.phases)
            build_recipe(selection, trained / setting.full_run_tokens, setting).save(folder.recipe)
