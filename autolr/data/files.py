"""Reading one file: every format gives the same columns, or a message that names the line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow as pa

from autolr.data import csv_files, json_files
from autolr.data.columns import Table, refuse_doubles
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
        return csv_files.read(path, where) if kind == "csv" else json_files.read(path, where)
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
    refuse_doubles(names, where)
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
