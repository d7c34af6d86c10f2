"""Outputs of a trained head are matched to the data by name, whatever their order."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

from autolr.abtest.compare import compare
from autolr.data import sources
from autolr.data.tasks import task_of
from autolr.errors import DataError
from autolr.finetune.run import train
from autolr.model import backbone, outputs
from autolr.schema.data import Data
from autolr.schema.study import Study
from autolr.tuner.run import search
from tests import tiny
from tests.conftest import tokenizer_with

TEXT = torch.tensor([[5, 6, 7, 8]])


def saved(
    folder: Path, names: dict[int, str] | None, *, outputs: int | None = None, **config
) -> tuple[str, torch.Tensor]:
    """Save a classifier whose outputs have these names; return its folder and what it says of a text."""
    torch.manual_seed(0)
    settings = tiny.config_of("bert", tiny.ENCODER)
    count = outputs or len(names)
    settings.num_labels = count
    if names is not None:
        settings.id2label, settings.label2id = names, {str(name): number for number, name in names.items()}
    for key, value in config.items():
        setattr(settings, key, value)
    model = AutoModelForSequenceClassification.from_config(settings).eval()
    model.save_pretrained(folder)
    tokenizer_with(cls_token="[CLS]").save_pretrained(folder)
    with torch.no_grad():
        return str(folder), model(TEXT, attention_mask=torch.ones_like(TEXT)).logits[0]


def said(base) -> torch.Tensor:
    with torch.no_grad():
        return base.model(TEXT, attention_mask=torch.ones_like(TEXT)).logits[0]


THREE = {0: "neutral", 1: "negative", 2: "positive"}


@pytest.mark.parametrize(
    ("names", "classes", "rows"),
    [
        ({0: "pos", 1: "neg"}, ["neg", "pos"], [1, 0]),
        ({0: "neg", 1: "pos"}, ["neg", "pos"], [0, 1]),
        ({0: "POSITIVE ", 1: "Negative"}, ["negative", "positive"], [1, 0]),
        (THREE, ["negative", "positive"], [1, 2]),  # more outputs than classes
        (THREE, ["positive", "negative", "neutral"], [2, 1, 0]),
        ({0: "LABEL_0", 1: "LABEL_1"}, ["0", "1"], [0, 1]),
        ({0: "1", 1: "0"}, ["0", "1"], [1, 0]),  # integer names mean themselves
        ({0: "no", 1: "yes"}, ["0", "1"], [0, 1]),
        ({0: "LABEL_0", 1: "LABEL_1"}, ["neg", "pos"], None),
        ({0: "1 star", 1: "2 stars"}, ["1", "2"], None),
        ({0: "a", 1: "b"}, ["a", "b", "c"], None),
        ({0: "a", 1: "A"}, ["a", "A"], [0, 1]),
        ({0: "a", 1: "A", 2: "b"}, ["B", "a"], None),  # case alone does not tell a from A
        ({0: "x"}, ["a", "b"], None),
    ],
)
def test_rows_of_a_trained_head(tmp_path, names, classes, rows):
    folder, own = saved(tmp_path / "model", names)
    base = backbone.load(folder, classes)
    assert len(said(base)) == len(classes) == base.model.config.num_labels
    assert base.model.config.id2label == dict(enumerate(classes))
    if rows is None:
        assert base.fresh >= {"classifier.weight", "classifier.bias"}
        assert len(base.notes) == 1 and base.notes[0].startswith("head: the output layer starts fresh")
        return
    assert not base.fresh
    assert torch.allclose(said(base), own[rows], atol=1e-6)
    assert bool(base.notes) == (list(names.values()) != classes)
    head = backbone.fresh_head(base, 0)
    assert all(torch.equal(head[name], value) for name, value in base.head_parameters().items())


@pytest.mark.parametrize("kind", [None, "regression", "multi_label_classification", "single_label_classification"])
def test_other_problem_types(tmp_path, kind):
    folder, own = saved(tmp_path / "model", {0: "b", 1: "a"}, problem_type=kind)
    base = backbone.load(folder, ["a", "b"])
    assert torch.allclose(said(base), own[[1, 0]], atol=1e-6)
    assert base.model.config.problem_type == "single_label_classification"
    assert ("several labels" in "".join(base.notes)) == (kind == "multi_label_classification")


def test_regression_keeps_a_number_and_nothing_else(tmp_path):
    folder, own = saved(tmp_path / "number", None, outputs=1)
    base = backbone.load(folder, ["value"], task="regression")
    assert not base.fresh and not base.notes and torch.allclose(said(base), own)
    folder, _ = saved(tmp_path / "classes", {0: "a", 1: "b"})
    base = backbone.load(folder, ["value"], task="regression")
    assert base.fresh == {"classifier.weight", "classifier.bias"} and "its 2 outputs are no number" in base.notes[0]
    folder, _ = saved(tmp_path / "one", None, outputs=1)
    assert "its one output is a number" in backbone.load(folder, ["a", "b"]).notes[0]


def test_a_checkpoint_without_a_head_is_no_reason_for_a_note(tmp_path):
    tiny.model("bert").base_model.save_pretrained(tmp_path)
    tokenizer_with(cls_token="[CLS]").save_pretrained(tmp_path)
    base = backbone.load(str(tmp_path), ["good", "bad"])
    assert base.fresh == {"classifier.weight", "classifier.bias"} and base.notes == ()


@pytest.mark.parametrize("family", ["roberta", "distilbert", "electra", "llama", "gpt2", "modernbert"])
def test_the_output_layer_of_each_family(family):
    model = tiny.model(family)
    layer = model.get_submodule(outputs.layer_of(model))
    assert layer.out_features == 3
    seen = []
    layer.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    with torch.no_grad():
        logits = model(TEXT, attention_mask=torch.ones_like(TEXT)).logits
    assert torch.equal(logits[0], seen[0][0] if seen[0].dim() == 2 else seen[0][0, -1])


@pytest.fixture(scope="module")
def swapped(tmp_path_factory) -> tuple[str, str]:
    """A classifier of pos and neg, in this order, and data that it labels itself."""
    folder = tmp_path_factory.mktemp("swapped")
    model, _ = saved(folder / "model", {0: "pos", 1: "neg"})
    tokenizer, stock = tokenizer_with(cls_token="[CLS]"), AutoModelForSequenceClassification.from_pretrained(model)
    rows, words = [("text", "label")], sorted(tokenizer.get_vocab())
    with torch.no_grad():
        stock.classifier.weight *= 50
        scores = {}
        for number in range(200):
            text = " ".join(words[(number * step) % len(words)] for step in (1, 3, 7, 11))
            scores[text] = float(stock(**tokenizer(text, return_tensors="pt")).logits[0].diff())
    middle = sorted(scores.values())[len(scores) // 2]
    with torch.no_grad():
        stock.classifier.bias[1] -= middle  # so that both classes are there
    stock.save_pretrained(model)
    rows += [(text, "neg" if score > middle else "pos") for text, score in scores.items()]
    with (folder / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return model, str(folder / "rows.csv")


def test_an_adapter_has_the_right_names_with_the_original_base(swapped, small_study, tmp_path):
    model, data = swapped
    content = small_study.model_dump(mode="json") | {"model": model, "data": {"source": data}, "metric": "f1"}
    content["budget"] |= {"trials": 2}
    content["space"] |= {"lr_v": {"low": 1e-5, "high": 1e-4}}
    content["method"] |= {"lr_head": 1e-5}
    result = search(Study.model_validate(content), tmp_path / "run", device="cpu")
    assert result.recipe.classes == ["pos", "neg"]  # the checkpoint's order
    start = [record.curve[0] for record in result.trials]
    assert max(start) < 0.69  # it begins with what it knows
    done = train(result.recipe, tmp_path / "run" / "train", device="cpu")
    assert done.test["f1"] > 0.75  # under swapped names it would be below 0.25
    stock = PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained(model), done.adapter).eval()
    with Path(data).open() as file:
        rows = list(csv.DictReader(file))
    tokenizer = tokenizer_with(cls_token="[CLS]")
    with torch.no_grad():
        right = sum(
            stock.config.id2label[int(stock(**tokenizer(row["text"], return_tensors="pt")).logits.argmax())]
            == row["label"]
            for row in rows
        )
    assert right > 0.75 * len(rows)
    alone = AutoModelForSequenceClassification.from_pretrained(done.adapter)  # finds its base by itself
    assert alone.config.id2label == {0: "pos", 1: "neg"}
    card = (done.adapter / "README.md").read_text()
    assert 'id2label=dict(enumerate(["pos", "neg"])),' in card
    assert "num_labels" not in re.search(r"```python\n(.*?)```", card, re.S)[1]
    config = json.loads((done.adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(Path(model).absolute())


def test_another_order_of_classes_changes_neither_splits_nor_metrics(swapped):
    examples = sources.load(Data(source=swapped[1]))
    turned = examples.ordered(["pos", "neg"])
    assert [turned.classes[label] for label in turned.labels] == [
        examples.classes[label] for label in examples.labels
    ]
    assert turned.strata == examples.strata and turned.ordered(["neg", "pos"]).strata == examples.strata
    guess = torch.tensor(examples.labels).roll(1)
    for metric in ("f1", "accuracy", "matthews"):
        usual = task_of("classification", examples.classes, metric).score(guess, examples.labels)
        other = task_of("classification", turned.classes, metric, numbers=turned.numbers)
        assert other.score(1 - guess, turned.labels) == usual
    with pytest.raises(DataError, match="its classes are neg, pos, not a, b"):
        examples.ordered(["a", "b"])


def test_adapters_are_scored_in_their_own_order_of_classes(swapped, small_recipe, tmp_path):
    """An adapter of an older recipe, whose classes are in the data's order, scores what it was trained for."""
    model, data = swapped
    scores = {}
    for order in (["pos", "neg"], ["neg", "pos"]):
        recipe = small_recipe.model_copy(
            update={
                "model": model,
                "data": Data(source=data),
                "data_fingerprint": None,
                "classes": order,
                "steps": 2,
                "metric": "f1",
                "rates": small_recipe.rates.model_copy(update={"q": 1e-6, "v": 1e-6, "head": 1e-6}),
            }
        )
        scores[order[0]] = train(recipe, tmp_path / order[0] / "train", device="cpu").test
        recipe.save(tmp_path / order[0] / "recipe.yaml")
    assert scores["pos"]["loss"] == pytest.approx(scores["neg"]["loss"], abs=1e-3)
    assert scores["pos"]["f1"] == scores["neg"]["f1"] > 0.75
    found = compare([tmp_path / "pos" / "train" / "adapter", tmp_path / "neg" / "train" / "adapter"], device="cpu",
                    out=tmp_path / "compared")  # fmt: skip
    one, other = found.arms
    assert one.test_loss == pytest.approx(scores["pos"]["loss"], abs=1e-5)
    assert other.test_loss == pytest.approx(scores["neg"]["loss"], abs=1e-5)
    assert abs(found.pairs[0].gain.mean) < 1e-3
