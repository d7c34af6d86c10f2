"""A search around transformers.Trainer and TRL's trainers: their arguments in, a recipe out."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import Trainer, TrainingArguments

import autolr
from autolr.errors import AutoLRError
from autolr.progress.callbacks import Callback
from tests import tiny
from tests.conftest import tokenizer_with

SMALL = {
    "search": {"stages": [{"to": 4}], "rungs": [2], "seeds": 2},
    "space": {"rank": [2, 4], "ratio": [1, 8], "lr_v": [1e-3, 1e-2]},
    "baselines": ["default"],
}


def rows(count: int) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, tiny.VOCABULARY, (count, 6), generator=generator).tolist()
    return Dataset.from_list([{"input_ids": one, "labels": one} for one in ids])


class Notes(Callback):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def arguments(folder, **more) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder / "never"), learning_rate=1e-3, num_train_epochs=4, per_device_train_batch_size=2,
        gradient_accumulation_steps=2, use_cpu=True, weight_decay=0.01, lr_scheduler_type="cosine", warmup_steps=2,
        eval_strategy="epoch", report_to="none", save_strategy="epoch", **more,
    )  # fmt: skip


def test_a_trainers_arguments_in_a_recipe_out(tmp_path):
    built, callback = [], Notes()

    def model():
        built.append(1)
        return tiny.model("llama/lm")

    lora = LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    result = autolr.tune_trainer(
        Trainer, arguments(tmp_path), model=model, train_dataset=rows(16), eval_dataset=rows(8), peft_config=lora,
        trials=4, out=tmp_path / "run", callback=callback, study=SMALL,
    )  # fmt: skip
    recipe = result.recipe
    assert recipe.steps == 16 and recipe.training.batch_size == 4  # four epochs of 16 in batches of 2 x 2
    assert (
        recipe.training.weight_decay == 0.01
        and recipe.training.warmup_ratio == 0.125
        and recipe.method.lora_alpha == 8
    )
    assert (recipe.task, recipe.name, recipe.candidate.targets) == ("sft", "Trainer", "qv")
    assert [note for note in callback.notes if "cosine" in note and note.startswith("not taken over")]
    rule = next(trial for trial in result.trials if trial.baseline == "default")
    assert (rule.candidate.lr_v, rule.candidate.ratio) == (1e-3, 1.0)
    trained = len(result.ended()) + len(result.over_seeds)
    assert len(built) == trained and len(result.ended()) == 4
    assert all(len(r.losses) == 1 and r.losses[0] != pytest.approx(r.validation_loss) for r in result.over_seeds)
    assert not (tmp_path / "never").exists() or not list((tmp_path / "never").glob("checkpoint-*"))
    kind = autolr.with_rates(Trainer, recipe)
    assert kind.rates is recipe


def test_a_sequence_classifiers_head_keeps_its_rate(tmp_path):
    base = tiny.model("bert")
    labelled = rows(16).map(lambda row: {"labels": row["input_ids"][0] % 2})
    lora = LoraConfig(r=2, target_modules=["query", "value"], task_type="SEQ_CLS")
    result = autolr.tune_trainer(
        Trainer, arguments(tmp_path), model=lambda: tiny.model("bert"), train_dataset=labelled,
        eval_dataset=labelled, peft_config=lora, trials=2, out=tmp_path / "run", study=SMALL,
    )  # fmt: skip
    assert result.recipe.rates.head == 1e-3 and result.recipe.task == "classification"
    assert base is not None


def test_trls_sft(tmp_path, model_folders):
    trl = pytest.importorskip("trl", reason="needs TRL: pip install trl")
    config = trl.SFTConfig(
        output_dir=str(tmp_path / "never"), learning_rate=1e-3, max_steps=8, per_device_train_batch_size=2,
        use_cpu=True, bf16=False, report_to="none",
    )  # fmt: skip
    texts = Dataset.from_list([{"prompt": "good word1", "completion": f" word{n % 7}"} for n in range(12)])
    result = autolr.tune_trainer(
        trl.SFTTrainer, config, model=model_folders["lm"], train_dataset=texts, eval_dataset=texts,
        peft_config=LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"), trials=2,
        out=tmp_path / "run", study=SMALL, processing_class=tokenizer_with(eos_token="[SEP]"),
    )  # fmt: skip
    assert result.recipe.model == model_folders["lm"] and result.recipe.steps == 8
    assert autolr.lora_config(result.recipe).r == result.recipe.candidate.rank


def test_what_is_wrong_is_said(tmp_path):
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    usual = {"train_dataset": rows(8), "peft_config": lora, "out": tmp_path / "run"}
    with pytest.raises(AutoLRError, match="Trainer takes a model, not its name; give a function"):
        autolr.tune_trainer(Trainer, arguments(tmp_path), model="a/model", eval_dataset=rows(8), **usual)
    with pytest.raises(AutoLRError, match="eval_dataset: candidates are chosen and judged on it"):
        autolr.tune_trainer(Trainer, arguments(tmp_path), model=tiny.model, eval_dataset=None, **usual)
