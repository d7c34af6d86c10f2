"""Another tool's file, and what of it was not read: nothing of a set-up is lost without a word."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

Path = tuple[str | int, ...]


class Reading:
    """Gives the values of a file, and remembers which were asked for.

    Args:
        content: of the file; sections and lists of sections may lie in each other.
    """

    def __init__(self, content: dict[str, Any]) -> None:
        self.content = content
        self._taken: set[Path] = set()

    def take(self, *path: str | int) -> Any:
        """Return a value, and count it, with all that lies in it, as read; None if there is none."""
        self._taken.add(path)
        value: Any = self.content
        for key in path:
            try:
                value = value[key]
            except (KeyError, IndexError, TypeError):
                return None
        return value

    def left(self, aside: Collection[str] = ()) -> list[str]:
        """Return what was not read, a line for each value, such as `datasets[0].roles_to_train: ['gpt']`.

        Args:
            aside: beginnings of keys that say nothing of what is learned; they share a line.
        """
        lines, names = [], []
        for path, value in _leaves(self.content, ()):
            if value is None or any(path[: len(taken)] == taken for taken in self._taken):
                continue
            if str(path[0]).startswith(tuple(aside)):
                names.append(_name(path))
            else:
                lines.append(f"{_name(path)}: {value}")
        if names:
            lines.append(f"how the run is watched, kept and sped up: {', '.join(names)}")
        return lines


def _leaves(value: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    """Yield the values of a file by their places; a list of plain values is one value."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, (*path, key))
    elif isinstance(value, list) and any(isinstance(inner, (dict, list)) for inner in value):
        for place, inner in enumerate(value):
            yield from _leaves(inner, (*path, place))
    else:
        yield path, value


def _name(path: Path) -> str:
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)
    return text.removeprefix(".")
