"""Is a process of this machine still there? Workers and views of a run ask this."""

from __future__ import annotations

import socket
from pathlib import Path

import psutil


def machine() -> str:
    """Return what tells this machine, and its numbering of processes, from all others."""
    parts = [socket.gethostname()]
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        try:
            parts.append(Path(path).read_text().strip() if "boot" in path else str(Path(path).stat().st_ino))
        except OSError:
            continue
    return " ".join(parts)


def process_is_there(pid: int, born: float) -> bool:
    """Return True if a process of this machine, started at a time in seconds since 1970, still runs."""
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - born) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
