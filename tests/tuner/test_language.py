"""Whole searches on language models, and metrics of the user's own."""

from __future__ import annotations

import json
import random
import re

import pytest
import torch

from autolr import cli
from autolr.abtest.compare import compare
from autolr.errors import AutoLRError
from autolr.finetune.run import train
from autolr.report.page import render
from autolr.rundir.result import SearchResult
from autolr.schema.study import Study
from autolr.tuner.run import search
from tests.conftest import BAD, GOOD, OTHER


@pytest.fixture
def chats(tmp_path) -> str:
    """Chats whose answer is the good or bad word that the question holds."""
    path, rng = tmp_path / "chats.jsonl", random.Random(0)
    with path.open("w") as file:
        for row in range(240):
            word = rng.choice(GOOD if row % 2 else BAD)
            words = [*rng.sample(OTHER, rng.randrange(2, 6)), word]
            rng.shuffle(words)
            chat = [{"role": "user", "content": " ".join(words)}, {"role": "assistant", "content": word}]
            file.write(json.dumps({"messages": chat}) + "\n")
    return str(path)


@pytest.mark.parametrize("metric", ["exact_match", "perplexity"])
def test_completions_from_study_to_adapter(small_study, model_folders, chats, tmp_path, metric):
    content = small_study.model_dump(mode="json") | {"model": model_folders["lm"], "task": "sft", "metric": metric}
    content |= {"data": {"source": chats, "validation": 0.2, "test": 0.2}, "name": "chats"}
    content["training"] |= {"horizon": {"steps": 60}}
    result = search(Study.model_validate(content), tmp_path / "run", device="cpu")
    recipe = result.recipe
    assert (recipe.task, recipe.metric, recipe.classes, recipe.rates.head) == ("sft", metric, [], None)
    done = train(recipe, tmp_path / "run" / "train", device="cpu")
    log = [entry["eval_loss"] for entry in done.metrics["log"] if "eval_loss" in entry]
    assert min(log) < log[0] - 0.05  # it did learn
    assert "lr_head=" not in render(SearchResult.load(tmp_path / "run"))
    full = str(tmp_path / "run" / "train")
    same = compare([full, full], out=tmp_path / "adapters", device="cpu")
    assert [arm.test_loss for arm in same.arms] == pytest.approx([done.test["loss"]] * 2)
    assert same.arms[0].test_metric == pytest.approx(done.test[metric])
    varied = compare(
        [recipe], vary=["ratio=1 loraplus_lr_ratio=4"], seeds=2, steps=4, out=tmp_path / "recipes", device="cpu"
    )
    assert "ρ=4" in varied.arms[1].setting and varied.metric == metric
    card = (done.adapter / "README.md").read_text()
    assert "pipeline_tag: text-generation" in card and "trained to complete prompts" in card
    code = re.search(r"```python\n(.*?)```", card, re.S)[1]
    names: dict = {}
    exec(code.replace("path/to/this/folder", str(done.adapter)).replace("path/to/lm", model_folders["lm"]), names)
    with torch.no_grad():
        assert names["model"](**names["tokenizer"]("good word1", return_tensors="pt")).logits.shape[-1] == 60


def test_whole_texts(small_study, model_folders, reviews, tmp_path):
    content = small_study.model_dump(mode="json") | {"model": model_folders["lm"], "task": "lm", "name": "texts"}
    content["budget"] = {"trials": 4}
    result = search(Study.model_validate(content), tmp_path / "run", device="cpu")
    assert result.recipe.metric == "perplexity"
    assert all(score.test_metric > 1 for score in result.recipe.evidence.scores)


def test_the_shipped_study_runs(model_folders, in_folder, capsys):
    short = ["search.stages=[{to: 4}]", "search.rungs=[2]", "budget.trials=3", "training.horizon={steps: 8}"]
    short += ["data.validation=0.003", "data.test=0.003", "search.slots=2", "--out", "run", "--device", "cpu"]
    with pytest.raises(SystemExit) as end:
        cli.main(["search", "sft", "--model", model_folders["lm"], *short])
    said = capsys.readouterr()
    assert not end.value.code, said.err
    assert "note: tokens learned of a text: median " in said.out
    assert "test     exact_match" in said.out  # of the full run


def test_own_metrics_run_only_where_allowed(small_study, in_folder):
    (in_folder / "ours.py").write_text(
        "def agreed(predictions, labels):\n    return 100 * (predictions == labels).mean()\n"
        "def broken(predictions, labels):\n    return 1 / 0\n"
    )
    content = small_study.model_dump(mode="json") | {"metric": "ours:agreed"}
    content["budget"] = {"trials": 4}
    study = Study.model_validate(content)
    with pytest.raises(AutoLRError, match="would run code.*--allow-code"):
        search(study, "run", device="cpu")
    assert not (in_folder / "run").exists()
    result = search(study, "run", device="cpu", allow_code=True)
    assert all(score.test_metric > 1 for score in result.recipe.evidence.scores)
    with pytest.raises(AutoLRError, match="would run code"):
        train(result.recipe, "full", device="cpu")
    for name, expected in (("ours:none", "cannot be imported"), ("ours:broken", "failed: ZeroDivisionError")):
        with pytest.raises(AutoLRError, match=expected):
            search(study.model_copy(update={"metric": name}), f"run-{name[5:]}", device="cpu", allow_code=True)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"metric": "accuracy"}, "metric accuracy is none of sft: choose token_accuracy, exact_match, perplexity"),
        ({"method": {"lr_head": 1e-3}}, "sft adds no output layer; leave it out"),
    ],
)
def test_settings_that_a_language_model_has_not(small_study, settings, expected):
    with pytest.raises(ValueError, match=expected):
        Study.model_validate(small_study.model_dump(mode="json") | {"task": "sft"} | settings)


def test_a_language_model_is_validated(model_folders, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["validate", "--model", model_folders["lm"], "--task", "sft", "--device", "cpu"])
    assert not end.value.code
    said = capsys.readouterr().out
    assert "head        none: the language model as it is" in said
    assert said.rstrip().endswith("all checks passed")
