"""Several workers on one search: who starts them, watches them, and puts another in the place of one that died."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch

from autolr.errors import AutoLRError, RunError
from autolr.progress.callbacks import Callback
from autolr.progress.state import Ended as StateEnded
from autolr.progress.state import State, StateFile, read_state
from autolr.rundir import records
from autolr.rundir.folder import RunFolder
from autolr.rundir.records import TRIALS

# Seconds between looks at the workers, and for which one that is told to end may take to do so.
LOOK, GRACE = 0.5, 15.0
# Workers that may end unexpectedly, one after another, while nothing gets done.
HOPELESS = 8
# Names the GPUs that a process sees, by number or by id.
VISIBLE = "CUDA_VISIBLE_DEVICES"
# Lines of what a worker has said last that are shown when it fails.
LAST = 15


@dataclass(frozen=True)
class Order:
    """What each worker is told.

    Attributes:
        folder: the run folder.
        devices: of the workers, one each.
        allow_code: whether the study's metric may be code.
        trust_remote_code: whether Python code that comes with the model may run.
        report_to: trackers that trials are reported to.
    """

    folder: Path
    devices: Sequence[str]
    allow_code: bool = False
    trust_remote_code: bool = False
    report_to: Sequence[str] = ()


@dataclass(frozen=True)
class Ended:
    """How a worker has ended.

    Attributes:
        done: the search is through.
        fault: what is wrong with the input, in the worker's words; None: nothing.
        said: its last words.
    """

    done: bool
    fault: str | None = None
    said: str = ""


class WorkerPool(Protocol):
    """Workers, by their places."""

    @property
    def size(self) -> int:
        """How many workers there are."""

    def start(self, place: int) -> None:
        """Start a worker, a new one where there was one."""

    def ended(self, place: int) -> Ended | None:
        """Tell how a worker has ended; None: it is at work."""

    def stop(self) -> None:
        """End all."""


@dataclass
class LocalPool:
    """One process on this machine for each device."""

    order: Order
    _processes: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """How many workers there are."""
        return len(self.order.devices)

    def start(self, place: int) -> None:
        """Start a process; what it says goes to the run folder."""
        order = self.order
        command = [sys.executable, "-m", "autolr", "worker", str(order.folder), "--plain"]
        device, environment = _alone(order.devices[place], os.environ)
        command += ["--device", device, "--parent", str(os.getpid())]
        command += ["--allow-code"] if order.allow_code else []
        command += ["--trust-remote-code"] if order.trust_remote_code else []
        command += [word for name in order.report_to for word in ("--report-to", name)]
        if device == "cpu":  # they share the cores
            environment["OMP_NUM_THREADS"] = str(max(1, torch.get_num_threads() // self.size))
        with self._log(place).open("ab") as log:
            self._processes[place] = subprocess.Popen(  # noqa: S603 (our own command)
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment
            )

    def ended(self, place: int) -> Ended | None:
        """Tell how a process has ended."""
        code = self._processes[place].poll()
        if code is None:
            return None
        said = self._log(place).read_text(encoding="utf-8", errors="replace").splitlines()[-LAST:]
        fault = None
        if code == 2:
            first = max((at for at, line in enumerate(said) if line.startswith("error: ")), default=0)
            fault = "\n".join(said[first:]).removeprefix("error: ")
        return Ended(code == 0, fault, f"{_how(code)}; its log is {self._log(place)}")

    def stop(self) -> None:
        """End all processes."""
        for process in self._processes.values():
            if process.poll() is None:
                process.terminate()
        until = time.monotonic() + GRACE
        for process in self._processes.values():
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _log(self, place: int) -> Path:
        return RunFolder(self.order.folder).workers / f"worker-{place}.log"


def _alone(device: str, environment: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """Return what a worker calls its device, and an environment in which it sees no other GPU.

    A GPU that is in sight may be used by a library that is not told which one to take, and loses memory by it.
    """
    if not device.startswith("cuda:"):
        return device, dict(environment)
    number = int(device.partition(":")[2])
    seen = [name.strip() for name in environment.get(VISIBLE, "").split(",") if name.strip()]
    return "cuda:0", {**environment, VISIBLE: seen[number] if seen else str(number)}


def devices(count: int, device: str | None) -> list[str]:
    """Return the devices of so many workers of this machine.

    Raises:
        AutoLRError: there are fewer GPUs.
    """
    if count < 1:
        raise AutoLRError(f"--workers {count}: must be at least 1")
    if device is not None and device not in ("cpu", "cuda", "auto"):
        raise AutoLRError(
            f"--device {device}: with --workers {count}, each worker has its own device. Leave --device out."
        )
    if device == "cpu" or not torch.cuda.is_available():
        return ["cpu"] * count
    if count > torch.cuda.device_count():
        raise AutoLRError(
            f"--workers {count}: this machine has {torch.cuda.device_count()} GPUs, one for each worker; give fewer"
        )
    return [f"cuda:{number}" for number in range(count)]


def coordinate(fleet: WorkerPool, folder: RunFolder, callback: Callback) -> None:
    """Start workers and wait until they are through; put another in the place of each that dies.

    Raises:
        RunError: the input is at fault, or workers die and nothing gets done.
    """
    together = MergedState(folder, callback)
    through: set[int] = set()
    deaths, before = 0, together.progress()
    ended: StateEnded = "stopped"
    together.write()
    try:
        for place in range(fleet.size):
            fleet.start(place)
        while len(through) < fleet.size:
            time.sleep(LOOK)
            for place in set(range(fleet.size)) - through:
                end = fleet.ended(place)
                if end is None:
                    continue
                if end.fault is not None:
                    raise RunError(end.fault)
                if end.done:
                    through.add(place)
                    continue
                now = together.progress()
                deaths, before = (1 if now != before else deaths + 1), now
                if deaths > HOPELESS:
                    raise RunError(f"{folder.path}: {deaths} workers have died without finishing a job: {end.said}")
                callback.note(f"worker {place} died ({end.said}); a new worker takes over its trials")
                fleet.start(place)
            together.look()
        ended = "finished"
    finally:
        fleet.stop()
        together.write(ended)


class MergedState(StateFile):
    """How far a search is, from what its workers write of themselves.

    Args:
        folder: the run folder.
        callback: is told.
    """

    def __init__(self, folder: RunFolder, callback: Callback) -> None:
        super().__init__(folder.live)
        self.folder = folder
        self.callback = callback

    def look(self) -> None:
        """Read how far the workers are, write it down and tell it."""
        self.state = self._gathered()
        if self.state.phase:
            self.write()
            self.callback.looked(self.state)

    def now(self) -> State:
        """Return the state as it was last gathered."""
        return self.state

    def progress(self) -> tuple[int, ...]:
        """Return what changes whenever something gets done."""
        folder = self.folder
        files = [folder.curves, folder.trainings, *folder.slots.glob("*.safetensors")]
        found = []
        for path in files:
            try:
                found.append(path.stat().st_mtime_ns)
            except OSError:
                continue
        return tuple(sorted(found))

    def _gathered(self) -> State:
        there = []
        for path in sorted(self.folder.workers.glob("*.json")):
            try:
                there.append(read_state(self.folder, path))
            except RunError:
                continue
        there = [state for state in there if state.phase]
        if not there:
            return self.state
        # A worker enters a stage when the one before is through.
        phase = max(there, key=lambda state: state.started).phase
        those = [state for state in there if state.phase == phase]
        at_work = [state for state in those if state.ended is None and state.is_alive() is not False]
        outcomes, best = self._outcomes(phase), [state.best for state in those if state.best is not None]
        return State(
            phase=phase,
            total=max(state.total for state in those),
            before=min(state.before for state in those),
            done=sum(outcomes.values()),
            outcomes=outcomes,
            best=min(best, key=lambda one: one.score, default=None),
            slots=[slot for state in at_work for slot in state.slots],
            capacity=sum(state.capacity for state in at_work),
            notes=list(dict.fromkeys(note for state in there for note in state.notes)),
            started=min(state.started for state in those),
            updated=time.time(),
        )

    def _outcomes(self, phase: str) -> dict[str, int]:
        """Count what has ended, by outcome, from the records."""
        if phase == TRIALS:
            ended = {line.get("number"): str(line.get("outcome")) for line in records.lines(self.folder.curves)}
            found = list(ended.values())
        else:
            lines = [line for line in records.lines(self.folder.trainings) if line.get("stage") == phase]
            found = ["diverged" if line.get("diverged") else "finished" for line in lines]
        return {name: found.count(name) for name in dict.fromkeys(found)}


def _how(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
