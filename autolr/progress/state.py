"""How far a search is, for those who look at it: here, or from another process through the run folder."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import psutil
from pydantic import ValidationError

from autolr import display
from autolr.errors import RunError
from autolr.progress.callbacks import Callback
from autolr.progress.jobs import Running
from autolr.rundir.folder import RunFolder
from autolr.rundir.liveness import process_is_there
from autolr.schema import yaml_io
from autolr.schema.yaml_io import Document

if TYPE_CHECKING:
    import torch

    from autolr.progress.resources import Recorder, Training

# Losses of a slot that are kept for its line, and seconds between writes.
CURVE, EVERY = 200, 1.0
NOTES = 20

Ended = Literal["finished", "stopped"]


class SlotState(Document):
    """A training that is under way.

    Attributes:
        begun: the step at which it went on with what a trial had begun.
    """

    label: str
    candidate: str
    step: int
    steps: int
    begun: int = 0
    losses: list[float]
    score: float | None = None


class Best(Document):
    """The best that has finished."""

    score: float
    candidate: str


class State(Document):
    """A search at a moment.

    Attributes:
        before: jobs of the phase that were there when it began.
        started, updated: seconds since 1970, of the phase and of this state.
        ended: how the search has ended; None: it still runs.
        host, pid, born: the process that searches, and when it was started.
    """

    phase: str = ""
    total: int = 0
    before: int = 0
    done: int = 0
    outcomes: dict[str, int] = {}
    best: Best | None = None
    slots: list[SlotState] = []
    capacity: int = 0
    notes: list[str] = []
    started: float = 0.0
    updated: float = 0.0
    ended: Ended | None = None
    host: str = ""
    pid: int = 0
    born: float = 0.0

    def summary(self) -> str:
        """Return how far the phase is."""
        if not self.phase:
            return self.ended or "preparation"
        parts = [f"{self.phase} {self.done}/{self.total}"]
        parts += [
            f"{self.outcomes[name]} {name}"
            for name in ("pruned", "diverged", "infeasible")
            if self.outcomes.get(name)
        ]
        if self.best is not None:
            parts.append(f"best {display.loss(self.best.score)} ({self.best.candidate})")
        left = self.time_left()
        if left is not None and self.ended is None:
            parts.append(f"{left / 60:.1f} min left" if left >= 60 else f"{left:.0f} s left")
        return ", ".join(parts)

    def time_left(self) -> float | None:
        """Estimate the seconds to the end of the phase from its pace so far."""
        if self.updated < self.started:
            return None  # the clock was set back
        progress = (
            self.done - self.before + sum((slot.step - slot.begun) / (slot.steps - slot.begun) for slot in self.slots)
        )
        if progress < 0.5:
            return None
        return (self.updated - self.started) / progress * max(0.0, self.total - self.before - progress)

    def is_alive(self) -> bool | None:
        """Return True if the process that searches is there; None: it runs on another machine."""
        if self.host != socket.gethostname():
            return None
        return process_is_there(self.pid, self.born)


class Progress(Callback):
    """Keeps the state of a search."""

    def __init__(self) -> None:
        self.state = State()
        self._running: list[Running] = []
        self._capacity = 0

    def phase(self, name: str, total: int, done: int) -> None:
        """Start counting anew."""
        self.state = State(
            phase=name, total=total, before=done, done=done, notes=self.state.notes, started=time.time()
        )
        self._running = []

    def note(self, text: str) -> None:
        """Keep a note."""
        self.state = self.state.model_copy(update={"notes": [*self.state.notes, text][-NOTES:]})

    def stepped(self, running: list[Running], capacity: int) -> None:
        """Remember who is under way."""
        self._running, self._capacity = list(running), capacity

    def ended(self, running: Running) -> None:
        """Count a job."""
        self._running = [one for one in self._running if one is not running]
        state, score = self.state, running.score
        outcomes = {**state.outcomes, str(running.outcome): state.outcomes.get(str(running.outcome), 0) + 1}
        best = state.best
        if running.outcome == "finished" and score is not None and (best is None or score < best.score):
            best = Best(score=score, candidate=running.job.candidate.describe())
        self.state = state.model_copy(update={"done": state.done + 1, "outcomes": outcomes, "best": best})

    def now(self) -> State:
        """Return the state with the slots as they stand."""
        slots = [_slot(one) for one in self._running]
        self.state = self.state.model_copy(
            update={"slots": slots, "capacity": self._capacity, "updated": time.time()}
        )
        return self.state


class StateFile(Progress):
    """Writes the state to the run folder, at most once a second.

    Args:
        path: `live.json` of the run folder.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._written = 0.0
        self._own = {
            "host": socket.gethostname(),
            "pid": psutil.Process().pid,
            "born": psutil.Process().create_time(),
        }

    def phase(self, name: str, total: int, done: int) -> None:
        """Start counting anew."""
        super().phase(name, total, done)
        self.write()

    def note(self, text: str) -> None:
        """Keep a note; what is there before the first phase is worth a look as well."""
        super().note(text)
        self.write()

    def stepped(self, running: list[Running], capacity: int) -> None:
        """Write how far all are, if it is time."""
        super().stepped(running, capacity)
        if time.monotonic() - self._written > EVERY:
            self.write()

    def write(self, ended: Ended | None = None) -> None:
        """Write the state."""
        self._written = time.monotonic()
        state = self.now().model_copy(update={**self._own, "ended": ended})
        yaml_io.write_text(self.path, state.model_dump_json() + "\n", durable=False)


class ResourceWatcher(Callback):
    """Hands what a pack does to a recorder of resources."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self._places: dict[int, int] = {}

    def phase(self, name: str, total: int, done: int) -> None:
        """Begin a phase."""
        self.recorder.phase(name)
        self._places = {}

    def stepped(self, running: list[Running], capacity: int) -> None:
        """Sample, if it is time."""
        for one in running:
            self._place(one)
        if self.recorder.due:
            self.recorder.sample([self._training(one) for one in running])

    def ended(self, running: Running) -> None:
        """Note what a training has taken in all."""
        self.recorder.note(self._training(running)._replace(ended=True))
        self._places.pop(id(running), None)

    def _training(self, one: Running) -> Training:
        from autolr.progress.resources import Training

        return Training(self._place(one), one.job.label, one.slot.step, one.trained_tokens, round(one.seconds, 3))

    def _place(self, one: Running) -> int:
        """Return the slot's number: the lowest that was free when the training began."""
        if id(one) not in self._places:
            taken = set(self._places.values())
            self._places[id(one)] = next(n for n in range(len(taken) + 1) if n not in taken)
        return self._places[id(one)]


class Callbacks(Callback):
    """Several callbacks as one."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self.callbacks = callbacks

    def phase(self, name: str, total: int, done: int) -> None:
        """Tell all that a phase begins."""
        for callback in self.callbacks:
            callback.phase(name, total, done)

    def note(self, text: str) -> None:
        """Tell all something."""
        for callback in self.callbacks:
            callback.note(text)

    def stepped(self, running: list[Running], capacity: int) -> None:
        """Tell all of a step."""
        for callback in self.callbacks:
            callback.stepped(running, capacity)

    def ended(self, running: Running) -> None:
        """Tell all that a job ended."""
        for callback in self.callbacks:
            callback.ended(running)

    def looked(self, state: object) -> None:
        """Tell all how far the workers are."""
        for callback in self.callbacks:
            callback.looked(state)


@contextmanager
def observed(
    folder: RunFolder, device: torch.device, callback: Callback | None, worker: str | None = None
) -> Iterator[Callback]:
    """Return a callback that keeps `live.json` and `resources.parquet` of a folder, and tells another one as well.

    Args:
        folder: the run folder.
        device: that is sampled.
        callback: is told as well.
        worker: name of one of several workers; its files lie in `workers/`.
    """
    from autolr.progress.resources import Recorder

    if worker is not None:
        folder.workers.mkdir(parents=True, exist_ok=True)
    state = StateFile(folder.live if worker is None else folder.workers / f"{worker}.json")
    recorder = Recorder(folder.resources if worker is None else folder.workers / f"{worker}.parquet", device)
    others = [callback] if callback else []
    ended: Ended = "stopped"
    try:
        yield Callbacks([state, ResourceWatcher(recorder), *others])
        ended = "finished"
    finally:
        if state.state.phase or state.state.notes:
            state.write(ended)
        if state.state.phase:
            recorder.write()


def read_state(folder: RunFolder, path: Path | None = None) -> State:
    """Return how far the search of a folder is, or one of its workers, which writes to `path`.

    Raises:
        RunError: no search has begun there, or an older AutoLR's.
    """
    try:
        return State.model_validate_json((path or folder.live).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(
            f"{folder.path}: no search that can be watched has begun here (it has no {folder.live.name}); give the "
            "--out of a search"
        ) from None
    except (OSError, ValidationError) as error:
        raise RunError(f"{path or folder.live}: cannot be read: {str(error).splitlines()[0]}") from None


def _slot(one: Running) -> SlotState:
    losses = one.slot.losses
    stride = -(-len(losses) // CURVE) or 1
    kept = [float(f"{loss:.4g}") for loss in losses[::stride] if loss == loss and abs(loss) != float("inf")]
    return SlotState(
        label=one.job.label,
        candidate=one.job.candidate.describe(),
        step=one.slot.step,
        steps=one.slot.config.length,
        begun=one.begun,
        losses=kept,
        score=one.score,
    )
