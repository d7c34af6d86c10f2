"""Whose line it was: where in the code a wait, or an error, comes from."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import FrameType

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# Frames of these are never to blame: this package, torch, and what Python itself puts between.
_SPARED = (str(HERE), "/site-packages/torch/", "/contextlib.py", "/threading.py", "/unittest/", "<frozen")
_started = threading.local()


def begin_thread(starter: FrameType | None) -> None:
    """Say which frame has started this thread: it is asked where the thread itself has nobody to blame."""
    _started.by = starter


def line() -> str:
    """Return who is to blame for what happens now, as `file:line`.

    That is the innermost line of the repository; the library's line below it, if there is one, follows in brackets.
    """
    library = ""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        inside = path.rpartition("/site-packages/")[2] if "/site-packages/" in path else ""
        own = HERE.name + "/test_" in path  # the tests of this package are to blame as any others are
        if own or not any(part in path for part in _SPARED):
            if not inside and path.startswith(str(ROOT)):
                found = f"{Path(path).relative_to(ROOT)}:{frame.f_lineno}"
                return f"{found} (in {library})" if library else found
            library = library or f"{inside or path}:{frame.f_lineno}"
        frame = frame.f_back
        if frame is None:
            frame, _started.by = getattr(_started, "by", None), None
    return library or "a hook of autograd"
