"""The card: its code runs, and it tells nothing of the machine."""

from __future__ import annotations

import json
import re

import pytest
import torch
from huggingface_hub import ModelCard

from autolr.finetune.card import base_name, model_card, published
from autolr.finetune.run import train
from autolr.schema import yaml_io
from autolr.schema.candidate import Candidate
from autolr.schema.recipe import Cost, Evidence, Interval, Recipe, Score
from tests.finetune.test_run import recipe  # noqa: F401 (a fixture)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_the_code_on_the_card_loads_the_adapter(recipe, model_folders, tmp_path, family):  # noqa: F811
    result = train(recipe.model_copy(update={"model": model_folders[family]}), tmp_path / "run", device="cpu")
    card = (result.adapter / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", card, re.S)[1]
    code = code.replace("path/to/this/folder", str(result.adapter)).replace(
        f"path/to/{family}", model_folders[family]
    )
    names = {}
    exec(code, names)
    texts = names["tokenizer"](["good word1", "bad"], return_tensors="pt", padding=True)
    with torch.no_grad():
        assert names["model"](input_ids=texts["input_ids"], attention_mask=texts["attention_mask"]).logits.shape == (
            2,
            2,
        )


def test_no_folder_of_the_machine_is_published(recipe, tmp_path):  # noqa: F811
    result = train(recipe, tmp_path / "run", device="cpu")
    config = json.loads((result.adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == recipe.model  # here it loads from where it was; the hub gets the name
    others = [file for file in result.adapter.glob("*.json") if file.name != "adapter_config.json"]
    for file in [*others, result.adapter / "README.md"]:
        for folder in (str(tmp_path.parent), recipe.model, recipe.data.source):
            assert folder not in file.read_text(), file.name
    assert base_name("demo:all-MiniLM-L6-v2") == "sentence-transformers/all-MiniLM-L6-v2"
    assert base_name("org/model") == "org/model"


def test_the_rate_of_k_is_on_the_card_where_k_is_trained(recipe, tmp_path):  # noqa: F811
    candidate = recipe.candidate.model_copy(update={"targets": "qkv"})
    rates = recipe.rates.model_copy(update={"k": 5e-3})
    result = train(recipe.model_copy(update={"candidate": candidate, "rates": rates}), tmp_path / "run", device="cpu")
    card = (result.adapter / "README.md").read_text()
    assert "| lr_k | 0.005 |" in card
    assert "W_q, W_k and W_v" in card


def compared(candidate: Candidate) -> Evidence:
    other = candidate.model_copy(update={"ratio": 1.0})
    same = {"validation_loss": 0.5, "test_loss": 0.5, "test_metric": 0.8}
    return Evidence(
        verdict="It beats the rule.",
        trials={"total": 2},
        seeds=2,
        finals=[Score(label="finalist 1", candidate=candidate, **{**same, "test_loss": 0.4321})],
        scores=[
            Score(label="finalist 1", candidate=candidate, gain=None, **same),
            Score(label="rule <b>|", candidate=other, gain=Interval(mean=0.02, low=0.01, high=0.03), **same),
            Score(label="paper", candidate=other, gain=Interval(mean=-0.02, low=-0.05, high=0.01), **same),
        ],
        cost=Cost(device_seconds=1, trained_tokens=1, evaluated_tokens=1, full_run_equivalents=1),
    )


def test_the_card_holds_the_recipe_the_comparison_and_both_papers(recipe, tmp_path):  # noqa: F811
    told = recipe.model_copy(update={"evidence": compared(recipe.candidate), "classes": ["bad", "```\n# good"]})
    scores = {"loss": 1.0, recipe.metric: 0.5}
    card = model_card(told, {"best_step": 1, "validation": scores, "test": scores})
    assert "| finalist 1 |" in card and "winner |" in card and "+0.0200 (+0.0100 to +0.0300)" in card
    assert "| at the end of the full run |" in card and "| 0.4321 |" in card
    assert card.count("@inproceedings{") == 2 and "2410.02247" in card and "2409.15820" in card
    fence, text = re.search(r"^(`{3,})yaml\n(.*?)^\1$", card, re.S | re.M).groups()
    assert len(fence) > 3  # no class ends it
    (tmp_path / "recipe.yaml").write_text(text)
    assert Recipe.load(tmp_path) == published(told)
    assert yaml_io.parse(text, "card")["model"] == "bert"  # of a folder of this machine the name alone


def test_the_hub_reads_the_results(recipe, tmp_path):  # noqa: F811
    scores = {"loss": 0.25, recipe.metric: 0.875}
    named = recipe.model_copy(update={"name": 'mine: "yes"'})
    card = ModelCard(
        model_card(named, {"best_step": 1, "validation": {"loss": 9.0, recipe.metric: 0.1}, "test": scores})
    )
    found = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert found == scores and {result.dataset_split for result in card.data.eval_results} == {"test"}
    assert (card.data.base_model, card.data.library_name) == ("bert", "peft")
    assert card.data.pipeline_tag == "text-classification" and card.data.tags == ["lora", "autolr"]
    assert card.data.model_name == named.name and card.text.strip().startswith(f"# {named.name}")


def test_without_a_comparison_there_is_no_table_of_it(recipe, tmp_path):  # noqa: F811
    scores = {"loss": 1.0, recipe.metric: 0.5}
    card = model_card(recipe, {"best_step": 1, "validation": scores, "test": scores})
    assert "above the winner" not in card and "no evidence of a search" in card
