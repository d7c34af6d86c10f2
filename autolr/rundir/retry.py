"""A storage that is locked or out of reach for a while is waited for, and the search continues when it is back."""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial
from typing import Any

from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_before_delay, wait_exponential

from autolr.errors import RunError

# Seconds that a storage is waited for, and between attempts, at first and at most.
PATIENCE = 180.0
FIRST, LONGEST = 0.1, 5.0
# What a folder on another machine says while that machine is away.
AWAY = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EBUSY, errno.EHOSTDOWN, errno.ENOTCONN)


class RetryingStorage:
    """Another storage, each of whose calls is repeated while it is out of reach.

    Args:
        inner: the storage.
        name: what it is called in messages.
        note: is called with a sentence when the storage is waited for, and when it is back.

    Every call raises `RunError` if the storage has been out of reach for `PATIENCE` seconds.
    """

    def __init__(self, inner: BaseStorage, name: str, note: Callable[[str], None] | None = None) -> None:
        self.inner = inner
        self.name = name
        self.note = note or (lambda text: None)

    def __getattr__(self, name: str) -> Any:
        if name == "inner":  # a copy asks for it before it has one
            raise AttributeError(name)
        found = getattr(self.inner, name)
        return partial(self._repeated, found) if callable(found) and not name.startswith("_") else found

    def _repeated(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        policy = retrying(self._wait)
        try:
            answer = policy(call, *arguments, **options)
        except UpdateFinishedTrialError:
            if policy.statistics["attempt_number"] == 1:
                raise
            answer = None  # the call before got through, and its answer was lost
        except Exception as error:
            if not is_away(error):
                raise
            raise RunError(
                f"{self.name}: unreachable for {PATIENCE:.0f} s ({_reason(error)}). When it is back, run the same "
                "command again to resume."
            ) from None
        if policy.statistics["attempt_number"] > 1:
            self.note(f"{self.name} is back")
        return answer

    def _wait(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if error and state.attempt_number == 1:
            self.note(f"{self.name} is unreachable ({_reason(error)}): waiting")


# For Optuna, and whoever asks what it is.
BaseStorage.register(RetryingStorage)


def retrying(before_sleep: Callable[[RetryCallState], None] | None = None) -> Retrying:
    """Return what repeats a call while it fails because a storage is away, for up to `PATIENCE` seconds."""
    return Retrying(
        retry=retry_if_exception(is_away),
        wait=wait_exponential(FIRST, max=LONGEST),
        stop=stop_before_delay(PATIENCE),
        before_sleep=before_sleep,
        reraise=True,
    )


def is_away(error: BaseException) -> bool:
    """Return True if an error means that a storage is locked or out of reach, and may come back."""
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
