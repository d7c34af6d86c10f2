"""Tables: folders that datasets saved, splits by name and by file, and no text on two sides."""

from __future__ import annotations

import json

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from transformers import AutoTokenizer

from autolr.data import sources, splits
from autolr.data.pipeline import prepare
from autolr.errors import DataError
from autolr.schema.data import Data

ROWS = {"text": [f"text number {n}" for n in range(60)], "label": [n % 2 for n in range(60)]}
NAMED = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})


def part(start: int, end: int) -> dict:
    return {name: column[start:end] for name, column in ROWS.items()}


def test_a_folder_that_datasets_saved(tmp_path):
    Dataset.from_dict(ROWS, features=NAMED).save_to_disk(tmp_path / "set")
    examples = sources.load(Data(source=str(tmp_path / "set")))
    assert (examples.texts, examples.labels, examples.classes) == (ROWS["text"], ROWS["label"], ["no", "yes"])
    assert examples.parts is None
    with pytest.raises(DataError, match="has no splits; test_split 'test' must be a file"):
        sources.load(Data(source=str(tmp_path / "set"), test_split="test"))
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match="a folder that datasets has not saved"):
        sources.load(Data(source=str(tmp_path / "other")))


def test_splits_that_are_named_are_what_they_are(tmp_path):
    whole = {"train": part(0, 40), "validation": part(36, 50), "test": part(48, 60)}
    sets = {name: Dataset.from_dict(rows, features=NAMED) for name, rows in whole.items()}
    DatasetDict(sets).save_to_disk(tmp_path / "sets")
    data = Data(source=str(tmp_path / "sets"), validation_split="validation", test_split="test")
    examples = sources.load(data)
    found = splits.split(examples, data, 4, 0)
    texts = {name: [examples.texts[row] for row in getattr(found, name)] for name in ("train", "validation", "test")}
    assert (
        texts
        == {
            "train": ROWS["text"][:36],  # four are in validation too, which keeps them
            "validation": ROWS["text"][36:48],
            "test": ROWS["text"][48:],
        }
    )
    assert sorted(found.notices) == [
        "train: 4 examples left out, since validation has their texts",
        "validation: 2 examples left out, since test has their texts",
    ]
    with pytest.raises(DataError, match="no split 'dev' .data.validation_split.; it has: train, validation, test"):
        sources.load(data.model_copy(update={"validation_split": "dev"}))
    with pytest.raises(DataError, match="is what is trained on"):
        sources.load(data.model_copy(update={"validation_split": "train"}))


def test_one_split_is_a_file_and_the_other_is_cut(tmp_path):
    rows = [{"text": text, "label": number % 2} for number, text in enumerate(ROWS["text"][:40])]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "b.jsonl").write_text(
        "\n".join(json.dumps({"text": f"other {n}", "label": n % 2}) for n in range(30))
    )
    data = Data(
        source=str(tmp_path / "a.json"), test_split=str(tmp_path / "b.jsonl"), validation=0.2, max_eval_samples=10
    )
    examples = sources.load(data)
    found = splits.split(examples, data, 4, 0)
    assert (len(found.train), len(found.validation), len(found.test)) == (32, 8, 10)
    assert all(examples.texts[row].startswith("other") for row in found.test)
    assert found.notices == ("test: 20 examples above data.max_eval_samples (10) are left out",)
    (tmp_path / "c.jsonl").write_text(json.dumps({"text": "x"}))
    with pytest.raises(DataError, match="test_split .* lacks the columns label"):
        sources.load(data.model_copy(update={"test_split": str(tmp_path / "c.jsonl")}))


def test_what_is_said_of_labels_and_lengths(tmp_path, model_folders):
    tokenizer = AutoTokenizer.from_pretrained(model_folders["bert"])
    rows = [{"text": f"word{n} " * (1 + n % 9), "label": "rare" if n % 10 == 0 else "usual"} for n in range(200)]
    (tmp_path / "d.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    data = Data(source=str(tmp_path / "d.jsonl"), max_length=8)
    summary = prepare(sources.load(data), data, tokenizer, 8, 0).summary
    assert summary[0].endswith("90% up to 8, longest 8; 32 of 150 fill max_length 8, what is longer is cut")
    assert summary[1] == "classes: usual 90.0%, rare 10.0%"
    assert summary[2].startswith("the largest class has 9 times the examples of the smallest")
