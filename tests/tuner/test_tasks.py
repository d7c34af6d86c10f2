"""Whole searches on other tasks than one text and its class."""

from __future__ import annotations

import csv
import random

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from autolr.finetune.run import train
from autolr.report.page import render
from autolr.rundir.result import SearchResult
from autolr.schema.study import Study
from autolr.tuner.run import search
from tests.conftest import BAD, GOOD, OTHER


@pytest.fixture
def rated(tmp_path) -> str:
    """Sentences rated by how many good words they hold, from -1.5 to 1.5."""
    path, rng = tmp_path / "rated.csv", random.Random(0)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for _ in range(240):
            good = rng.randrange(4)
            words = [*rng.sample(OTHER, 4), *rng.sample(GOOD, good), *rng.sample(BAD, 3 - good)]
            writer.writerow([" ".join(rng.sample(words, len(words))), good - 1.5])
    return str(path)


def test_a_regression_from_study_to_adapter(small_study, rated, tmp_path):
    content = small_study.model_dump(mode="json")
    content |= {"task": "regression", "metric": "spearman", "data": {"source": rated}, "name": "rated"}
    content["training"] |= {"horizon": {"steps": 120}}
    result = search(Study.model_validate(content), tmp_path / "run", device="cpu")
    recipe = result.recipe
    assert (recipe.task, recipe.metric, recipe.classes) == ("regression", "spearman", ["value"])
    assert all(-1 <= score.test_metric <= 1 for score in recipe.evidence.scores)
    done = train(recipe, tmp_path / "run" / "train", device="cpu")
    assert done.test["spearman"] > 0.5  # it did learn
    assert "test spearman of the full run" in render(SearchResult.load(tmp_path / "run"))
    assert "| split | loss | spearman |" in (done.adapter / "README.md").read_text()
    stock = AutoModelForSequenceClassification.from_pretrained(
        recipe.model, num_labels=1, ignore_mismatched_sizes=True
    )
    stock = PeftModel.from_pretrained(stock, done.adapter).eval()
    tokenizer = AutoTokenizer.from_pretrained(done.adapter)
    with torch.no_grad():
        low, high = (stock(**tokenizer(" ".join(words), return_tensors="pt")).logits.item() for words in (BAD, GOOD))
    assert low < high


def test_pairs_are_seen_as_pairs(small_study, tmp_path):
    path, rng = tmp_path / "pairs.csv", random.Random(0)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["premise", "hypothesis", "label"])
        for row in range(200):
            words = rng.sample(OTHER, 5)
            other = words if row % 2 else rng.sample(OTHER, 5)
            writer.writerow([" ".join(words), " ".join(other), "same" if row % 2 else "other"])
    content = small_study.model_dump(mode="json") | {"data": {"source": str(path)}, "metric": "f1", "name": "pairs"}
    content["budget"] = {"trials": 5}
    result = search(Study.model_validate(content), tmp_path / "run", device="cpu")
    assert result.recipe.metric == "f1"
    assert result.recipe.classes == ["other", "same"]


def test_a_metric_of_another_task_is_refused(small_study):
    with pytest.raises(ValueError, match="metric pearson is none of classification: choose accuracy, f1, matthews"):
        Study.model_validate(small_study.model_dump(mode="json") | {"metric": "pearson"})


def test_squared_errors_are_kept_as_they_are(small_study, tmp_path):
    """Labels from 0 to 100: a model that says about 0 has squared errors up to 10,000."""
    path, rng = tmp_path / "percent.csv", random.Random(0)
    rows = [(" ".join(rng.sample(OTHER, 5)), rng.choice([0, 25, 75, 100])) for _ in range(240)]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    content = small_study.model_dump(mode="json") | {"task": "regression", "data": {"source": str(path)}}
    content["space"] |= {"lr_v": {"low": 1e-6, "high": 1e-5}}  # hardly anything is learned in 12 steps
    content["method"] |= {"lr_head": 1e-6}
    result = search(Study.model_validate(content), tmp_path / "run", device="cpu")
    for record in (*result.over_seeds, *result.finals):
        for losses, mean in ((record.losses, record.test_loss), (record.validation_losses, record.validation_loss)):
            assert sum(losses) / len(losses) == pytest.approx(mean, rel=1e-6)
            roots = [loss**0.5 for loss in losses]  # about the label itself
            assert all(min(abs(root - label) for label in (0, 25, 75, 100)) < 5 for root in roots)
    trials = [trial for trial in result.ended() if trial.outcome == "finished"]
    ratio = result.recipe.evidence.scores[0].validation_loss / trials[0].score
    assert 0.5 < ratio < 2  # trials and confirmation speak of the same scale
