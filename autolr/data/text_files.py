"""Files of text, line by line: how they are opened, and how their problems are listed."""

from __future__ import annotations

from pathlib import Path
from typing import TextIO

LISTED_PROBLEMS = 5


def open_text(path: Path) -> TextIO:
    """Open a file of UTF-8 with or without a byte order mark, its line ends as they are."""
    return path.open(encoding="utf-8-sig", newline="")


def listed(problems: list[str]) -> str:
    """Return the first problems, a line each, and how many more there are."""
    more = [f"... and {len(problems) - LISTED_PROBLEMS:,} more"] if len(problems) > LISTED_PROBLEMS else []
    return "".join(f"\n  {line}" for line in [*problems[:LISTED_PROBLEMS], *more])
