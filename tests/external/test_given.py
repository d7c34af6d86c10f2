"""What `tune_trainer` is given: taken as transformers.Trainer takes it, or refused before anything is trained."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback

import autolr
from autolr.errors import AutoLRError
from autolr.external import given
from tests import tiny
from tests.external.test_tune_trainer import SMALL, Notes, arguments, rows

LORA = LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


def model(_trial=None):
    return tiny.model("llama/lm")


class OwnOptimizer(Trainer):
    def create_optimizer(self, model=None):
        return super().create_optimizer(model)


class OwnBoth(Trainer):
    def create_optimizer_and_scheduler(self, num_training_steps):
        return super().create_optimizer_and_scheduler(num_training_steps)


class Stops(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        control.should_training_stop = True


class Counts(TrainerCallback):
    """Remembers its steps; a new one for each training never sees more than one's."""

    most = 0

    def __init__(self):
        self.steps = 0

    def on_step_end(self, args, state, control, **_):
        self.steps += 1
        Counts.most = max(Counts.most, self.steps)


class SGD(torch.optim.SGD):
    built = 0

    def __init__(self, *arguments, **options):
        SGD.built += 1
        super().__init__(*arguments, **options)


def test_what_a_trainer_takes_is_taken(tmp_path):
    scored, callback = [], Notes()

    def compute_metrics(prediction):
        scored.append(len(prediction.predictions))
        return {"eval_accuracy": np.float32(0.5)}

    stream = rows(16).to_iterable_dataset()
    args = arguments(tmp_path, max_steps=16, load_best_model_at_end=True, metric_for_best_model="eval_loss")
    result = autolr.tune_trainer(
        Trainer, args, model_init=lambda trial: tiny.model("llama/lm"), train_dataset=stream,
        eval_dataset={"one": rows(6), "other": rows(4)}, peft_config=LORA, trials=2, out=tmp_path / "run",
        study=SMALL, callback=callback, compute_metrics=compute_metrics,
        callbacks=[EarlyStoppingCallback(2), Counts()], optimizer_cls_and_kwargs=(SGD, {"momentum": 0.5}),
    )  # fmt: skip
    assert result.recipe is not None and result.recipe.steps == 16
    trainings = len(result.ended()) + len(result.over_seeds)
    assert SGD.built == trainings and set(scored) == {5}  # half of both together
    assert Counts.most == 4
    assert any("EarlyStoppingCallback: the search itself ends" in note for note in callback.notes)
    assert all(trial.curve and trial.outcome in ("finished", "pruned") for trial in result.ended())


def test_a_stock_optimizer_of_ones_own_trains_at_the_roles_rates(tmp_path):
    kind = autolr.with_rates(Trainer, {"lr_q": 1e-2, "ratio": 4})
    trainer = kind(
        model=get_peft_model(model(), LORA), args=arguments(tmp_path, max_steps=2), train_dataset=rows(8),
        eval_dataset=rows(2), optimizer_cls_and_kwargs=(SGD, {"lr": 7.0}),
    )  # fmt: skip
    found = trainer.create_optimizer()
    assert isinstance(found, SGD)
    assert {group["name"].split("_")[0]: group["lr"] for group in found.param_groups} == {"q": 1e-2, "v": 4e-2}
    assert trainer.create_optimizer() is found
    other = torch.optim.AdamW(trainer.model.parameters())
    trainer = kind(model=get_peft_model(model(), LORA), args=arguments(tmp_path), optimizers=(other, None),
                   train_dataset=rows(8), eval_dataset=rows(2))  # fmt: skip
    with pytest.raises(AutoLRError, match="groups are not the roles' groups"):
        trainer.create_optimizer()


STREAM = rows(4).to_iterable_dataset()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"model": "a/model"}, "Trainer takes a model, not its name; give a function"),
        ({"model": tiny.model("llama/lm")}, r"model=LlamaForCausalLM\(...\): each candidate needs a new model"),
        ({"model": None}, "give a function that returns a new one"),
        ({"trainer": OwnOptimizer}, "OwnOptimizer.create_optimizer: makes an optimizer of its own"),
        ({"trainer": type("Below", (OwnOptimizer,), {})}, "OwnOptimizer.create_optimizer: makes an optimizer"),
        ({"trainer": OwnBoth}, "OwnBoth.create_optimizer_and_scheduler: makes an optimizer of its own"),
        ({"optimizers": (torch.optim.SGD([torch.zeros(1)]), None)}, "optimizers=: belong to one model"),
        ({"train_dataset": None}, "train_dataset: must be one data set"),
        ({"train_dataset": {"train": rows(4), "test": rows(2)}}, r"one data set \(train, test\)"),
        ({"train_dataset": STREAM}, "train_dataset: a stream has no length, .* set max_steps"),
        ({"eval_dataset": None}, "eval_dataset: candidates are chosen and judged on it"),
        ({"eval_dataset": rows(1)}, "at least 2 examples"),
        ({"eval_dataset": STREAM}, "eval_dataset: a stream has no length and cannot be halved"),
        ({"eval_dataset": {"a": rows(2), "b": STREAM}}, "eval_dataset: a stream has no length"),
        ({"eval_dataset": {}}, "eval_dataset: candidates are chosen"),
        ({"eval_dataset": {"a": rows(2), "b": Dataset.from_list([{"input_ids": "x"}])}}, "have other columns"),
        ({"peft_config": None}, "peft_config=NoneType: candidates are LoRA adapters"),
        ({"peft_config": PrefixTuningConfig(num_virtual_tokens=2)}, "peft_config=PrefixTuningConfig"),
        ({"colour": "red"}, "Trainer: got an unexpected keyword argument 'colour'"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_before_anything_is_trained(tmp_path, more, said):
    usual = {"model": model, "train_dataset": rows(8), "eval_dataset": rows(4), "peft_config": LORA}
    kind = more.pop("trainer", Trainer)
    with pytest.raises(AutoLRError, match=said):
        autolr.tune_trainer(kind, arguments(tmp_path), out=tmp_path / "run", **{**usual, **more})
    assert not (tmp_path / "run").exists()


def test_what_a_function_returns_must_be_a_new_base_model(tmp_path):
    shared = tiny.model("llama/lm")
    usual = {"train_dataset": rows(8), "eval_dataset": rows(4), "peft_config": LORA, "study": SMALL, "trials": 2}
    for number, (function, said) in enumerate(
        (
            (lambda: get_peft_model(model(), LORA), "already has an adapter"),
            (lambda: shared, "already has an adapter"),  # the second time
            (lambda: "a/model", "returns str, not a model"),
        )
    ):
        with pytest.raises(AutoLRError, match=said):
            autolr.tune_trainer(Trainer, arguments(tmp_path), model=function, out=tmp_path / f"{number}", **usual)


def test_a_callback_that_ends_a_training_is_named(tmp_path):
    usual = {"train_dataset": rows(8), "eval_dataset": rows(4), "peft_config": LORA, "study": SMALL, "trials": 2}
    with pytest.raises(AutoLRError, match="ended at step 1 of 4, though it was not to stop. Leave out callbacks"):
        autolr.tune_trainer(
            Trainer, arguments(tmp_path), model=model, callbacks=[Stops()], out=tmp_path / "run", **usual
        )


def test_without_a_watcher_what_is_left_is_a_warning(tmp_path):
    usual = {"train_dataset": rows(8), "eval_dataset": rows(4), "peft_config": LORA, "study": {"nonsense": 1}}
    with pytest.warns(UserWarning, match="tune_trainer: not taken over: schedule cosine"), pytest.raises(AutoLRError):
        autolr.tune_trainer(Trainer, arguments(tmp_path), model=model, out=tmp_path / "run", **usual)


def test_data_of_torch_is_halved_too():
    one = torch.utils.data.TensorDataset(torch.arange(10))
    first, second = given.halves({"a": one, "b": one})
    assert len(first) == len(second) == 10
    assert sorted(int(part[0]) for half in (first, second) for part in half) == sorted([*range(10)] * 2)
