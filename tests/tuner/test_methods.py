"""Methods: full matrices, several compared in one search, and LoRA+'s ratio; from the study to the adapter."""

from __future__ import annotations

import pytest
import torch
from peft import PeftConfig, PeftModel
from transformers import AutoModelForSequenceClassification

from autolr.data import sources
from autolr.data.pipeline import prepare
from autolr.data.tasks import Classification
from autolr.errors import DocumentError, ModelError
from autolr.finetune.evaluation import evaluate
from autolr.finetune.run import train
from autolr.model import backbone
from autolr.report.page import write_report
from autolr.schema.candidate import Candidate
from autolr.schema.recipe import Recipe
from autolr.schema.study import Study
from autolr.tuner.dry_run import plan
from autolr.tuner.run import search


def with_method(study: Study, *kinds: str, space: dict | None = None, **more) -> Study:
    content = study.model_dump(mode="json")
    content["method"]["kind"] = list(kinds)
    content["space"] |= space or {}
    return Study.model_validate({**content, **more})


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_a_search_of_full_matrices_ends_in_a_stock_adapter_that_gives_the_reported_score(
    small_study, model_folders, tmp_path, family
):
    study = with_method(small_study, "full", model=model_folders[family], budget={"trials": 6})
    result = search(study, tmp_path / "run", device="cpu")
    recipe = result.recipe
    assert {trial.candidate.rank for trial in result.trials} == {0}
    assert "r=" not in recipe.evidence.verdict
    assert recipe.method.kind == [recipe.candidate.kind] == ["full"]
    assert "There is no rank: matrices are trained whole." in write_report(result).read_text()
    done = train(Recipe.load(tmp_path / "run"), tmp_path / "full", device="cpu")
    stock = AutoModelForSequenceClassification.from_pretrained(
        recipe.model, num_labels=2, ignore_mismatched_sizes=True
    )
    before = {name: p.clone() for name, p in stock.state_dict().items()}
    stock = PeftModel.from_pretrained(stock, done.adapter).eval()
    base = backbone.load(recipe.model, recipe.classes)
    data = prepare(sources.load(recipe.data), recipe.data, base.tokenizer, 8, 0, base.max_length)
    task = Classification(tuple(recipe.classes))
    assert evaluate(stock, data.test, task)["loss"] == pytest.approx(done.test["loss"], rel=1e-5)
    batch = data.test.collate(range(4))
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        wrapped = stock(**inputs).logits
        # Merged, it is a plain model of transformers, changed in W_q, W_v and the head alone.
        merged = stock.merge_and_unload()
        merged.save_pretrained(tmp_path / "merged")
        plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
        assert torch.equal(plain(**inputs).logits, wrapped)
    changed = {name for name, p in plain.state_dict().items() if not torch.equal(p, before[name])}
    inside = ("query.weight", "value.weight") if family == "bert" else ("c_attn.weight",)
    assert changed and all(name.endswith(inside) or name.startswith(base.head) for name in changed)
    assert sum(name.endswith(inside) for name in changed) == 2 * len(inside)
    card = (done.adapter / "README.md").read_text()
    assert "W_q and W_v fully fine-tuned" in card and "rank, alpha" not in card


def test_methods_are_compared_in_one_search(small_study, tmp_path):
    study = with_method(small_study, "dora", "lora", "rslora", budget={"trials": 12})
    result = search(study, tmp_path / "run", device="cpu")
    kinds = {trial.baseline or trial.number: trial.candidate.kind for trial in result.trials}
    assert kinds["default"] == "dora"
    assert {one.candidate.kind for one in result.over_seeds if "with_k" in one.label} == {"dora"}
    assert len(set(kinds.values())) > 1
    winner = result.recipe.candidate
    assert result.recipe.method.kind == [winner.kind]
    assert "Effect of the method" in write_report(result).read_text()
    config = PeftConfig.from_pretrained(train(result.recipe, tmp_path / "full", device="cpu").adapter)
    assert (config.use_dora, config.use_rslora) == (winner.kind == "dora", winner.kind == "rslora")


def test_loraplus_is_a_choice_whose_rates_the_recipe_spells_out(small_study, tmp_path):
    space = {"loraplus_lr_ratio": [4.0, 16.0], "lr_v": [2e-3], "targets": ["all-linear"]}
    study = with_method(small_study, "lora", space=space, budget={"trials": 4}, baselines=["default"])
    result = search(study, tmp_path / "run", device="cpu")
    assert {trial.candidate.loraplus_lr_ratio for trial in result.trials} == {
        4.0,
        16.0,
    }  # the rule has 1: it is confirmed alone
    scores = {score.label: score.candidate for score in result.recipe.evidence.scores}
    assert scores["default"].loraplus_lr_ratio == 1.0
    recipe = result.recipe
    found = recipe.candidate
    assert set(recipe.rates.trained()) == {"q", "k", "v", "o", "mlp", "head"}
    if found.loraplus_lr_ratio > 1:
        assert recipe.rates.b["q"] == pytest.approx(found.lr_q * found.loraplus_lr_ratio)
        assert set(recipe.rates.b) == {"q", "k", "v", "o", "mlp"}
    rates = recipe.rates.model_copy(update={"b": {"v": 1e-2}})
    done = train(recipe.model_copy(update={"rates": rates}), tmp_path / "full", device="cpu")
    assert "| lr_v of B | 0.01 |" in (done.adapter / "README.md").read_text()


def test_no_b_is_faster_than_the_cap():
    candidate = Candidate(lr_v=1e-3, ratio=4, rank=8, loraplus_lr_ratio=16)
    assert candidate.rates_b(1e-2) == pytest.approx({"q": 4e-3, "v": 1e-2})
    assert candidate.model_copy(update={"loraplus_lr_ratio": 1.0}).rates_b(1e-2) == {}


def test_the_plan_counts_what_each_method_trains(small_study):
    full = plan(with_method(small_study, "full", space={"targets": ["qv", "all-linear"]}), "cpu")
    hidden, inner = 32, 48
    assert full.parameters["full qv"]["adapter"] == 2 * 2 * hidden**2
    assert full.parameters["full all-linear"]["adapter"] == 2 * (4 * hidden**2 + 2 * hidden * inner)
    assert "rank" not in full.space
    mixed = plan(with_method(small_study, "lora", "dora"), "cpu")
    assert mixed.parameters["r=4"]["adapter"] == 4 * (4 * 2 * hidden + hidden)  # DoRA's, the larger
    assert mixed.space["kind"] == "lora, dora"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"method": {"kind": ["full", "lora"]}}, "study of its own"),
        ({"method": {"kind": ["lora", "lora"]}}, "twice"),
        (
            {"method": {"kind": "full"}, "space": {"loraplus_lr_ratio": [1, 4]}},
            "space.loraplus_lr_ratio is the ratio of B's rate",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(small_study, change, says):
    with pytest.raises((DocumentError, ValueError), match=says):
        Study.model_validate({**small_study.model_dump(mode="json"), **change})


def test_dora_among_the_methods_of_a_fused_model_is_refused_before_anything_is_trained(small_study, model_folders):
    study = with_method(small_study, "lora", "dora", model=model_folders["gpt2"])
    with pytest.raises(ModelError, match="use method.kind lora, rslora or full"):
        plan(study, "cpu")


def test_a_rank_goes_with_adapters_alone():
    with pytest.raises(ValueError, match="does not go with kind full"):
        Candidate(lr_v=1e-3, ratio=1, rank=8, kind="full")
    with pytest.raises(ValueError, match="does not go with kind lora"):
        Candidate(lr_v=1e-3, ratio=1, rank=0)
