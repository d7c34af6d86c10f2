"""Where a search's trials lie: Optuna's journal in the run folder, or a database that workers share.

Whoever reads what is there and writes what follows from it holds the search's lock meanwhile. Locks belong to a
process or a connection, so that one that dies holds none.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from autolr.errors import RunError
from autolr.search import retry

if TYPE_CHECKING:
    import sqlalchemy
    from optuna.storages import BaseStorage

# What the databases are called, the driver that is used and the extra that brings it.
DRIVERS = {"postgresql": ("psycopg", "postgres"), "mysql": ("pymysql", "mysql")}
# Seconds that a lock is waited for at most: holders propose one candidate, or score one rung.
PATIENCE = 600


class Journal(JournalFileBackend):
    """Optuna's journal, whose last line may have been cut off when a process was killed or the disk was full.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._path = path
        # The operating system's, which ends with its process; Optuna's own stay for half a minute.
        self._lock_file = FileLock(path.with_name(f".{path.name}.lock"))

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Add lines; what is left of a line that nobody writes any more is cut off first."""
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        with self._lock_file:
            cut_last_line(self._path)
            with self._path.open("ab") as file:
                file.write(lines.encode())
                file.flush()
                os.fsync(file.fileno())


def cut_last_line(path: Path) -> int:
    """Cut off the end of a file of lines that is no whole line; return its bytes. Nobody may be writing it."""
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
        RunError: it is none of the known databases, its driver is not installed, or it does not answer.
    """
    import optuna

    try:
        return optuna.storages.get_storage(with_driver(url))
    except (optuna.exceptions.StorageInternalError, ImportError) as error:
        raise RunError(f"--storage {hidden(url)}: {_reason(error)}") from None
    except Exception as error:
        if type(error).__module__.split(".")[0] not in ("sqlalchemy", "psycopg", "pymysql"):
            raise
        raise RunError(f"--storage {hidden(url)}: {_reason(error)}") from None


def hidden(url: str) -> str:
    """Return a database's address without its password."""
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
    """Hold the lock of a search while it is read and written.

    Args:
        url: of the database; None: the journal.
        path: a file of the run folder, which is locked where there is no database.
        name: the search's name in the database.

    Raises:
        RunError: somebody has held it for ten minutes.
    """
    return _in_folder(path) if url is None else _in_database(url, name)


@contextmanager
def _in_folder(path: Path) -> Iterator[None]:
    from filelock import Timeout

    lock = FileLock(path, timeout=PATIENCE)
    try:
        lock.acquire()
    except Timeout:
        raise RunError(f"{path}: has been locked by another worker for {PATIENCE} s; end it") from None
    try:
        yield
    finally:
        lock.release()


_engines: dict[str, sqlalchemy.Engine] = {}


@contextmanager
def _in_database(url: str, name: str) -> Iterator[None]:
    """Hold a lock of the database that ends with the connection."""
    import sqlalchemy

    full = with_driver(url)
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7])
    with _connection(full, hidden(url)) as connection:
        if full.startswith("postgresql"):
            take, give = f"SELECT pg_advisory_lock({key})", f"SELECT pg_advisory_unlock({key})"
        else:
            take, give = f"SELECT GET_LOCK('{key:x}', {PATIENCE})", f"SELECT RELEASE_LOCK('{key:x}')"
        if connection.execute(sqlalchemy.text(take)).scalar() == 0:
            raise RunError(f"--storage {hidden(url)}: {name} has been locked for {PATIENCE} s; end who holds it")
        try:
            yield
        finally:
            try:
                connection.execute(sqlalchemy.text(give))
            except Exception as error:
                if not retry.is_away(error):  # else the lock has ended with the connection
                    raise


def _connection(full: str, shown: str) -> sqlalchemy.Connection:
    """Return a connection for locks; one that has been there before is waited for when it is lost."""
    import sqlalchemy

    if is_new := full not in _engines:  # one connection of its own, which is kept
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
    """Return a database's address with the driver that AutoLR comes with, where it names none."""
    kind, slashes, rest = url.partition("://")
    kind = "postgresql" if kind == "postgres" else kind
    if not slashes or kind.partition("+")[0] not in DRIVERS:
        raise RunError(
            f"--storage {hidden(url) if slashes else url}: must begin with postgresql:// or mysql://, such as "
            "postgresql://me@host/autolr; without it trials are kept in the run folder"
        )
    if "+" in kind:
        return url
    driver, extra = DRIVERS[kind]
    try:
        __import__(driver)
    except ImportError:
        raise RunError(
            f"--storage {hidden(url)}: needs {driver}, which is not installed: pip install {driver} (extra: {extra})"
        ) from None
    return f"{kind}+{driver}://{rest}"


def _reason(error: BaseException) -> str:
    """Return the database's own words, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(getattr(error, "orig", None) or error).split())[:300] or type(error).__name__


def journal(path: Path) -> JournalStorage:
    """Return Optuna's storage in a journal."""
    return JournalStorage(Journal(path))
