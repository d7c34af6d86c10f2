"""A table of columns, which become lists only when they are asked for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from autolr.data import labels
from autolr.errors import DataError

Column: TypeAlias = list[Any] | pa.ChunkedArray
_NOT_TEXT = re.compile(labels.NOT_TEXT)
# A label that is the place of no class.
_NOWHERE = -2


class Table(Mapping[str, list[Any]]):
    """Columns by name, each as long as the others.

    Args:
        columns: lists, or what Arrow has read.
        where: the source, for messages.
        classes: names of the classes of a column that declares them; its labels are their places.
        notices: what is odd about the source.
        has_header: whether names come from the first line of a file, which may be an example.
    """

    def __init__(
        self,
        columns: Mapping[str, Column],
        where: str,
        classes: Mapping[str, list[str]] | None = None,
        notices: Sequence[str] = (),
        *,
        has_header: bool = False,
    ) -> None:
        self._columns: dict[str, list[Column]] = {name: [column] for name, column in columns.items()}
        self.where = where
        self.classes = {name: list(names) for name, names in (classes or {}).items() if name in self._columns}
        self.notices = list(notices)
        self.has_header = has_header

    def __getitem__(self, name: str) -> list[Any]:
        parts = self._columns[name]
        if len(parts) > 1 or not isinstance(parts[0], list):
            self._columns[name] = [[value for part in parts for value in self._listed(part, name)]]
        found: list[Any] = self._columns[name][0]
        return found

    def __setitem__(self, name: str, column: list[Any]) -> None:
        self._columns[name] = [column]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    @property
    def rows(self) -> int:
        """How many there are."""
        return sum(len(part) for part in next(iter(self._columns.values()), []))

    def has_text(self, name: str) -> bool:
        """Return True if a column has words: not numbers and truth values alone, however they are written."""
        return any(self._is_text(part, name) for part in self._columns[name])

    def append(self, more: Table) -> None:
        """Put another table's rows below, which has each column of this one.

        Where classes are declared otherwise than here, labels are matched by the names of their classes.
        """
        for name in self._columns:
            if self.classes.get(name) != more.classes.get(name):
                self._match(name, more)
            self._columns[name] += more._columns[name]
        self.notices += more.notices

    def take(self, rows: Sequence[int]) -> Table:
        """Return some rows as a table of their own."""
        columns = {}
        for name, parts in self._columns.items():
            lone = parts[0] if len(parts) == 1 else self[name]
            columns[name] = [lone[row] for row in rows] if isinstance(lone, list) else lone.take(pa.array(rows))
        return Table(columns, self.where, self.classes, self.notices, has_header=self.has_header)

    def _match(self, name: str, more: Table) -> None:
        """Let a column's labels of another table be places among the names of this one; unknown names come after."""
        if name not in self.classes:
            names = more.classes[name]
            more._columns[name] = [[_name_of(value, names) for value in more[name]]]
            return
        own = self.classes[name]
        places = {known: place for place, known in enumerate(own)}
        # What is no place here must not become one.
        self._columns[name] = [[_NOWHERE if _is_outside(value, own) else value for value in self[name]]]
        theirs = more.classes.get(name)

        def place(value: Any) -> Any:
            if labels.is_missing(value) or not labels.is_class(value):
                return value
            word = labels.named(value) if theirs is None else _name_of(value, theirs)
            return None if word is None else places.setdefault(str(word), len(places))

        more._columns[name] = [[place(value) for value in more[name]]]
        self.classes[name] = list(places)

    def _is_text(self, part: Column, name: str) -> bool:
        if isinstance(part, list):
            return any(isinstance(value, str) and not _NOT_TEXT.match(value) for value in part)
        kind = part.type.value_type if pa.types.is_dictionary(part.type) else part.type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
            return False
        # Most texts say so at once; numbers are looked at to their end.
        for chunk in part.chunks:
            words = chunk.cast(pa.large_string())
            if pc.all(pc.match_substring_regex(words, labels.NOT_TEXT), min_count=0).as_py() is False:
                return True
        return False

    def _listed(self, part: Column, name: str) -> list[Any]:
        if isinstance(part, list):
            return part
        try:
            found: list[Any] = part.to_pylist()
        except UnicodeDecodeError:
            row = next(row for row, value in enumerate(part) if not _is_readable(value))
            raise DataError(
                f"{self.where}: row {row + 1:,}: column {name!r} is no UTF-8; write the file again with UTF-8 texts"
            ) from None
        except (pa.ArrowException, ValueError, OverflowError) as error:
            raise DataError(f"{self.where}: column {name!r} cannot be read: {str(error)[:200]}") from None
        return found


def refuse_doubles(names: list[str], where: str) -> None:
    """Refuse columns of one name."""
    doubles = sorted({name for name in names if names.count(name) > 1})
    if doubles:
        raise DataError(f"{where}: more than one column is called {', '.join(map(repr, doubles))}; rename them")


def _is_outside(value: Any, names: Sequence[str]) -> bool:
    return isinstance(value, int) and value not in range(-1, len(names))


def _name_of(value: Any, names: Sequence[str]) -> Any:
    """Return the name of a class by its place; None where a label is hidden, and what has no name as it is."""
    if value is None or value == -1:
        return None
    is_place = isinstance(value, int) and value in range(len(names))
    return names[value] if is_place else f"{value} (none of {', '.join(names)})"


def _is_readable(value: pa.Scalar) -> bool:
    try:
        value.as_py()
    except UnicodeDecodeError:
        return False
    return True
