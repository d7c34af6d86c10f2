"""Output that all verbs share: lines that fit the terminal, `--json`, and the message after Ctrl-C."""

from __future__ import annotations

import json
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer

from autolr.display import spell
from autolr.errors import interruptible

# Exit code of a command that was ended by Ctrl-C.
INTERRUPTED = 130
# The head of a line such as "verdict  No gain ...": the rest is folded beside it.
HEAD = re.compile(r"\s*\S.{0,40}?\s{2,}|\s*-?\s*")


def echo_json(value: Any) -> None:
    """Print documents, dataclasses, paths or lists of them as JSON to standard output; NaN becomes null."""
    from pydantic_core import to_jsonable_python

    plain = to_jsonable_python(value, inf_nan_mode="null")
    typer.echo(json.dumps(plain, indent=1, ensure_ascii=False))


@contextmanager
def until_ctrl_c(says: Callable[[], str]) -> Iterator[None]:
    """Exit with code 130 if Ctrl-C is pressed, whatever a library makes of it.

    Args:
        says: returns the message to print then.

    Raises:
        typer.Exit: Ctrl-C was pressed.
    """
    try:
        with interruptible():
            yield
    except KeyboardInterrupt:
        typer.echo(f"\n{says()}", err=True)
        raise typer.Exit(INTERRUPTED) from None


def say(text: str) -> None:
    """Print lines at once, in letters that the output has; in a terminal, wrapped between words."""
    if sys.stdout.isatty():
        text = fold(text, shutil.get_terminal_size().columns)
    print(spell(text, sys.stdout.encoding), flush=True)


def fold(text: str, width: int) -> str:
    """Wrap the lines of a text; a line with a command stays whole, to be copied."""
    lines = []
    for line in text.split("\n"):
        head = HEAD.match(line)
        indent = " " * min(len(head.group()) if head else 0, width // 2)
        is_short = len(line) <= width or "autolr " in line
        folded = textwrap.wrap(
            line, max(width, 20), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
        )
        lines += [line] if is_short else folded
    return "\n".join(lines)
