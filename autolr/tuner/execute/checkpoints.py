"""Checkpoints of trainings: whoever has them resumes where a process ended, or where a trial did."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from autolr.pack.memory import is_out_of_memory
from autolr.pack.pack import Pack
from autolr.progress.callbacks import Callback
from autolr.progress.jobs import Job, Running
from autolr.schema import yaml_io
from autolr.tuner.execute.loop import CheckpointStore

# Seconds between checkpoints of all slots; and writing them takes at most this share of the time.
CHECKPOINT_INTERVAL_S, MAX_WRITING_SHARE = 30.0, 0.02
LOSSES = "losses"


class Checkpoints(CheckpointStore):
    """The checkpoints of a run folder: of each job one file, the last.

    A file holds a slot's weights, their average, its optimizer's state and its losses so far; its head says
    how far it is. The order of its batches follows from its seed. A file is there whole or not at all.

    Args:
        folder: where they lie.
        callback: is told of one that cannot be read.
        worker: who writes them.
        every: seconds between checkpoints of all slots.
    """

    def __init__(self, folder: Path, callback: Callback, worker: str, every: float | None = None) -> None:
        self.folder = folder
        self.callback = callback
        self.worker = worker
        self.every = CHECKPOINT_INTERVAL_S if every is None else every
        self._wait = self.every
        self._saved = time.monotonic()

    @property
    def due(self) -> bool:  # type: ignore[override]
        """Whether it is time for a checkpoint of all slots."""
        return time.monotonic() - self._saved >= self._wait

    def save_all(self, pack: Pack, running: list[Running], clock: int) -> None:
        """Write a checkpoint of all that are under way, and put off the next."""
        start = time.monotonic()
        for job in running:
            self.save(pack, job, clock)
        self._saved = time.monotonic()
        self._wait = max(self.every, (self._saved - start) / MAX_WRITING_SHARE)

    def save(self, pack: Pack, running: Running, clock: int) -> None:
        """Write a checkpoint; losses must have come from the device.

        Args:
            pack: holds the job's slot.
            running: the job.
            clock: steps that the worker has taken by now.
        """
        slot = running.slot
        state = pack.state(slot) | {LOSSES: torch.tensor(slot.losses, dtype=torch.float64)}
        head = {
            "job": _identity(running.job),
            "step": slot.step,
            "tokens": slot.tokens,
            "worker": self.worker,
            "clock": clock,
            "seconds": running.seconds,
            "score": running.score,
            "begun": running.begun,
            "begun_tokens": running.begun_tokens,
        }
        metadata = {"autolr": json.dumps(head)}
        yaml_io.write_bytes(
            self._path(running.job.key), save({name: t.cpu().contiguous() for name, t in state.items()}, metadata)
        )

    def clock(self, job: Job) -> int | None:
        """Return this worker's clock at a job's checkpoint; None: it wrote none."""
        head = self._head(job, job.key)
        return int(head["clock"]) if head is not None and head["worker"] == self.worker else None

    def restore(self, pack: Pack, job: Job) -> Running:
        """Start a job in a free slot: from its checkpoint where there is one, or from those of its beginning."""
        for key in (job.key, *job.begun_as):
            head = self._head(job, key)
            if head is None:
                continue
            try:
                with safe_open(self._path(key), framework="pt") as file:
                    state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
                losses = state.pop(LOSSES).tolist()
                slot = pack.restore(job.config, state, head["step"], losses, head["tokens"])
            except (OSError, SafetensorError, KeyError, RuntimeError) as error:
                if is_out_of_memory(error):
                    raise
                self.callback.note(
                    f"{self._path(key)}: cannot resume from this checkpoint ({error}); ignoring it for {job.label}"
                )
                continue
            if key == job.key:
                kept = {name: head[name] for name in ("score", "seconds", "begun", "begun_tokens")}
                return Running(job, slot, **kept)
            return Running(job, slot, begun=slot.step, begun_tokens=slot.tokens)
        return Running(job, pack.admit(job.config))

    def drop(self, job: Job) -> None:
        """Remove the checkpoint of a job that has ended."""
        self._path(job.key).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def _head(self, job: Job, key: str) -> dict[str, Any] | None:
        """Return what a checkpoint says of how far the job is; None where there is none of this very training."""
        path = self._path(key)
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                head: dict[str, Any] = json.loads(file.metadata()["autolr"])
            is_this = bool(head["job"] == _identity(job))
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            self.callback.note(f"{path}: is damaged ({error}); ignoring it for {job.label}")
            return None
        return head if is_this else None


def _identity(job: Job) -> str:
    """Return what must be the same for a training to be the same, however far it goes."""
    content = [job.candidate.model_dump(), asdict(replace(job.config, stop=None))]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
