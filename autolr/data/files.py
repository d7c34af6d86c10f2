"""Reading one file: every format gives the same columns, or a message that names the line."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TextIO

import pyarrow as pa
import pyarrow.compute as pc

from autolr.data.columns import Table
from autolr.errors import DataError

FORMATS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "arrow", ".arrow": "arrow"}
KNOWN = "a csv, tsv, json, jsonl, parquet or arrow file, or a folder saved by datasets"
# Other suffixes that people try, and how to come to a file that is read.
_REMEDIES = {
    ".xlsx": "save the sheet as csv (UTF-8)",
    ".xls": "save the sheet as csv (UTF-8)",
    ".gz": "unpack it with gunzip",
    ".zip": "unpack it",
    ".ndjson": "rename it to .jsonl",
    ".txt": "rename it to .tsv if tabs separate its columns",
}
# How files begin that are no text, whatever they are called.
_BEGINNINGS = {
    b"\x1f\x8b": "packed with gzip; unpack it with gunzip",
    b"PK\x03\x04": "a zip file or an Excel workbook; unpack it, or save the sheet as csv (UTF-8)",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook; save the sheet as csv (UTF-8)",
    b"PAR1": "a parquet file; rename it to .parquet",
    b"ARROW1": "an arrow file; rename it to .arrow",
    b"\xff\xfe": "UTF-16; save it as UTF-8: iconv -f UTF-16 -t UTF-8",
    b"\xfe\xff": "UTF-16; save it as UTF-8: iconv -f UTF-16 -t UTF-8",
}
_SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
# Lines that separators are found in, rows that are read at once, and problems that a message lists.
_LOOKED_AT, _AT_ONCE, _SHOWN = 200, 1_000, 5


def read(path: Path, source: str) -> Table:
    """Read a file.

    Args:
        path: of the file.
        source: what the user calls it, for messages.

    Raises:
        DataError: it cannot be read as what its suffix says.
    """
    where, suffix = f"data {source!r}", path.suffix.lower()
    if not path.exists():
        star = "; patterns such as *.csv are not expanded" if "*" in source else ""
        raise DataError(f"{where}: no such file; give {KNOWN} (--data){star}")
    if suffix not in FORMATS:
        remedy = _REMEDIES.get(suffix)
        raise DataError(
            f"{where}: files of kind {suffix or 'without suffix'!r} are not read; known: {', '.join(FORMATS)}"
            + (f" ({remedy})" if remedy else "")
        )
    if not path.is_file():
        raise DataError(f"{where}: is no ordinary file")  # a pipe or a device may never end
    if path.stat().st_size == 0:
        raise DataError(f"{where}: the file is empty")
    kind = FORMATS[suffix]
    try:
        if kind == "arrow":
            return arrow(_arrow_file(path), where)
        _refuse_what_is_no_text(path, where)
        return _csv(path, where) if kind == "csv" else _json(path, where)
    except DataError:
        raise
    except UnicodeDecodeError:
        raise DataError(f"{where}: {_first_wrong_byte(path)}") from None
    except Exception as error:
        # Parsers raise what they like on a damaged file; whatever it is, the file is at fault.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"{where}: cannot be read as {suffix[1:]}: {reason[:200]}") from None


def arrow(table: pa.Table, where: str) -> Table:
    """Return an Arrow table; names of classes are found in what `datasets` writes beside its schema."""
    names = [name for name in table.column_names if not re.fullmatch(r"__index_level_\d+__", name)]  # pandas' index
    _refuse_doubles(names, where)
    about = (table.schema.metadata or {}).get(b"huggingface", b"{}")
    try:
        features = json.loads(about).get("info", {}).get("features", {})
        classes = {
            name: [str(one) for one in feature["names"]]
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names")
            # Other programs may have put the names themselves in place of their numbers.
            if name in names and pa.types.is_integer(table.schema.field(name).type)
        }
    except (ValueError, AttributeError, TypeError):
        raise DataError(
            f"{where}: what datasets wrote about its columns is damaged (schema metadata 'huggingface'); "
            "write the file again"
        ) from None
    return Table({name: table.column(name) for name in names}, where, classes)


def _arrow_file(path: Path) -> pa.Table:
    import pyarrow.parquet as pq

    if path.suffix.lower() == ".parquet":
        with pq.ParquetFile(path) as file:
            return file.read()
    with pa.OSFile(str(path)) as file:
        try:
            return pa.ipc.open_file(file).read_all()
        except pa.ArrowInvalid:
            file.seek(0)
            return pa.ipc.open_stream(file).read_all()  # what datasets writes


def _refuse_doubles(names: list[str], where: str) -> None:
    doubles = sorted({name for name in names if names.count(name) > 1})
    if doubles:
        raise DataError(f"{where}: more than one column is called {', '.join(map(repr, doubles))}; rename them")


def _refuse_what_is_no_text(path: Path, where: str) -> None:
    with path.open("rb") as file:
        head = file.read(8)
    for beginning, what in _BEGINNINGS.items():
        if head.startswith(beginning):
            raise DataError(f"{where}: by its first bytes this is {what}")
    if b"\0" in head[:4]:
        raise DataError(f"{where}: is binary, or UTF-16; save it as UTF-8: iconv -f UTF-16 -t UTF-8")


def _first_wrong_byte(path: Path) -> str:
    data = path.read_bytes()
    try:
        data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return (
            f"line {line:,}: byte {data[error.start]:#04x} at place {error.start:,} is no UTF-8; save the file as "
            "UTF-8, for example with: iconv -f WINDOWS-1252 -t UTF-8"
        )
    return "changed while it was read; give the command again"


def _lines(path: Path) -> TextIO:
    return path.open(encoding="utf-8-sig", newline="")


# csv and tsv


@contextmanager
def _fields_of_any_length() -> Iterator[None]:
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _csv(path: Path, where: str) -> Table:
    """Read text columns; what is a number is decided later, on the whole column."""
    usual = "\t" if path.suffix.lower() == ".tsv" else ","
    notices = []
    with _fields_of_any_length():
        separator, skipped = _separator(path, usual, where)
        if separator != usual:
            notices.append(f"the columns of this file are separated by {_called(separator)}")
        try:
            columns = _csv_columns(path, where, separator, csv.QUOTE_MINIMAL, skipped)
        except csv.Error:
            try:
                if separator != "\t":
                    raise
                columns = _csv_columns(path, where, separator, csv.QUOTE_NONE, skipped)
            except csv.Error:
                problems = _csv_problems(path, separator, skipped)
                raise DataError(
                    f"{where}: rows that do not fit the header: {len(problems):,}. Put quotes around fields with "
                    f"{_called(separator)}, and double the quotes inside of them{_listed(problems)}"
                ) from None
            notices.append("quotes are taken as they are: as quotes around fields they do not fit the rows")
        else:
            if separator == "\t":
                _refuse_two_readings(path, where, columns, skipped)
    return Table(columns, where, notices=notices, has_header=True)


def _csv_columns(
    path: Path, where: str, separator: str, quoting: Literal[0, 3], skipped: int
) -> dict[str, pa.ChunkedArray]:
    """Return the columns of a file.

    Raises:
        csv.Error: quotes do not fit, or a row has not as many fields as the header.
    """
    with _lines(path) as file:
        next(islice(file, skipped, skipped), None)
        rows = csv.reader(file, delimiter=separator, quoting=quoting, strict=True)
        names = next((row for row in rows if row), [])
        header = [name.strip() or f"Unnamed: {place}" for place, name in enumerate(names)]
        _refuse_doubles(header, where)
        chunks: list[list[pa.Array]] = [[] for _ in header]
        while batch := list(islice(rows, _AT_ONCE)):
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
        _csv_columns(path, where, "\t", csv.QUOTE_NONE, skipped)
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
    with _lines(path) as file:
        lines = [line for line in islice(file, _LOOKED_AT)]
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


def _csv_problems(path: Path, separator: str, skipped: int) -> list[str]:
    """Return a line for each row that has not the fields of the header, or whose quotes do not fit."""
    problems, width = [], 0
    with _lines(path) as file:
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


# json and jsonl


def _json(path: Path, where: str) -> Table:
    """Read a list of records, a record a line, or an object of columns."""
    with _lines(path) as file:
        first = next((line for line in file if line.strip()), "")
    try:
        lone = _parsed(first) if first.lstrip().startswith("{") else None
    except (ValueError, RecursionError):
        lone = None
    with _lines(path) as file:
        if isinstance(lone, dict):
            records = list(_records(file, where))
            is_record = len(records) > 1 or path.suffix.lower() == ".jsonl"
            return _of_records(records, where) if is_record else _of_object(records[0], where)
        try:
            whole = _parsed(file.read())
        except (ValueError, RecursionError) as error:
            if path.suffix.lower() == ".jsonl" or first.rstrip().endswith("}"):  # a record a line
                file.seek(0)
                list(_records(file, where))
            at = f"line {error.lineno:,}: " if isinstance(error, json.JSONDecodeError) else ""
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)[:100]
            raise DataError(f"{where}: {at}is no JSON ({reason}); mend or remove it") from None
    if isinstance(whole, dict):
        return _of_object(whole, where)
    if not isinstance(whole, list):
        raise DataError(f"{where}: contains {_shown(whole)}; give a list of records, or one record a line")
    wrong = [row for row, record in enumerate(whole) if not isinstance(record, dict)]
    if wrong:
        raise DataError(
            f"{where}: row {wrong[0] + 1:,} is {_shown(whole[wrong[0]])}, no record with names"
            f'{_and_more(len(wrong))}; write records such as {{"text": ..., "label": ...}}'
        )
    return _of_records(whole, where)


def _parsed(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_record)


def _record(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name {next(name for name in names if names.count(name) > 1)!r} occurs twice")
    return found


def _records(file: TextIO, where: str) -> Iterator[dict[str, Any]]:
    """Yield the record of each line.

    Raises:
        DataError: lines are no records; the first of them are named.
    """
    problems = []
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            record = _parsed(line)
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            problems.append(f"line {number:,}: is no JSON ({reason[:100]})")
            continue
        if isinstance(record, dict):
            yield record
        else:
            problems.append(f"line {number:,}: is {_shown(record)}, no record")
    if problems:
        raise DataError(
            f"{where}: lines that cannot be read: {len(problems):,}. Mend or remove them{_listed(problems)}"
        )


def _of_records(records: Iterable[dict[str, Any]], where: str) -> Table:
    columns: dict[str, list[Any]] = {}
    for number, record in enumerate(records):
        for name, value in record.items():
            column = columns.get(name)
            if column is None:
                column = columns[name] = [None] * number
            column.append(value)
        if len(record) < len(columns):
            for column in columns.values():
                if len(column) == number:
                    column.append(None)
    return Table(columns, where)


def _is_columns(found: dict[str, Any]) -> bool:
    """Return True if an object has a list for each column, or as pandas writes it, values by row names."""
    kinds = {type(value) for value in found.values()}
    return kinds == {list} or (
        kinds == {dict} and all(row.isdecimal() for column in found.values() for row in column)
    )


def _of_object(found: dict[str, Any], where: str) -> Table:
    inner = [name for name, value in found.items() if isinstance(value, list) and value and _are_records(value)]
    if len(inner) == 1 and sum(isinstance(value, list) for value in found.values()) == 1:
        raise DataError(f"{where}: its records lie under {inner[0]!r}; write that list alone, or one record a line")
    if found and all(name.isdecimal() for name in found) and _are_records(list(found.values())):
        return _of_records(found.values(), where)  # pandas' orient="index"
    return _of_columns(found, where) if _is_columns(found) else _of_records([found], where)


def _are_records(values: list[Any]) -> bool:
    return all(isinstance(value, dict) for value in values)


def _of_columns(found: dict[str, Any], where: str) -> Table:
    if not all(isinstance(column, list) for column in found.values()):
        rows = list(next(iter(found.values())))
        other = next((name for name, column in found.items() if list(column) != rows), None)
        if other is not None:
            raise DataError(f"{where}: column {other!r} has other rows than the first; write one record for each row")
        found = {name: list(column.values()) for name, column in found.items()}
    lengths = {name: len(column) for name, column in found.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} {length:,}" for name, length in lengths.items())
        raise DataError(f"{where}: its columns are not equally long ({told}); write one record for each row")
    return Table(found, where)


def _listed(problems: list[str]) -> str:
    more = [f"... and {len(problems) - _SHOWN:,} more"] if len(problems) > _SHOWN else []
    return "".join(f"\n  {line}" for line in [*problems[:_SHOWN], *more])


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:40]}..."


def _and_more(count: int) -> str:
    return f" (and {count - 1:,} more)" if count > 1 else ""
