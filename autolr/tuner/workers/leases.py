"""Who trains what: each trial and each repeat belongs to one worker at a time.

A worker writes into the search's storage that it is there, and goes on doing so. What belonged to one that is gone
may be taken by any other. A worker of the same machine is gone when its process is; one of another machine when it
has been silent for a while on the clock of whoever waits for it, so that clocks need not agree.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import optuna
import psutil

from autolr.rundir.folder import RunFolder
from autolr.rundir.liveness import machine, process_is_there

# The worker of a search that has but one.
MAIN = "main"
# Seconds between signs of life, and of silence after which a worker of another machine is gone.
BEAT, SILENT = 10.0, 90.0


class Alone:
    """Leases where nobody else is at work."""

    def lock(self) -> AbstractContextManager[None]:
        """Nobody is to be kept out."""
        return nullcontext()

    def take(self, key: str) -> bool:
        """Everything is there to be taken."""
        return True

    def holds(self, key: str) -> bool:
        """What was taken stays one's own."""
        return True


class Leases(Alone):
    """The claims on a search.

    Args:
        folder: of the search.
        study: its trials, in its storage.
        name: of this worker; no other has it.
    """

    def __init__(self, folder: RunFolder, study: optuna.Study, name: str) -> None:
        self.folder = folder
        self.study = study
        self.me = name
        self._sign = {"host": machine(), "pid": os.getpid(), "born": psutil.Process().create_time()}
        self._seen: dict[str, tuple[int, float]] = {}
        self._held = threading.RLock()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep all other workers from claiming, proposing and recording."""
        with self._held, self.folder.locked():
            yield

    @contextmanager
    def working(self) -> Iterator[None]:
        """Be there, and say so until the end."""
        stop = threading.Event()
        self._beat(0)
        thread = threading.Thread(target=self._beats, args=(stop,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            self._beat(-1)

    def alive(self, worker: str | None, signs: Mapping[str, Any]) -> bool:
        """Return True if a worker is there.

        Args:
            worker: its name.
            signs: the study's attributes.
        """
        sign = signs.get(f"worker:{worker}")
        if worker == self.me or sign is None or sign["beat"] < 0:
            return worker == self.me
        if sign["host"] == self._sign["host"]:
            return process_is_there(sign["pid"], sign["born"])
        beat, since = self._seen.get(str(worker), (-1, 0.0))
        if beat != sign["beat"]:
            self._seen[str(worker)] = (sign["beat"], time.monotonic())
            return True
        return time.monotonic() - since < SILENT

    def take(self, key: str) -> bool:
        """Claim a job that is no trial; False: another worker has it. The lock must be held."""
        signs = self.study.user_attrs
        owner = signs.get(f"claim:{key}")
        if owner is not None and owner != self.me and self.alive(owner, signs):
            return False
        if owner != self.me:
            self.study.set_user_attr(f"claim:{key}", self.me)
        return True

    def holds(self, key: str) -> bool:
        """Return True if a job that is no trial is still this worker's."""
        return bool(self.study.user_attrs.get(f"claim:{key}") == self.me)

    def _beats(self, stop: threading.Event) -> None:
        count = 0
        while not stop.wait(BEAT):
            count += 1
            try:
                self._beat(count)
            except Exception:  # noqa: S112 (the storage is away for a moment: the next beat tells)
                continue

    def _beat(self, count: int) -> None:
        self.study.set_user_attr(f"worker:{self.me}", {**self._sign, "beat": count})
