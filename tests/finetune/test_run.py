"""The full run: the Trainer trains what a slot trains, resumes, and its adapter is a stock one."""

from __future__ import annotations

import json

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from autolr.data import sources
from autolr.data.pipeline import prepare
from autolr.data.tasks import Classification
from autolr.errors import DataError, ModelError, RunError
from autolr.finetune import run, trainer
from autolr.finetune.evaluation import evaluate
from autolr.finetune.run import train
from autolr.model import adapters, backbone, precision
from autolr.pack.pack import Pack
from autolr.pack.slots import SlotConfig
from autolr.schema.recipe import Recipe


@pytest.fixture(params=["bert"])
def recipe(small_recipe, model_folders, request) -> Recipe:
    return small_recipe.model_copy(update={"model": model_folders[request.param]})


@pytest.mark.parametrize(
    ("recipe", "precision", "tolerance"),
    [("bert", "fp32", 1e-4), ("bert", "bf16", 3e-2), ("gpt2", "fp32", 1e-4), ("gpt_neox", "fp32", 1e-4)],
    indirect=["recipe"],
)
def test_the_trainer_trains_what_a_slot_trains(recipe, tmp_path, monkeypatch, precision, tolerance):
    recipe = recipe.model_copy(update={"training": recipe.training.model_copy(update={"precision": precision})})
    last = {}
    monkeypatch.setattr(run, "_save", lambda folder, model, *_: last.update(model=model) or folder)
    saved = {}

    def keep(self, args, state, control, **_):
        if state.global_step == state.max_steps:
            saved.update({n: v.detach().clone() for n, v in adapters.values_of(last_trainer[0].model).items()})
            control.should_evaluate = control.should_save = True

    last_trainer = []
    original = trainer.RecipeTrainer.__init__

    def note(self, *args, **kwargs):
        original(self, *args, **kwargs)
        last_trainer.append(self)

    monkeypatch.setattr(trainer.RecipeTrainer, "__init__", note)
    monkeypatch.setattr(trainer._Callback, "on_step_end", keep)
    train(recipe, tmp_path / "run", device="cpu")

    base = backbone.load(recipe.model, recipe.classes, wanted=precision)
    data = prepare(sources.load(recipe.data), recipe.data, base.tokenizer, 8, 0, base.max_length)
    with Pack(
        base,
        recipe.training,
        Classification(tuple(recipe.classes)),
        data.train,
        capacity=2,
        max_rank=8,
        lora_alpha=recipe.method.lora_alpha,
    ) as pack:
        slot = pack.admit(SlotConfig(recipe.candidate.rates(1e-2), 4, recipe.seed, recipe.steps))
        for _ in range(recipe.steps):
            pack.step()
        values = pack.values(slot)
    assert saved.keys() == values.keys()
    for name, value in values.items():
        assert torch.linalg.vector_norm(value - saved[name]) <= tolerance * torch.linalg.vector_norm(value), name


@pytest.mark.parametrize("recipe", ["bert", "gpt2"], indirect=True)
def test_the_adapter_gives_the_reported_score_in_stock_peft(recipe, tmp_path):
    result = train(recipe, tmp_path / "run", device="cpu")
    stock = AutoModelForSequenceClassification.from_pretrained(
        recipe.model, num_labels=2, ignore_mismatched_sizes=True
    )
    stock = PeftModel.from_pretrained(stock, result.adapter).eval()
    tokenizer = AutoTokenizer.from_pretrained(result.adapter)
    base = backbone.load(recipe.model, recipe.classes)
    examples = sources.load(recipe.data)
    data = prepare(examples, recipe.data, tokenizer, 8, 0, base.max_length)
    score = evaluate(stock, data.test, Classification(tuple(recipe.classes)))
    assert score["loss"] == pytest.approx(result.metrics["test"]["loss"], rel=1e-5)
    assert score["accuracy"] == result.metrics["test"]["accuracy"]
    with stock.disable_adapter():
        bare = evaluate(stock, data.test, Classification(tuple(recipe.classes)))
    assert abs(bare["loss"] - score["loss"]) > 1e-4
    config = json.loads((result.adapter / "adapter_config.json").read_text())
    fused = "gpt2" in recipe.model
    assert sorted(config["target_modules"]) == (["c_attn"] if fused else ["query", "value"])
    assert (config["r"], config["lora_alpha"]) == ((8, 32) if fused else (4, 16))
    assert "PeftModel.from_pretrained" in (result.adapter / "README.md").read_text()
    best = min((e["eval_loss"], e["step"]) for e in result.metrics["log"] if "eval_loss" in e)
    assert result.metrics["best_step"] == best[1]
    assert result.metrics["validation"]["loss"] == pytest.approx(best[0], rel=1e-4)
    assert train(recipe, tmp_path / "run").metrics == result.metrics  # finished: nothing is trained again


@pytest.mark.parametrize("recipe", ["bert", "gpt2"], indirect=True)
def test_a_run_that_was_stopped_ends_as_one_that_was_not(recipe, tmp_path):
    whole = train(recipe, tmp_path / "whole", device="cpu")

    def stop(entry):
        if entry["step"] >= 14:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "cut", device="cpu", on_log=stop)
    checkpoints = sorted((tmp_path / "cut" / "checkpoints").glob("checkpoint-*"))
    assert checkpoints
    (checkpoints[-1] / "trainer_state.json").write_text("{")  # and the newest one is damaged
    entries = []
    cut = train(recipe, tmp_path / "cut", device="cpu", on_log=entries.append)
    assert 3 < entries[0]["step"] <= 15  # it went on from a checkpoint in the middle
    assert cut.metrics["test"] == whole.metrics["test"]
    assert cut.metrics["best_step"] == whole.metrics["best_step"]


def test_what_does_not_fit_the_recipe_is_refused(recipe, tmp_path):
    with pytest.raises(DataError, match="has changed since the search"):
        train(recipe.model_copy(update={"data_fingerprint": "0" * 64}), tmp_path / "a")
    with pytest.raises(ModelError, match="has? ?changed|have changed"):
        train(recipe.model_copy(update={"model_fingerprint": "0" * 64}), tmp_path / "b")
    large = recipe.candidate.model_copy(update={"rank": 64})
    with pytest.raises(ModelError, match="rank 64"):
        train(recipe.model_copy(update={"candidate": large}), tmp_path / "c")
    assert not any((tmp_path / name).exists() for name in "abc")
    recipe.save(tmp_path / "d" / "recipe.yaml")
    with pytest.raises(RunError, match="--out"):
        train(recipe.model_copy(update={"steps": 30}), tmp_path / "d")


def test_a_base_held_in_bf16_as_on_a_gpu(recipe, tmp_path, monkeypatch):
    training = recipe.training.model_copy(update={"precision": "bf16"})
    recipe = recipe.model_copy(update={"training": training})
    rounded = train(recipe, tmp_path / "products", device="cpu")
    monkeypatch.setattr(precision, "whole", lambda device: True)
    result = train(recipe, tmp_path / "whole", device="cpu")
    assert result.test["loss"] == pytest.approx(rounded.test["loss"], abs=0.02)
    with safe_open(result.adapter / "adapter_model.safetensors", framework="pt") as tensors:
        assert {tensors.get_tensor(name).dtype for name in tensors.keys()} == {torch.float32}  # noqa: SIM118
