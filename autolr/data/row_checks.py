"""Examples that nothing can be learned from: a few are left out one by one, with a report; many are an error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from autolr.data import labels as kinds
from autolr.data.columns import Table
from autolr.data.labels import is_missing
from autolr.errors import DataError
from autolr.schema.data import TaskName

# More than this share of examples that are unfit is no accident, but another column than was meant.
MAX_UNFIT_SHARE = 0.05
# Texts longer than this, in characters, are told of: only their beginning is ever read.
LONG_TEXT_CHARACTERS = 100_000
SHOWN_ROWS = 5


_REMEDY = "remove these rows, or choose a labelled split or label_column"


class Verdict(NamedTuple):
    """What is wrong with a label, and whether its row cannot simply be left out."""

    reason: str
    remedy: str
    is_fatal: bool = False


class RowChecker:
    """Looks for unfit examples in a table, column by column.

    Args:
        table: all examples.
        where: the source, for messages.
        numbers: of the rows in the source, from 0; None: they are all there.
    """

    def __init__(self, table: Mapping[str, list[Any]], where: str, numbers: Sequence[int] | None = None) -> None:
        self.table = table if isinstance(table, Table) else Table(table, where)
        self.where = where
        self.numbers = numbers
        self.rows = self.table.rows
        self.unfit: dict[int, str] = {}
        self._remedy: dict[str, str] = {}
        self._remarks: dict[str, list[int]] = {}

    def texts(self, column: str) -> None:
        """Look at texts.

        Raises:
            DataError: more are unfit than can be an accident.
        """
        for row, text in enumerate(self.table[column]):
            if isinstance(text, bytes):
                raise DataError(
                    f"{self.where}: row {row + 1:,}: column {column!r} has bytes; save its texts as strings (UTF-8)"
                )
            if is_missing(text) or not isinstance(text, str) or not text.replace("\0", "").strip():
                self.leave_out(row, f"no text in column {column!r}", "remove them or choose another text_column")
            elif not _is_whole(text):
                self.leave_out(row, f"half a character in column {column!r}", "save the texts as UTF-8")
            elif len(text) > LONG_TEXT_CHARACTERS:
                self.remark(row, f"a text of more than {LONG_TEXT_CHARACTERS:,} characters, whose beginning is read")
            elif "\0" in text:
                self.remark(row, "a text with NUL characters, which is taken as it is")
        self.check()

    def labels(self, column: str, task: TaskName, names: Sequence[str] | None) -> None:
        """Look at labels.

        Args:
            column: holds them.
            task: says what they are.
            names: of the classes, where the source declares them; labels are then their indices, and -1 is how hub
                data sets mark those of a hidden test split.

        Raises:
            DataError: a label is none that can be learned, or more are unfit than can be an accident.
        """
        seen: dict[Any, Verdict | None] = {}
        for row, label in enumerate(self.table[column]):
            try:
                found = seen[type(label), label]
            except (KeyError, TypeError):  # a list has no place in a dictionary
                found = _of_label(label, column, task, names)
                if found is not None and found.is_fatal:
                    raise DataError(f"{self.where}: row {row + 1:,}: {found.reason}; {found.remedy}") from None
                seen[type(label), label] = found
            if found is not None:
                self.leave_out(row, found.reason, found.remedy)
        self.check()

    def strangers(self, column: str, parts: Sequence[str]) -> None:
        """Look for labels in *validation* or *test* that *train* does not have."""
        labels = self.table[column]
        known = {label for row, label in enumerate(labels) if parts[row] == "train" and row not in self.unfit}
        for row, label in enumerate(labels):
            if row not in self.unfit and label not in known:
                self.leave_out(row, f"a label in column {column!r} that train does not have", "check the splits")
        self.check()

    def sifted(self, parts: Sequence[str]) -> tuple[Table, list[str], tuple[str, ...]]:
        """Return the table and the parts without what is unfit, and the report."""
        kept = [row for row in range(self.rows) if row not in self.unfit]
        table = self.table.take(kept) if self.unfit else self.table
        by_reason: dict[str, list[int]] = {}
        for row, reason in sorted(self.unfit.items()):
            by_reason.setdefault(reason, []).append(row)
        report = [
            f"{len(rows):,} of {self.rows:,} examples left out: {why} ({self._named(rows)})"
            for why, rows in by_reason.items()
        ]
        report += [
            f"{len(rows):,} of {self.rows:,} examples have {what} ({self._named(rows)})"
            for what, rows in self._remarks.items()
        ]
        return table, [parts[row] for row in kept], tuple(report)

    def leave_out(self, row: int, reason: str, remedy: str) -> None:
        """Leave a row out.

        Args:
            row: its place in the table.
            reason: what it has, after "rows have".
            remedy: what to do if many rows have it.
        """
        self._remedy[reason] = remedy
        self.unfit.setdefault(row, reason)

    def remark(self, row: int, what: str) -> None:
        """Report what a row has, after "examples have", and keep the row."""
        self._remarks.setdefault(what, []).append(row)

    def check(self) -> None:
        """Look at how many rows are left out.

        Raises:
            DataError: more than can be an accident.
        """
        if len(self.unfit) <= MAX_UNFIT_SHARE * self.rows:
            return
        first, reason = min(self.unfit.items())
        alike = sum(why == reason for why in self.unfit.values())
        raise DataError(
            f"{self.where}: {alike} of {self.rows} rows have {reason} (first: row {self._number(first)}); up to "
            f"{MAX_UNFIT_SHARE:.0%} are left out with a note, so many are a mistake: {self._remedy[reason]}"
        )

    def _number(self, row: int) -> int:
        return 1 + (row if self.numbers is None else self.numbers[row])

    def _named(self, rows: Sequence[int]) -> str:
        shown = ", ".join(str(self._number(row)) for row in rows[:SHOWN_ROWS])
        return f"row{'s' if len(rows) > 1 else ''} {shown}" + (", ..." if len(rows) > SHOWN_ROWS else "")


def _of_label(label: Any, column: str, task: TaskName, names: Sequence[str] | None) -> Verdict | None:
    """Return what is wrong with a label; None if nothing is."""
    if is_missing(label) or (names is not None and label == -1):
        return Verdict(f"no label in column {column!r}", _REMEDY)
    if kinds.is_several(label):
        return Verdict(
            f"column {column!r} has several labels for one text ({str(label)[:60]}), and labels must be integers or "
            "strings",
            "give each text one label",
            is_fatal=True,
        )
    if not kinds.is_class(label):
        reason = f"labels in column {column!r} must be integers or strings, not {kinds.kind(label)}"
        return Verdict(reason, "convert them", is_fatal=True)
    if task == "regression":
        if kinds.has_decimal_comma(label):
            return Verdict(f"a number with a decimal comma in column {column!r}", "write 1.5, not 1,5")
        if kinds.number(label) is None:
            return Verdict(f"a label in column {column!r} that is no number", _REMEDY)
    elif names is not None and not (isinstance(label, int) and label in range(len(names))):
        return Verdict(f"a label in column {column!r} that is none of the {len(names)} classes", _REMEDY)
    elif isinstance(label, str) and not _is_whole(label):
        return Verdict(f"half a character in column {column!r}", "save the labels as UTF-8")
    return None


def _is_whole(text: str) -> bool:
    """Return True if a text can be written as UTF-8: half of a surrogate pair cannot."""
    try:
        text.isascii() or text.encode()
    except UnicodeEncodeError:
        return False
    return True
