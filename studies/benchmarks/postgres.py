"""A PostgreSQL of one's own: Debian's server in a temporary folder, on a loopback port, as an unprivileged user."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

USER = "nobody"
PATIENCE = 60.0


def missing() -> str | None:
    """Say why there can be no server here; None: there can."""
    if _binaries() is None:
        return "PostgreSQL's server is not installed: apt-get install postgresql"
    return None


@contextmanager
def server() -> Iterator[str]:
    """Run a server, and return the address of an empty database.

    Raises:
        RuntimeError: it is not installed, or does not start.
    """
    binaries = _binaries()
    if binaries is None:
        raise RuntimeError(missing())
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    # The server refuses to run as root.
    account = pwd.getpwnam(USER) if os.geteuid() == 0 else None
    identity = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if account else {}
    data, log = folder / "data", folder / "log"
    try:
        if account:
            os.chown(folder, account.pw_uid, account.pw_gid)
        subprocess.run(
            [
                binaries / "initdb",
                "-D",
                data,
                "-U",
                "autolr",
                "--auth=trust",
                "--no-sync",
                "-E",
                "UTF8",
                "--locale=C",
            ],
            check=True,
            capture_output=True,
            cwd=folder,
            **identity,
        )
        port = _free_port()
        command = [binaries / "postgres", "-D", data, "-h", "127.0.0.1", "-p", str(port), "-k", folder]
        command += ["-c", "max_connections=600"]
        with log.open("wb") as said:
            process = subprocess.Popen(command, stdout=said, stderr=said, cwd=folder, **identity)
        try:
            _wait(process, port, log)
            yield f"postgresql://autolr@127.0.0.1:{port}/postgres"
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    import psycopg

    until = time.monotonic() + PATIENCE
    while time.monotonic() < until and process.poll() is None:
        try:
            psycopg.connect(f"postgresql://autolr@127.0.0.1:{port}/postgres").close()
            return
        except psycopg.OperationalError:
            time.sleep(0.1)
    raise RuntimeError(f"PostgreSQL does not start: {log.read_text(errors='replace')[-500:]}")


def _binaries() -> Path | None:
    """Return the folder of the newest server."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if found:
        return max(found, key=lambda path: float(path.parent.name))
    there = shutil.which("initdb")
    return Path(there).resolve().parent if there else None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
