"""Settings from the command line, written over those of a file."""

from __future__ import annotations

from typing import Any

from autolr.errors import DocumentError
from autolr.schema import yaml_io


def apply_overrides(content: dict[str, Any], overrides: list[str]) -> None:
    """Apply dotted assignments to the mapping of a study file, in place.

    Raises:
        DocumentError: an assignment has no `=`, a bad value, or goes through something that
            has no keys.
    """
    problems = []
    for override in overrides:
        key, equals, value = override.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(parts):
            problems.append(f"{override!r} is not of the form key=value, such as space.rank=[8,16]")
            continue
        try:
            parsed = yaml_io.parse(value, override)
        except DocumentError:
            problems.append(f"{override!r}: {value!r} is not a YAML value")
            continue
        target = content
        for part in parts[:-1]:
            inner = target.setdefault(part, {})
            if isinstance(inner, str) and part == "data":
                inner = target[part] = {"source": inner}
            if not isinstance(inner, dict):
                inner = target[part] = {}
            target = inner
        target[parts[-1]] = parsed
    if problems:
        raise DocumentError("command line", problems)
