"""A search resumes with the data, weights, tokenizer and tokens it was begun with; anything else is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from safetensors.torch import load_file, save_file

from autolr import cli
from autolr.data import batches, cache, sources
from autolr.errors import DataError, ModelError, RunError
from autolr.finetune.run import train
from autolr.rundir.folder import RunFolder
from autolr.schema.data import Data
from autolr.schema.recipe import Recipe
from autolr.schema.study import Study
from autolr.tuner.run import join, search


@pytest.fixture(scope="module")
def searched(small_study, reviews, tmp_path_factory) -> tuple[Study, Path]:
    """A finished search in a folder of its own, with its model and data."""
    folder = tmp_path_factory.mktemp("searched")
    shutil.copytree(small_study.model, folder / "model")
    shutil.copy(reviews, folder / "data.csv")
    return folder_study(small_study, folder), folder


def folder_study(study: Study, folder: Path) -> Study:
    return study.model_copy(
        update={
            "model": str(folder / "model"),
            "data": study.data.model_copy(update={"source": str(folder / "data.csv")}),
            "budget": study.budget.model_copy(update={"trials": 3}),
        }
    )


@pytest.fixture(scope="module")
def run(searched) -> Path:
    study, folder = searched
    search(study, folder / "run", device="cpu")
    return folder / "run"


def change_a_text(folder: Path) -> None:
    path = folder / "data.csv"
    path.write_text(path.read_text().replace("word1 ", "word2 ", 1))


def change_a_label(folder: Path) -> None:
    path = folder / "data.csv"
    path.write_text(path.read_text().replace(",good\n", ",bad\n", 1))


def rename_a_class(folder: Path) -> None:
    path = folder / "data.csv"
    path.write_text(path.read_text().replace(",good\n", ",great\n"))


def change_a_weight(folder: Path) -> None:
    path = folder / "model" / "model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if name.endswith("query.weight"))
    weights[name] = weights[name].clone()
    weights[name][0, 0] += torch.finfo(torch.float32).eps * 64
    save_file(weights, path, {"format": "pt"})


def change_a_token(folder: Path) -> None:
    path = folder / "model" / "tokenizer.json"
    vocabulary = json.loads(path.read_text())
    words = vocabulary["model"]["vocab"]
    words["word1"], words["word2"] = words["word2"], words["word1"]
    path.write_text(json.dumps(vocabulary))


@pytest.fixture
def kept(searched, run):
    """Puts model and data back where they were."""
    _, folder = searched
    before = {path: path.read_bytes() for path in [folder / "data.csv", *(folder / "model").iterdir()]}
    yield folder
    for path, content in before.items():
        path.write_bytes(content)


@pytest.mark.parametrize(
    ("change", "expected", "not_expected"),
    [
        (change_a_text, "begun with other data (", "tok"),
        (change_a_label, "begun with other data (", "model"),
        (rename_a_class, "begun with other data (", "model"),
        (change_a_weight, "begun with other model weights (", "data ("),
        (change_a_token, "begun with other tokenizer (", "data ("),
    ],
)
def test_what_has_changed_is_named(searched, run, kept, change, expected, not_expected):
    study, folder = searched
    change(folder)
    held = {
        path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.suffix in (".jsonl", ".yaml")
    }
    for resume in (lambda: search(study, run, device="cpu"), lambda: join(RunFolder(run), device="cpu")):
        with pytest.raises(RunError) as error:
            resume()
        said = str(error.value).replace(str(folder), "")
        assert expected in said and not_expected not in said and "choose another --out" in said
    assert all(path.read_bytes() == content for path, content in held.items())


def test_several_changes_are_named_together(searched, run, kept, capsys):
    change_a_weight(kept)
    change_a_text(kept)
    with pytest.raises(SystemExit) as stop:
        cli.main(["search", "--out", str(run), "--device", "cpu", "--plain"])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and "other data (" in said and "and other model weights (" in said


def test_another_way_of_making_tokens_is_named(searched, run, monkeypatch):
    study, _ = searched
    monkeypatch.setattr(cache, "TOKENIZATION", cache.TOKENIZATION + 1)
    monkeypatch.setattr(cache, "tokenize", lambda *given: [ids[::-1] for ids in batches.tokenize(*given)])
    with pytest.raises(RunError, match="begun with other tokenization"):
        search(study, run, device="cpu")


def test_what_is_the_same_resumes(searched, run):
    study, folder = searched
    before = (run / "fingerprints.json").read_bytes()
    assert set(json.loads(before)) == {"data", "weights", "tokenizer", "tokenization"}
    data = folder / "data.csv"
    content = data.read_bytes()
    data.write_bytes(content.replace(b"\n", b"\r\n"))  # the same data
    try:
        assert search(study, run, device="cpu").recipe is not None
    finally:
        data.write_bytes(content)
    assert (run / "fingerprints.json").read_bytes() == before


def test_a_search_of_before_says_that_it_was_not_checked(searched, run, tmp_path):
    study, _ = searched
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "fingerprints.json").unlink()
    from autolr.progress.callbacks import Callback

    class Notes(Callback):
        said: list[str] = []

        def note(self, text: str) -> None:
            self.said.append(text)

    search(study, tmp_path / "run", device="cpu", callback=Notes())
    assert any("kept no fingerprints so far" in line for line in Notes.said)
    (tmp_path / "run" / "fingerprints.json").write_text("{")
    with pytest.raises(RunError, match="is damaged. Remove it if"):
        search(study, tmp_path / "run", device="cpu")


def test_a_full_run_is_of_the_searchs_material(searched, run, kept, tmp_path, monkeypatch):
    recipe = Recipe.load(run)
    assert recipe.tokenizer_fingerprint and recipe.tokenization == cache.TOKENIZATION
    for change, kind, expected in (
        (change_a_token, ModelError, "its tokenizer has changed since the search.*remove tokenizer_fingerprint"),
        (change_a_weight, ModelError, "its weights have changed"),
        (change_a_text, DataError, "has changed since the search"),
    ):
        change(kept)  # what is looked at first is changed last
        with pytest.raises(kind, match=expected):
            train(recipe, tmp_path / "train", device="cpu")
    other = recipe.model_copy(update={"data_fingerprint": None, "tokenization": cache.TOKENIZATION + 1})
    with pytest.raises(DataError, match="made tokens in way .*remove tokenization"):
        train(other, tmp_path / "train", device="cpu")


def test_names_of_classes_belong_to_the_data(searched, run, tmp_path):
    recipe = Recipe.load(run)
    renamed = recipe.model_copy(update={"classes": ["bad", "fine"]})
    with pytest.raises(DataError, match=r"has other classes \(bad, good\) than in the search \(bad, fine\)"):
        train(renamed, tmp_path / "train", device="cpu")


def test_classes_whose_names_are_swapped_are_other_data(tmp_path):
    rows = {"text": [f"word{n}" for n in range(8)], "label": [0, 1] * 4}
    found = []
    for names in (["bad", "good"], ["good", "bad"]):
        features = Features(text=Value("string"), label=ClassLabel(names=names))
        Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "rows.parquet"))
        found.append(sources.load(Data(source=str(tmp_path / "rows.parquet"))).fingerprint)
    (tmp_path / "rows.csv").write_text(
        "text,label\n" + "".join(f"word{n},{'good' if n % 2 else 'bad'}\n" for n in range(8))
    )
    assert found[0] != found[1]
    assert sources.load(Data(source=str(tmp_path / "rows.csv"))).fingerprint == found[0]  # a file is the same data


def test_a_column_that_a_chat_template_may_read_is_part_of_the_data(tmp_path):
    chat = {"messages": [{"role": "user", "content": "good"}, {"role": "assistant", "content": "fine"}]}
    found = []
    for city in ("Rome", "Rome", "Oslo"):
        (tmp_path / "chats.jsonl").write_text(json.dumps({**chat, "city": city}) + "\n")
        found.append(sources.load(Data(source=str(tmp_path / "chats.jsonl")), "sft").fingerprint)
    assert found[0] == found[1] != found[2]
