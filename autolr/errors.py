"""What AutoLR raises when the input, not the code, is at fault.

The command line prints the message of an `AutoLRError` alone and exits with code 2.
A message names the value, the place it came from, and the remedy.
"""

from __future__ import annotations

from collections.abc import Iterable


class AutoLRError(Exception):
    """Base of every error a user can put right."""


class DocumentError(AutoLRError):
    """A study or recipe file is wrong; the message lists all that is wrong with it."""

    def __init__(self, source: str, problems: Iterable[str]) -> None:
        self.source = source
        self.problems = list(problems)
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        super().__init__("\n".join([f"{source}: {count}", *(f"  - {p}" for p in self.problems)]))


class DataError(AutoLRError):
    """The data cannot be read, or cannot be learned from."""


class ModelError(AutoLRError):
    """The model cannot be loaded, or has no query and value projections AutoLR knows."""


class RunError(AutoLRError):
    """The run folder cannot be used as asked."""
