"""What `--json` prints: the same for every verb that reads."""

from __future__ import annotations

import json
from typing import Any

import typer


def echo_json(value: Any) -> None:
    """Print documents, dataclasses, paths and what holds them as JSON on standard output; NaN becomes null."""
    from pydantic_core import to_jsonable_python

    plain = to_jsonable_python(value, inf_nan_mode="null")
    typer.echo(json.dumps(plain, indent=1, ensure_ascii=False))
