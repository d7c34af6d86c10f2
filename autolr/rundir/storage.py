"""Where a search keeps its trials: Optuna's journal in the run folder, or a database that workers share.

A worker that reads trials and writes what follows from them holds the search's lock meanwhile. A lock ends with its
process or connection, so a worker that dies leaves none behind.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from autolr.errors import RunError
from autolr.rundir import retry

if TYPE_CHECKING:
    import sqlalchemy
    from optuna.storages import BaseStorage

# Longest wait for a lock: its holder proposes one candidate, or scores one rung.
LOCK_TIMEOUT_S = 600
# The driver of each, AutoLR's extra that installs it, and the calls that take and release the lock number `key`.
DATABASES = {
    "postgresql": ("psycopg", "postgres", "pg_advisory_lock({key})", "pg_advisory_unlock({key})"),
    "mysql": ("pymysql", "mysql", f"GET_LOCK('{{key:x}}', {LOCK_TIMEOUT_S})", "RELEASE_LOCK('{key:x}')"),
}


class Journal(JournalFileBackend):
    """Optuna's journal, whose last line may be cut off if a process was killed or the disk was full.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._path = path
        # A lock of the operating system ends with its process; Optuna's own locks stay for half a minute.
        self._lock_file = FileLock(path.with_name(f".{path.name}.lock"))

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append lines; a cut-off last line is removed first."""
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        with self._lock_file:
            cut_last_line(self._path)
            with self._path.open("ab") as file:
                file.write(lines.encode())
                file.flush()
                os.fsync(file.fileno())


def cut_last_line(path: Path) -> int:
    """Remove the last line of a file if it does not end; return its bytes. Nobody may be writing the file."""
    if not path.exists() or not path.stat().st_size:
        return 0
    with path.open("rb+") as file:
        size = at = file.seek(0, os.SEEK_END)
        rest = b""
        while at > 0 and b"\n" not in rest:
            start = max(0, at - 65536)
            file.seek(start)
            rest = file.read(at - start) + rest
            at = start
        end = at + rest.rfind(b"\n") + 1
        if end < size:
            file.truncate(end)
            os.fsync(file.fileno())
        return size - end


def opened(url: str) -> BaseStorage:
    """Return Optuna's storage in a database.

    Raises:
        RunError: the database is of an unknown kind, its driver is not installed, or it does not answer.
    """
    import optuna

    try:
        return optuna.storages.get_storage(with_driver(url))
    except Exception as error:
        is_theirs = type(error).__module__.split(".")[0] in ("sqlalchemy", "psycopg", "pymysql")
        if not is_theirs and not isinstance(error, (optuna.exceptions.StorageInternalError, ImportError)):
            raise
        raise RunError(f"--storage {hidden(url)}: {_reason(error)}") from None


def hidden(url: str) -> str:
    """Return the address of a database without its password."""
    from sqlalchemy.engine import URL, make_url
    from sqlalchemy.exc import ArgumentError

    try:
        full = make_url(url)
    except (ArgumentError, ValueError):
        return "(an address that cannot be read)"
    query = {key: value for key, value in full.query.items() if "password" not in key}
    shown = URL.create(full.drivername, full.username, None, full.host, full.port, full.database, query)
    return str(shown.render_as_string())


def locked(url: str | None, path: Path, name: str) -> AbstractContextManager[None]:
    """Hold the lock of a search while its trials are read and written.

    Args:
        url: address of the database; None: the trials are in the journal.
        path: a file of the run folder to lock if there is no database.
        name: the search's name in the database.

    Raises:
        RunError: another worker has held the lock for `LOCK_TIMEOUT_S`.
    """
    return _in_folder(path) if url is None else _in_database(url, name)


@contextmanager
def _in_folder(path: Path) -> Iterator[None]:
    try:
        lock = FileLock(path, timeout=LOCK_TIMEOUT_S).acquire()
    except Timeout:
        raise RunError(f"{path}: another worker has locked it for {LOCK_TIMEOUT_S} s. End that worker.") from None
    with lock:
        yield


_engines: dict[str, sqlalchemy.Engine] = {}


@contextmanager
def _in_database(url: str, name: str) -> Iterator[None]:
    """Hold a lock of the database that ends with the connection."""
    import sqlalchemy

    full = with_driver(url)
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7])
    with _connection(full, hidden(url)) as connection:
        calls = DATABASES[connection.dialect.name][2:]
        lock, unlock = (sqlalchemy.text(f"SELECT {call.format(key=key)}") for call in calls)
        if connection.execute(lock).scalar() == 0:
            raise RunError(
                f"--storage {hidden(url)}: another worker has locked {name} for {LOCK_TIMEOUT_S} s. End that worker."
            )
        try:
            yield
        finally:
            try:
                connection.execute(unlock)
            except Exception as error:
                if not retry.is_away(error):  # otherwise the lock has ended with the connection
                    raise


def _connection(full: str, shown: str) -> sqlalchemy.Connection:
    """Return a connection for locks. If a database that has answered before is away, wait for it."""
    import sqlalchemy

    if is_new := full not in _engines:  # one connection, for locks alone
        _engines[full] = sqlalchemy.create_engine(full, pool_size=1, pool_pre_ping=True)

    def connect() -> sqlalchemy.Connection:
        return _engines[full].connect().execution_options(isolation_level="AUTOCOMMIT")

    try:
        return connect() if is_new else retry.retrying()(connect)
    except Exception as error:
        if not retry.is_away(error):
            raise
        del _engines[full]
        raise RunError(f"--storage {shown}: {_reason(error)}") from None


def with_driver(url: str) -> str:
    """Return the address of a database with AutoLR's driver, if it names no driver."""
    kind, slashes, rest = url.partition("://")
    kind = "postgresql" if kind == "postgres" else kind
    if not slashes or kind.partition("+")[0] not in DATABASES:
        raise RunError(
            f"--storage {hidden(url) if slashes else url}: must start with postgresql:// or mysql://, such as "
            "postgresql://me@host/autolr. Without --storage, the run folder holds the trials."
        )
    if "+" in kind:
        return url
    driver, extra, *_ = DATABASES[kind]
    try:
        __import__(driver)
    except ImportError:
        raise RunError(
            f"--storage {hidden(url)}: needs {driver}, which is not installed: pip install {driver} (extra: {extra})"
        ) from None
    return f"{kind}+{driver}://{rest}"


def _reason(error: BaseException) -> str:
    """Return the database's own message, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(getattr(error, "orig", None) or error).split())[:300] or type(error).__name__


def journal(path: Path) -> JournalStorage:
    """Return Optuna's storage in a journal."""
    return JournalStorage(Journal(path))
