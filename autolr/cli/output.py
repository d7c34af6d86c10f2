"""What verbs say alike: lines that fit the terminal, `--json`, and what Ctrl-C leaves behind."""

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
# A line such as "verdict  No gain ...": what follows the head is folded under itself.
HEAD = re.compile(r"\s*\S.{0,40}?\s{2,}|\s*-?\s*")


def echo_json(value: Any) -> None:
    """Print documents, dataclasses, paths and what holds them as JSON on standard output; NaN becomes null."""
    from pydantic_core import to_jsonable_python

    plain = to_jsonable_python(value, inf_nan_mode="null")
    typer.echo(json.dumps(plain, indent=1, ensure_ascii=False))


@contextmanager
def until_ctrl_c(says: Callable[[], str]) -> Iterator[None]:
    """Work until Ctrl-C is pressed, and then say what is left.

    Args:
        says: what is left, asked when it is pressed.

    Raises:
        typer.Exit: with code 130, it was pressed, whatever a library made of it.
    """
    try:
        with interruptible():
            yield
    except KeyboardInterrupt:
        typer.echo(f"\n{says()}", err=True)
        raise typer.Exit(INTERRUPTED) from None


def say(text: str) -> None:
    """Print lines at once, in letters that the output has, and in a terminal folded between words."""
    if sys.stdout.isatty():
        text = fold(text, shutil.get_terminal_size().columns)
    print(spell(text, sys.stdout.encoding), flush=True)


def fold(text: str, width: int) -> str:
    """Return a text whose lines fit a width; one with a command in it stays as it is, to be copied."""
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
