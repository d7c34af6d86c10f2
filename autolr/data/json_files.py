"""Reading json and jsonl: records, a record a line, or columns."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from autolr.data.columns import Table
from autolr.data.text_files import listed, open_text
from autolr.errors import DataError


def read(path: Path, where: str) -> Table:
    """Read a list of records, a record a line, or an object of columns.

    Args:
        path: of the file.
        where: names it in messages.

    Raises:
        DataError: it is no JSON, or none of these.
    """
    with open_text(path) as file:
        first = next((line for line in file if line.strip()), "")
    try:
        lone = _parsed(first) if first.lstrip().startswith("{") else None
    except (ValueError, RecursionError):
        lone = None
    with open_text(path) as file:
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
            f"{where}: lines that cannot be read: {len(problems):,}. Mend or remove them{listed(problems)}"
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


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:40]}..."


def _and_more(count: int) -> str:
    return f" (and {count - 1:,} more)" if count > 1 else ""
