"""A table is the same data in whatever format it comes; compared with what the writers of these formats write."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autolr.data import sources
from autolr.errors import DataError
from autolr.schema.data import Data, TaskName

Columns = dict[str, list]
ROWS = 24


def as_csv(path: Path, columns: Columns, separator: str = ",") -> None:
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=separator)
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    path.write_text(file.getvalue(), encoding="utf-8", newline="")


def records(columns: Columns) -> list[dict]:
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def as_jsonl(path: Path, columns: Columns) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in records(columns)), encoding="utf-8")


def as_arrow(path: Path, columns: Columns) -> None:
    table = pa.table(columns)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


WRITERS = {
    "d.csv": as_csv,
    "semicolons.csv": lambda path, columns: as_csv(path, columns, ";"),
    "bom.csv": lambda path, columns: (as_csv(path, columns), path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())),
    "d.tsv": lambda path, columns: as_csv(path, columns, "\t"),
    "d.jsonl": as_jsonl,
    "d.json": lambda path, columns: path.write_text(json.dumps(records(columns)), encoding="utf-8"),
    "columns.json": lambda path, columns: path.write_text(json.dumps(columns, indent=1), encoding="utf-8"),
    "pandas.json": lambda path, columns: pd.DataFrame(columns, dtype=object).to_json(path),
    "d.parquet": lambda path, columns: pq.write_table(pa.table(columns), path),
    "d.arrow": as_arrow,
    "saved": lambda path, columns: Dataset.from_dict(columns).save_to_disk(str(path)),
}


def read(folder: Path, columns: Columns, task: TaskName) -> dict[str, object]:
    """Return what each format gives: the examples, or that they are refused."""
    found: dict[str, object] = {}
    for name, write in WRITERS.items():
        write(folder / name, columns)
        try:
            examples = sources.load(Data(source=str(folder / name)), task)
        except DataError:
            found[name] = "refused"
        else:
            found[name] = (examples.texts, examples.labels, examples.classes, examples.fingerprint)
    return found


LABELS = {
    "integers": st.sampled_from([0, 1, 2, -1, 10]),
    "some missing": st.sampled_from([0, 1, 1, 0, 1, 0, 1, None]),
    "whole floats": st.sampled_from([0.0, 1.0, -2.0]),
    "truth": st.booleans(),
    "words": st.sampled_from(["good", "bad", " bad", "NA", "null", "None", "nan", "n/a"]),
    "words of digits": st.sampled_from(["007", "7", "08", "1e3"]),
    "words that mix": st.sampled_from(["0", "1", "1.0", "other", "true"]),
    "days": st.sampled_from(["2024-01-01", "2024-02-30", "12:30"]),
    "letters": st.sampled_from(["é", "ß", "日本", "🙂", "a,b", 'say "no"', "two\nlines", "tab\tbed", "semi;colon"]),
}


@pytest.mark.parametrize("kind", LABELS)
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_the_same_examples_from_every_format(tmp_path_factory, kind, data):
    letters = st.characters(exclude_categories=["Cs"])
    texts = data.draw(st.lists(st.text(letters, max_size=30), min_size=ROWS, max_size=ROWS))
    named = [f"{text} text {row}" if row % 12 else text for row, text in enumerate(texts)]
    labels = data.draw(st.lists(LABELS[kind], min_size=ROWS, max_size=ROWS))
    found = read(tmp_path_factory.mktemp("set"), {"text": named, "label": labels}, "classification")
    if any("\t" in text and "\n" in text for text in named) and found["d.tsv"] == "refused":
        del found["d.tsv"]  # each of its lines fits the header with the quotes and without them
    assert all(one == found["d.parquet"] for one in found.values()), found


def test_classes_are_what_is_written(tmp_path):
    """What the property compares is no refusal, for a table that all formats can hold."""
    labels = [*["007", "7", "NA", "true"] * 6]
    found = read(
        tmp_path, {"text": [f'text {n}, with\na "comma"' for n in range(24)], "label": labels}, "classification"
    )
    assert all(one[2] == ["007", "7", "NA", "true"] for one in found.values()), found


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.floats(-3, 3).map(lambda value: value + 0.0), min_size=ROWS, max_size=ROWS))
def test_the_same_numbers_from_every_format(tmp_path_factory, numbers):
    columns = {"text": [f"text {row}" for row in range(ROWS)], "label": numbers}
    found = read(tmp_path_factory.mktemp("set"), columns, "regression")
    del found["pandas.json"]  # rounds to ten places
    assert all(one == found["d.parquet"] for one in found.values()), found


def test_integers_as_a_csv_of_floats_are_integers(tmp_path):
    """Pandas writes integers as floats if one is missing."""
    texts = [f"text {n}" for n in range(40)]
    pd.DataFrame({"text": texts, "label": [None, *[0, 1] * 19, 1]}).to_csv(tmp_path / "d.csv")
    examples = sources.load(Data(source=str(tmp_path / "d.csv")))
    assert examples.classes == ["0", "1"] and len(examples) == 39
    assert examples.notices == ("1 of 40 examples left out: no label in column 'label' (row 1)",)


@pytest.mark.parametrize(
    "column",
    [
        pd.array([0, 1] * 19 + [None, 1], dtype="Int64"),
        pd.array([0, 1] * 19 + [None, 1], dtype="UInt8"),
        pd.array([False, True] * 19 + [None, True], dtype="boolean"),
        pd.array(["no", "yes"] * 19 + [None, "yes"], dtype="string"),
        pd.Categorical(["no", "yes"] * 19 + [None, "yes"]),
        pa.array(["no", "yes"] * 19 + [None, "yes"], pa.large_string()),
        pa.array([0, 1] * 19 + [None, 1], pa.decimal128(9, 2)),
        pa.array([0, 1] * 19 + [None, 1], pa.float32()),
        pa.array([0, 1] * 19 + [None, 1], pa.int8()),
        pa.array(["no", "yes"] * 19 + [None, "yes"]).dictionary_encode(),
    ],
    ids=str,
)
def test_columns_that_may_be_empty_in_parquet(tmp_path, column):
    texts = [f"text {n}" for n in range(40)]
    if isinstance(column, pa.Array):
        pq.write_table(pa.table({"text": texts, "label": column}), tmp_path / "d.parquet")
    else:
        pd.DataFrame({"text": texts, "label": column}).to_parquet(tmp_path / "d.parquet")
    examples = sources.load(Data(source=str(tmp_path / "d.parquet")))
    assert examples.labels == [0, 1] * 19 + [1] and len(examples.classes) == 2
    assert examples.notices == ("1 of 40 examples left out: no label in column 'label' (row 39)",)


def test_names_of_classes_from_every_format_that_keeps_them(tmp_path):
    """The file may have other columns of classes; the labels are those of the label column."""
    about = Features(text=Value("string"), other=ClassLabel(names=["z", "y"]), label=ClassLabel(names=["no", "yes"]))
    labels = [-1, *[0, 1] * 19, 0]
    rows = {"text": [f"text {n}" for n in range(40)], "other": [1] * 40, "label": labels}
    saved = Dataset.from_dict(rows, features=about)
    saved.save_to_disk(str(tmp_path / "saved"))
    saved.to_parquet(str(tmp_path / "d.parquet"))
    stream = next((tmp_path / "saved").glob("*.arrow"))
    stream.rename(tmp_path / "stream.arrow")
    saved.save_to_disk(str(tmp_path / "again"))
    for name in ("again", "d.parquet", "stream.arrow"):
        data = Data(source=str(tmp_path / name), text_column="text", label_column="label")
        examples = sources.load(data)
        assert examples.classes == ["no", "yes"] and examples.labels == [0, 1] * 19 + [0], name
        assert "1 of 40 examples left out: no label in column 'label' (row 1)" in examples.notices
