"""What AutoLR raises when the input, not the code, is at fault.

The command line prints the message of an `AutoLRError` alone and exits with code 2.
A message names the value, the place it came from, and the remedy; never a password or a token.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

# Environment variables whose values are nobody's business, such as HF_TOKEN and WANDB_API_KEY.
_SECRET_NAME = re.compile(r"TOKEN|API_?KEY|SECRET|PASSW|CREDENTIAL|PRIVATE_?KEY", re.IGNORECASE)
# The user and password of an address, and what a token of the hub looks like.
_IN_ADDRESS = re.compile(r"(?<=://)[^\s/@'\"]+@")
_HUB_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}")


def redacted(text: str) -> str:
    """Return a text without passwords in addresses, tokens of the hub, and secrets of the environment."""
    for name, value in os.environ.items():
        if len(value) >= 8 and _SECRET_NAME.search(name):
            text = text.replace(value, f"<{name}>")
    return _HUB_TOKEN.sub("<token>", _IN_ADDRESS.sub("***@", text))


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C be Ctrl-C: what fails only because a library was interrupted is no error of its own.

    Raises:
        KeyboardInterrupt: it was pressed, whatever came of it on the way up.
    """
    try:
        yield
    except Exception as error:
        before = error.__context__
        while before is not None and not isinstance(before, KeyboardInterrupt):
            before = before.__context__
        if before is not None:
            raise KeyboardInterrupt from error
        raise


class AutoLRError(Exception):
    """Base of every error a user can put right; its message is without secrets, wherever its words came from."""

    def __init__(self, message: object = "") -> None:
        super().__init__(redacted(str(message)))


class DocumentError(AutoLRError):
    """A study or recipe file is wrong; the message lists all that is wrong with it."""

    def __init__(self, source: str, problems: Iterable[str]) -> None:
        self.source = source
        self.problems = [redacted(problem) for problem in problems]
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        super().__init__("\n".join([f"{source}: {count}", *(f"  - {p}" for p in self.problems)]))


class DataError(AutoLRError):
    """The data cannot be read, or cannot be learned from."""


class ModelError(AutoLRError):
    """The model cannot be loaded, or has no query and value projections AutoLR knows."""


class RunError(AutoLRError):
    """The run folder cannot be used as asked."""
