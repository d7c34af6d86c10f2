"""What verbs say alike: `--json`, and what Ctrl-C leaves behind."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer

from autolr.errors import interruptible

# Exit code of a command that was ended by Ctrl-C.
INTERRUPTED = 130


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
