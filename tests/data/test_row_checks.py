"""Examples nothing can be learned from are left out one by one, and told of before training."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from autolr.data import sources
from autolr.data.pipeline import prepare
from autolr.errors import DataError
from autolr.schema.data import Data
from autolr.tuner.dry_run import plan
from autolr.tuner.run import search
from tests.conftest import tokenizer_with

TEXTS = [f"text number {n}" for n in range(60)]
LABELS = [n % 2 for n in range(60)]


def with_rows(rows: dict[int, object], values: list) -> list:
    return [rows.get(row, value) for row, value in enumerate(values)]


def jsonl(path, **columns) -> Data:
    rows = zip(*columns.values(), strict=True)
    path.write_text("".join(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows))
    return Data(source=str(path))


def test_each_unfit_example_is_left_out_and_named(tmp_path):
    texts = with_rows({3: "", 7: "\0 \0", 20: "nul \0 inside", 21: "🙂🙃" * 3, 22: "x " * 60_000}, TEXTS)
    examples = sources.load(jsonl(tmp_path / "d.jsonl", text=texts, label=LABELS))
    assert len(examples) == 58
    assert not {"", "\0 \0"} & set(examples.texts)
    assert {"nul \0 inside", "🙂🙃" * 3, "x " * 60_000} <= set(examples.texts)
    told = "\n".join(examples.notices)
    assert "2 of 60 examples left out: no text in column 'text' (rows 4, 8)" in told
    assert "a text of more than 100,000 characters, whose beginning is read (row 23)" in told
    assert "a text with NUL characters, which is taken as it is (row 21)" in told


def test_labels_outside_the_classes(tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    whole = Dataset.from_dict({"text": TEXTS, "label": with_rows({9: -1}, LABELS)}, features=features)
    whole.save_to_disk(str(tmp_path / "saved"))
    examples = sources.load(Data(source=str(tmp_path / "saved")))
    assert len(examples) == 59 and "no label in column 'label' (row 10)" in examples.notices[0]
    # What declares its classes and breaks them: the writer is not asked.
    from autolr.data.row_checks import RowChecker

    sieve = RowChecker({"text": TEXTS, "label": with_rows({5: 2, 6: -3}, LABELS)}, "data 'd'")
    sieve.labels("label", "classification", ["no", "yes"])
    table, parts, told = sieve.sifted(["train"] * 60)
    assert len(table["text"]) == len(parts) == 58
    assert told == ("2 of 60 examples left out: a label in column 'label' that is none of the 2 classes (rows 6, 7)",)


def test_a_label_that_train_does_not_have(tmp_path):
    splits = DatasetDict(
        train=Dataset.from_dict({"text": TEXTS, "label": LABELS}),
        test=Dataset.from_dict({"text": [f"other {n}" for n in range(60)], "label": with_rows({4: 7}, LABELS)}),
    )
    splits.save_to_disk(str(tmp_path / "saved"))
    examples = sources.load(Data(source=str(tmp_path / "saved"), test_split="test"))
    assert examples.classes == ["0", "1"] and len(examples) == 119 and len(examples.parts) == 119
    assert examples.notices == (
        "1 of 120 examples left out: a label in column 'label' that train does not have (row 65)",
    )


def test_a_regression_leaves_out_what_is_no_number(tmp_path):
    scores = with_rows({2: "n/a", 5: None, 8: float("inf")}, [n / 20 for n in range(60)])
    data = Data(source=str(tmp_path / "d.csv"))
    pd.DataFrame({"text": TEXTS, "label": scores}).to_csv(tmp_path / "d.csv", index=False)
    examples = sources.load(data, "regression")
    assert len(examples) == 57
    assert sorted(line.partition("(")[2] for line in examples.notices) == ["row 6)", "rows 3, 9)"]


def test_many_are_an_error(tmp_path):
    data = jsonl(tmp_path / "d.jsonl", text=with_rows(dict.fromkeys(range(4), ""), TEXTS), label=LABELS)
    with pytest.raises(DataError, match=r"4 of 60 rows have no text in column 'text' \(first: row 1\).*text_column"):
        sources.load(data)


def test_chats_and_completions_lose_theirs_together(tmp_path):
    data = jsonl(tmp_path / "d.jsonl", prompt=with_rows({2: " "}, TEXTS), completion=with_rows({9: None}, TEXTS))
    examples = sources.load(data, "sft")
    assert len(examples) == len(examples.pairs) == len(examples.labels) == 58
    assert examples.texts == examples.pairs and "text number 2" not in examples.texts


def test_texts_of_unknown_signs_are_told_of(tmp_path):
    texts = [f"word{n % 30} {'good' if n % 2 else 'bad'} word{n * 7 % 30} word{n * 11 % 29}" for n in range(60)]
    data = jsonl(tmp_path / "d.jsonl", text=with_rows({4: "🙂 🙃"}, texts), label=LABELS)
    examples = sources.load(data)
    found = prepare(examples, data, tokenizer_with(cls_token="[CLS]"), 4, 0)
    assert "1 of 60 examples hold no word or sign that the model's tokenizer knows" in found.summary


def test_a_search_with_poisoned_examples_says_so_and_ends(small_study, reviews, tmp_path):
    frame = pd.read_csv(reviews)
    rows = frame.to_dict("records")
    rows[3]["text"], rows[5]["text"], rows[8]["label"] = "", "good 🙂 " * 150_000, None
    rows[9]["text"] = "a \0 word1 good"
    path = tmp_path / "poisoned.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = small_study.data.model_copy(update={"source": str(path)})
    study = small_study.model_copy(
        update={"data": data, "budget": small_study.budget.model_copy(update={"trials": 4})}
    )
    told = "\n".join(plan(study, "cpu").data)
    assert "no text in column 'text' (row 4)" in told and "no label in column 'label' (row 9)" in told
    assert "more than 100,000 characters" in told and "NUL" in told
    assert search(study, tmp_path / "run", device="cpu").recipe is not None
