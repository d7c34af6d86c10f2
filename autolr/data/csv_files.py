"""Reading csv and tsv: the separator is found, quotes are checked, and every row has the fields of the header."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from autolr.data.columns import Table, refuse_doubles
from autolr.data.text_files import listed, open_text
from autolr.errors import DataError

_SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
# Lines in which the separator is looked for, and rows that are read at once.
SNIFFED_LINES, ROWS_AT_ONCE = 200, 1_000


@contextmanager
def _fields_of_any_length() -> Iterator[None]:
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def read(path: Path, where: str) -> Table:
    """Read columns of text; what is a number is decided later, on the whole column.

    Args:
        path: of the file.
        where: names it in messages.

    Raises:
        DataError: its rows do not fit its header, or its separator is not clear.
    """
    usual = "\t" if path.suffix.lower() == ".tsv" else ","
    notices = []
    with _fields_of_any_length():
        separator, skipped = _separator(path, usual, where)
        if separator != usual:
            notices.append(f"the columns of this file are separated by {_called(separator)}")
        try:
            columns = _columns(path, where, separator, csv.QUOTE_MINIMAL, skipped)
        except csv.Error:
            try:
                if separator != "\t":
                    raise
                columns = _columns(path, where, separator, csv.QUOTE_NONE, skipped)
            except csv.Error:
                problems = _problems(path, separator, skipped)
                raise DataError(
                    f"{where}: rows that do not fit the header: {len(problems):,}. Put quotes around fields with "
                    f"{_called(separator)}, and double the quotes inside of them{listed(problems)}"
                ) from None
            notices.append("quotes are taken as they are: as quotes around fields they do not fit the rows")
        else:
            if separator == "\t":
                _refuse_two_readings(path, where, columns, skipped)
    return Table(columns, where, notices=notices, has_header=True)


def _columns(
    path: Path, where: str, separator: str, quoting: Literal[0, 3], skipped: int
) -> dict[str, pa.ChunkedArray]:
    """Return the columns of a file.

    Raises:
        csv.Error: quotes do not fit, or a row has not as many fields as the header.
    """
    with open_text(path) as file:
        next(islice(file, skipped, skipped), None)
        rows = csv.reader(file, delimiter=separator, quoting=quoting, strict=True)
        names = next((row for row in rows if row), [])
        header = [name.strip() or f"Unnamed: {place}" for place, name in enumerate(names)]
        refuse_doubles(header, where)
        chunks: list[list[pa.Array]] = [[] for _ in header]
        while batch := list(islice(rows, ROWS_AT_ONCE)):
            widths = set(map(len, batch))
            if 0 in widths:  # blank lines
                batch = [row for row in batch if row]
            if widths - {0} - {len(header)}:
                raise csv.Error("a row has not as many fields as the header")
            for column, values in zip(chunks, zip(*batch, strict=True), strict=bool(batch)):
                column.append(pa.array(values, pa.large_string()))
    return {name: pa.chunked_array(own, pa.large_string()) for name, own in zip(header, chunks, strict=True)}


def _refuse_two_readings(path: Path, where: str, columns: dict[str, pa.ChunkedArray], skipped: int) -> None:
    """Refuse quotes that join rows if the rows fit without them too: many programs write tabs and no quotes."""
    broken = [column for column in columns.values() if pc.any(pc.match_substring(column, "\n")).as_py()]
    if not broken:
        return
    try:
        _columns(path, where, "\t", csv.QUOTE_NONE, skipped)
    except csv.Error:
        return
    row = pc.index(pc.match_substring(broken[0], "\n"), True).as_py() + 1
    raise DataError(
        f"{where}: row {row:,} has a quote that joins lines, and each line fits the header without it. Save the "
        "file as csv or jsonl"
    )


def _separator(path: Path, usual: str, where: str) -> tuple[str, int]:
    """Find what separates fields, and how many lines come before the header.

    Excel writes `sep=;` into the first line where it does not trust its reader.
    """
    with open_text(path) as file:
        lines = [line for line in islice(file, SNIFFED_LINES)]
    stated = re.fullmatch(r'"?sep=(.)"?[\r\n]*', lines[0], re.IGNORECASE) if lines else None
    if stated:
        return stated[1], 1
    splits, fits = [], []
    for separator in _SEPARATORS:
        rows = [row for row in csv.reader(lines, delimiter=separator) if row]
        if rows and len(rows[0]) > 1:
            splits.append(separator)
            if len({len(row) for row in rows[:-1] or rows}) == 1:  # the last may be cut
                fits.append(separator)
    found = fits or splits
    if not found or usual in found:
        return usual, 0
    if len(found) > 1:
        raise DataError(
            f"{where}: its columns may be separated by {' or '.join(_SEPARATORS[one] for one in found)}; separate "
            f"them by {_SEPARATORS[usual]}"
        )
    return found[0], 0


def _problems(path: Path, separator: str, skipped: int) -> list[str]:
    """Return a line for each row that has not the fields of the header, or whose quotes do not fit."""
    problems, width = [], 0
    with open_text(path) as file:
        next(islice(file, skipped, skipped), None)
        reader = csv.reader(file, delimiter=separator, strict=True)
        number, line = 0, 1 + skipped
        try:
            for row in reader:
                if row and width and len(row) != width:
                    fields = "1 field" if len(row) == 1 else f"{len(row)} fields"
                    problems.append(f"row {number:,} (line {line:,}): {fields}, the header {width}")
                width = width or len(row)
                number += bool(row)
                line = reader.line_num + 1 + skipped
        except csv.Error as error:
            what = "a quote is opened and never closed" if "end of data" in str(error) else f"quotes: {error}"
            problems.append(f"row {number:,} (line {line:,}): {what}")
    return problems


def _called(separator: str) -> str:
    return _SEPARATORS.get(separator, repr(separator))
