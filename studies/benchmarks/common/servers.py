"""A database of one's own: Debian's server in a temporary folder, on a loopback port, as an unprivileged user."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

Kind = Literal["postgresql", "mysql"]
USER = "nobody"
PATIENCE = 60.0


class _Plan(NamedTuple):
    """How a server is set up and run.

    Attributes:
        prepare: command that makes its folder; None: it needs none.
        run: command that serves.
        address: of an empty database.
        connect: raises while nobody answers; then the database is there.
    """

    prepare: list[Any] | None
    run: list[Any]
    address: str
    connect: Callable[[], None]


def missing(kind: Kind = "postgresql") -> str | None:
    """Say why there can be no such server here; None: there can."""
    if _program(kind) is not None:
        return None
    package = {"postgresql": "postgresql", "mysql": "mariadb-server-core"}[kind]
    return f"the server is not installed: apt-get install {package}"


@contextmanager
def server(kind: Kind = "postgresql") -> Iterator[str]:
    """Run a PostgreSQL, or a MariaDB, which speaks MySQL; return the address of an empty database.

    Raises:
        RuntimeError: it is not installed, or does not start.
    """
    program = _program(kind)
    if program is None:
        raise RuntimeError(missing(kind))
    folder = Path(tempfile.mkdtemp(prefix=f"{kind}-"))
    # The servers refuse to run as root.
    account = pwd.getpwnam(USER) if os.geteuid() == 0 else None
    identity: dict[str, Any] = (
        {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if account else {}
    )
    plan, log = (_postgres if kind == "postgresql" else _mariadb)(program, folder, _free_port()), folder / "log"
    try:
        (folder / "data").mkdir(mode=0o700)
        if account:
            os.chown(folder, account.pw_uid, account.pw_gid)
            os.chown(folder / "data", account.pw_uid, account.pw_gid)
        if plan.prepare is not None:
            subprocess.run(plan.prepare, check=True, capture_output=True, cwd=folder, **identity)
        with log.open("wb") as said:
            process = subprocess.Popen(plan.run, stdout=said, stderr=said, cwd=folder, **identity)
        try:
            _wait(process, plan.connect, log)
            yield plan.address
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _postgres(program: Path, folder: Path, port: int) -> _Plan:
    data, address = folder / "data", f"postgresql://autolr@127.0.0.1:{port}/postgres"

    def connect() -> None:
        import psycopg

        psycopg.connect(address).close()

    prepare = [program / "initdb", "-D", data, "-U", "autolr", "--auth=trust", "--no-sync", "-E", "UTF8"]
    serve = [program / "postgres", "-D", data, "-h", "127.0.0.1", "-p", str(port), "-k", folder]
    return _Plan([*prepare, "--locale=C"], [*serve, "-c", "max_connections=600"], address, connect)


def _mariadb(program: Path, folder: Path, port: int) -> _Plan:
    def connect() -> None:
        import pymysql

        with pymysql.connect(host="127.0.0.1", port=port, user="root") as connection:
            connection.cursor().execute("CREATE DATABASE IF NOT EXISTS autolr CHARACTER SET utf8mb4")

    # Without tables of users it starts in an empty folder.
    serve = [program, "--no-defaults", "--skip-grant-tables", f"--datadir={folder / 'data'}", f"--tmpdir={folder}"]
    serve += ["--bind-address=127.0.0.1", f"--port={port}", f"--socket={folder / 'socket'}"]
    return _Plan(None, serve, f"mysql://root@127.0.0.1:{port}/autolr", connect)


def _wait(process: subprocess.Popen[bytes], connect: Callable[[], None], log: Path) -> None:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until and process.poll() is None:
        try:
            return connect()
        except Exception as error:
            if type(error).__name__ != "OperationalError":
                raise
            time.sleep(0.1)
    raise RuntimeError(f"the server does not start: {log.read_text(errors='replace')[-500:]}")


def _program(kind: Kind) -> Path | None:
    """Return the folder of the newest PostgreSQL's programs, or MariaDB's server."""
    if kind == "mysql":
        there = shutil.which("mariadbd") or shutil.which("mariadbd", path="/usr/sbin:/usr/local/sbin")
        return Path(there) if there else None
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if found:
        return max(found, key=lambda path: float(path.parent.name))
    there = shutil.which("initdb")
    return Path(there).resolve().parent if there else None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
