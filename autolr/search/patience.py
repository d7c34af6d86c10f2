"""A storage that is locked or gone for a while is waited for, and a search goes on when it is back."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import Any

from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage

from autolr.errors import RunError

# Seconds that a storage is waited for, and between attempts, at first and at most.
PATIENCE = 180.0
FIRST, LONGEST = 0.1, 5.0
# What a folder on another machine says while that machine is away.
AWAY = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EBUSY, errno.EHOSTDOWN, errno.ENOTCONN)


class Patient(BaseStorage):
    """Another storage, each of whose calls is given again while it is out of reach.

    Args:
        inner: the storage.
        name: what it is called in messages.
        note: is told when it is waited for, and when it is back.

    Every call raises `RunError` where the storage has been out of reach for `PATIENCE` seconds.
    """

    def __init__(self, inner: BaseStorage, name: str, note: Callable[[str], None] | None = None) -> None:
        self.inner = inner
        self.name = name
        self.note = note or (lambda text: None)

    def __getattr__(self, name: str) -> Any:
        if name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)

    def again(self, name: str, *arguments: Any, **options: Any) -> Any:
        """Call a method of the storage until it answers."""
        call, start, wait = getattr(self.inner, name), time.monotonic(), FIRST
        waited = False
        while True:
            try:
                found = call(*arguments, **options)
            except UpdateFinishedTrialError:
                if not waited:
                    raise
                return None  # the call before was heard, and its answer lost
            except Exception as error:
                if not is_away(error):
                    raise
                reason = _reason(error)
                if time.monotonic() - start + wait > PATIENCE:
                    raise RunError(
                        f"{self.name}: unreachable for {PATIENCE:.0f} s ({reason}). When it is back, run the same "
                        "command again to resume."
                    ) from None
                if not waited:
                    self.note(f"{self.name} is unreachable ({reason}): waiting")
                waited = True
            else:
                if waited:
                    self.note(f"{self.name} is back")
                return found
            time.sleep(wait)
            wait = min(2 * wait, LONGEST)


def is_away(error: BaseException) -> bool:
    """Tell whether an error means that a storage is locked or out of reach, and may come back."""
    if isinstance(error, OSError):
        return error.errno in AWAY or isinstance(error, ConnectionError)
    if isinstance(error, StorageInternalError) and error.__cause__ is not None:
        return is_away(error.__cause__)
    kinds = {kind.__name__ for kind in type(error).__mro__ if kind.__module__.startswith("sqlalchemy")}
    return bool(kinds & {"OperationalError", "InterfaceError", "DisconnectionError", "TimeoutError"})


def _reason(error: BaseException) -> str:
    while isinstance(error, StorageInternalError) and error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(getattr(error, "orig", None) or error).split())[:200] or type(error).__name__


def _forward(name: str) -> Callable[..., Any]:
    def call(self: Patient, *arguments: Any, **options: Any) -> Any:
        return self.again(name, *arguments, **options)

    return call


for _name in dir(BaseStorage):
    if not _name.startswith("_") and callable(getattr(BaseStorage, _name)):
        setattr(Patient, _name, _forward(_name))
Patient.__abstractmethods__ = frozenset()
