"""From files to labelled texts and three splits; what is wrong is named."""

from __future__ import annotations

import pandas as pd
import pytest

from autolr.data import sources, splits
from autolr.errors import DataError
from autolr.schema.data import Data


def write(path, table: dict) -> Data:
    frame = pd.DataFrame(table)
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    elif path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_json(path, orient="records", lines=True)
    return Data(source=str(path))


TEXTS = [f"text number {n}" for n in range(40)]
LABELS = [n % 2 for n in range(40)]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_every_format_gives_the_same_examples(tmp_path, suffix):
    examples = sources.load(write(tmp_path / f"d{suffix}", {"review": TEXTS, "sentiment": LABELS}))
    assert examples.texts == TEXTS
    assert examples.labels == LABELS
    assert examples.classes == ["0", "1"]


def test_words_that_pandas_takes_for_missing_are_words(tmp_path):
    data = write(tmp_path / "d.csv", {"text": ["null", "NA", "nan", *TEXTS], "label": ["NA", "x", "NA", *["x"] * 40]})
    examples = sources.load(data)
    assert examples.texts[:3] == ["null", "NA", "nan"]
    assert examples.classes == ["NA", "x"]


def test_minus_one_is_a_label_like_any_other(tmp_path):
    examples = sources.load(write(tmp_path / "d.csv", {"text": TEXTS, "label": [-1, 1] * 20}))
    assert examples.classes == ["-1", "1"]


def test_the_embedded_set():
    examples = sources.load(Data(source="demo:rotten-tomatoes"))
    assert len(examples) == 8530
    assert examples.labels.count(0) == examples.labels.count(1) == 4265


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({"text": TEXTS, "label": [None] * 3 + [*LABELS[3:]]}, "3 of 40 rows have no label"),
        ({"text": TEXTS, "label": [1] * 40}, "one class only"),
        ({"text": ["  "] * 3 + TEXTS[3:], "label": LABELS}, "3 of 40 rows have no text"),
        ({"text": TEXTS, "label": [n / 7 for n in range(40)]}, "set task=regression"),
        ({"text": TEXTS, "label": range(40)}, "these are no classes"),
        ({"a": TEXTS, "b": TEXTS, "label": LABELS}, "which column holds the texts"),
        ({"text": TEXTS, "x": LABELS, "z": LABELS}, "which column holds the labels"),
        ({"text": [], "label": []}, "no rows"),
    ],
)
def test_unfit_data_is_refused_with_the_reason(tmp_path, table, expected):
    with pytest.raises(DataError, match=r"d\.csv") as error:
        sources.load(write(tmp_path / "d.csv", table))
    assert expected in str(error.value)


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "broken.jsonl").write_text('{"text": "a", \n')
    (tmp_path / "fake.parquet").write_text("no parquet")
    (tmp_path / "what.xyz").write_text("x")
    for name in ("none.csv", "empty.csv", "broken.jsonl", "fake.parquet", "what.xyz", "."):
        with pytest.raises(DataError, match="data '"):
            sources.load(Data(source=str(tmp_path / name)))
    data = write(tmp_path / "d.csv", {"text": TEXTS, "label": LABELS})
    with pytest.raises(DataError, match=r"no column 'body' \(text_column\); it has: text, label"):
        sources.load(data.model_copy(update={"text_column": "body"}))


def test_splits_are_disjoint_whole_stratified_and_share_no_text(tmp_path):
    table = {"text": [f"t{n % 150}" for n in range(300)], "label": [n % 150 % 3 for n in range(300)]}
    data = write(tmp_path / "d.csv", table)
    examples = sources.load(data)
    parts = splits.split(examples, data, batch_size=8, seed=0)
    rows = [parts.train, parts.validation, parts.test]
    assert sorted(sum(rows, [])) == list(range(300))
    texts = [{examples.texts[row] for row in part} for part in rows]
    assert not (texts[0] & texts[1] or texts[0] & texts[2] or texts[1] & texts[2])
    for part, share in zip(rows, (0.75, 0.1, 0.15), strict=True):
        for label in range(3):
            count = sum(examples.labels[row] == label for row in part)
            assert count == pytest.approx(share * 100, abs=3)
    assert splits.split(examples, data, 8, seed=0) == parts != splits.split(examples, data, 8, seed=1)


def test_too_few_examples(tmp_path):
    few = write(tmp_path / "d.csv", {"text": TEXTS, "label": LABELS})
    with pytest.raises(DataError, match="fewer than one batch of 64"):
        splits.split(sources.load(few), few, batch_size=64, seed=0)
    rare = write(tmp_path / "e.csv", {"text": TEXTS, "label": ["rare", *["a", "b"] * 19, "a"]})
    with pytest.raises(DataError, match="'rare' has 1"):
        splits.split(sources.load(rare), rare, batch_size=4, seed=0)


def test_splits_of_a_large_set_are_no_larger_than_asked():
    texts = [f"text {number}" for number in range(4000)]
    examples = sources.Examples(texts, [number % 4 // 3 for number in range(4000)], ["a", "b"], "")
    parts = splits.split(examples, Data(source="x", validation=0.1, test=0.2, max_eval_samples=100), 8, 0)
    assert (len(parts.validation), len(parts.test), len(parts.train)) == (100, 100, 3800)
    assert sum(examples.labels[row] for row in parts.validation) == 25


@pytest.mark.parametrize("names", [("sentence1", "sentence2"), ("premise", "hypothesis"), ("Question", "sentence")])
def test_pairs_are_found_by_their_names(tmp_path, names):
    table = {names[0]: TEXTS, names[1]: TEXTS[::-1], "idx": range(40), "label": LABELS}
    examples = sources.load(write(tmp_path / "d.csv", table))
    assert (examples.texts, examples.pairs) == (TEXTS, TEXTS[::-1])
    named = write(tmp_path / "e.csv", {"a": TEXTS, "b": TEXTS[::-1], "label": LABELS})
    named = named.model_copy(update={"text_column": "b", "pair_column": "a"})
    again = sources.load(named)
    assert (again.texts, again.pairs) == (TEXTS[::-1], TEXTS)
    assert again.fingerprint != examples.fingerprint
    with pytest.raises(DataError, match="one column cannot be two"):
        sources.load(named.model_copy(update={"pair_column": "b"}))
    with pytest.raises(DataError, match="no column 'c' .pair_column"):
        sources.load(named.model_copy(update={"pair_column": "c"}))


def test_a_pair_that_occurs_twice_stays_on_one_side(tmp_path):
    texts = [f"text {n // 2}" for n in range(80)]
    table = {"text1": texts, "text2": ["same"] * 80, "label": [n // 2 % 2 for n in range(80)]}
    data = write(tmp_path / "d.csv", table)
    examples = sources.load(data)
    parts = splits.split(examples, data, 4, 0)
    sides = [{examples.texts[row] for row in rows} for rows in (parts.train, parts.validation, parts.test)]
    assert not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])


def test_numbers_of_a_regression(tmp_path):
    numbers = [n / 7 for n in range(40)]
    data = write(tmp_path / "d.csv", {"text": TEXTS, "label": numbers})
    examples = sources.load(data, "regression")
    assert examples.labels == pytest.approx(numbers)
    assert examples.classes == ["value"]
    parts = splits.split(examples, data, 4, 0)
    # Each part of the split sees low and high labels alike.
    for rows in (parts.validation, parts.test):
        assert min(numbers[r] for r in rows) < 2 and max(numbers[r] for r in rows) > 3.5


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["low"] * 3 + [n / 10 for n in range(37)], "3 of 40 rows have a label in column 'label' that is no number"),
        ([2.5] * 40, "are all 2.5"),
        ([1000.0 * n for n in range(40)], "standard deviation of 1.15e+04; scale them"),
    ],
)
def test_labels_unfit_for_a_regression(tmp_path, labels, expected):
    with pytest.raises(DataError) as error:
        sources.load(write(tmp_path / "d.csv", {"text": TEXTS, "label": labels}), "regression")
    assert expected in str(error.value)
