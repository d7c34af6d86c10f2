"""A recipe's rates in transformers.Trainer, TRL's trainers, Lightning and a plain loop."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

import autolr
from autolr.errors import AutoLRError
from autolr.schema.recipe import Rates, Recipe
from tests import tiny
from tests.conftest import tokenizer_with

LORA = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=True)
STEPS, BATCH = 3, 2


def adapted() -> nn.Module:
    base = tiny.model("llama/lm", torch.float64)
    torch.manual_seed(1)
    return get_peft_model(base, LORA, autocast_adapter_dtype=False)


def rows() -> list[dict[str, list[int]]]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, tiny.VOCABULARY, (STEPS * BATCH, 6), generator=generator).tolist()
    return [{"input_ids": one, "labels": one} for one in ids]


def arguments(folder, **more) -> TrainingArguments:
    usual = {
        "learning_rate": 1e-3,
        "max_steps": STEPS,
        "per_device_train_batch_size": BATCH,
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "train_sampling_strategy": "sequential",
        "max_grad_norm": 0.0,
        "optim": "adamw_torch",
    }
    return TrainingArguments(output_dir=str(folder), **{**usual, **more})


def trained(kind, folder, **more):
    model = adapted()
    trainer = kind(model=model, args=arguments(folder, **more), train_dataset=Dataset.from_list(rows()))
    trainer.train()
    return trainer, {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def test_equal_rates_are_the_stock_trainer(tmp_path):
    kind = autolr.with_rates(Trainer, {"lr_q": 1e-3, "ratio": 1})
    _, ours = trained(kind, tmp_path, weight_decay=0.1)
    _, stock = trained(Trainer, tmp_path, weight_decay=0.1)
    assert distance(ours, stock) < 1e-12


def test_the_trainer_trains_what_a_plain_loop_trains(tmp_path):
    rates = {"lr_q": 1e-3, "ratio": 8}
    trainer, ours = trained(autolr.with_rates(Trainer, rates), tmp_path)
    model = adapted()
    optimizer = torch.optim.AdamW(autolr.parameter_groups(model, **rates))
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (8 if group["name"] == "v" else 1) * (STEPS - step) / STEPS
        ids = torch.tensor([row["input_ids"] for row in rows()[step * BATCH : (step + 1) * BATCH]])
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    plain = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    assert distance(ours, plain) < 1e-9
    held = [id(p) for group in trainer.optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in trainer.model.parameters() if p.requires_grad)


def test_each_roles_rate_is_logged_and_trackers_see_it(tmp_path):
    seen = []

    class Tracker(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **_):
            seen.append(dict(logs))

    class Mine(autolr.RoleRates, Trainer):
        rates = {"lr_q": 1e-3, "ratio": 8}

    trainer = Mine(
        model=adapted(), args=arguments(tmp_path), train_dataset=Dataset.from_list(rows()), callbacks=[Tracker()]
    )
    trainer.train()
    expected = [(1e-3 * left / STEPS, 8e-3 * left / STEPS) for left in (3, 2, 1)]
    for log in (seen, trainer.state.log_history):
        told = [(entry["lr_q"], entry["lr_v"]) for entry in log if "loss" in entry]
        assert told == [pytest.approx(pair) for pair in expected]


def test_biases_do_not_decay_as_in_the_stock_trainer(tmp_path):
    base = tiny.model("bert")
    for name, parameter in base.named_parameters():
        parameter.requires_grad = any(part in name for part in (".query.", ".value.", "classifier"))
    kind = autolr.with_rates(Trainer, {"lr_q": 1e-3, "ratio": 2})
    trainer = kind(model=base, args=arguments(tmp_path, weight_decay=0.1))
    groups = trainer.create_optimizer().param_groups
    decayed = {id(p) for group in groups for p in group["params"] if group["weight_decay"] == 0.1}
    named = {name: p for name, p in base.named_parameters() if p.requires_grad}
    assert {name for name, p in named.items() if id(p) in decayed} == {n for n in named if not n.endswith("bias")}
    assert sum(len(group["params"]) for group in groups) == len(named)


def test_what_cannot_be_is_refused(tmp_path):
    with pytest.raises(TypeError, match="subclasses of transformers.Trainer"):
        autolr.with_rates(torch.optim.AdamW, {"lr_q": 1e-3, "ratio": 8})

    class Without(autolr.RoleRates, Trainer):
        pass

    with pytest.raises(AutoLRError, match="Without: has no rates; write in the class rates"):
        Without(model=adapted(), args=arguments(tmp_path)).create_optimizer()

    class Chooses(autolr.RoleRates, Trainer):
        rates = {"lr_q": 1e-3, "ratio": 8}

        def get_optimizer_cls_and_kwargs(self, args, model=None):
            return torch.optim.AdamW, {"params": list(model.parameters())}

    with pytest.raises(AutoLRError, match="chooses its parameters and their rates itself"):
        Chooses(model=adapted(), args=arguments(tmp_path)).create_optimizer()
    stranger = tiny.model("llama/lm").requires_grad_(True)
    kind = autolr.with_rates(Trainer, {"lr_q": 1e-3, "ratio": 8})
    with pytest.raises(ValueError, match="trainable parameters are none of q, k, v"):
        kind(model=stranger, args=arguments(tmp_path)).create_optimizer()


def recipe() -> Recipe:
    return Recipe(
        name="mine",
        model="a/model",
        data={"source": "rows.jsonl"},
        classes=[],
        task="sft",
        method={"kind": "lora"},
        candidate={"lr_v": 8e-3, "ratio": 8, "rank": 2, "loraplus_lr_ratio": 4},
        rates=Rates(q=1e-3, v=8e-3, b={"q": 4e-3, "v": 3e-2}),
        training={"betas": (0.8, 0.99), "eps": 1e-7, "weight_decay": 0.01},
        steps=STEPS,
    )


def test_a_recipes_optimizer():
    model = adapted()
    optimizer = autolr.create_optimizer(model, recipe())
    groups = {group["name"]: group for group in optimizer.param_groups}
    rates = {name: group["lr"] for name, group in groups.items()}
    assert rates == {"q": 1e-3, "q_B": 4e-3, "v": 8e-3, "v_B": 3e-2}
    assert all(g["betas"] == (0.8, 0.99) and g["eps"] == 1e-7 and g["weight_decay"] == 0.01 for g in groups.values())
    with pytest.raises(ValueError, match="no W_v is trained"):
        frozen = adapted()
        for name, parameter in frozen.named_parameters():
            parameter.requires_grad = parameter.requires_grad and "v_proj" not in name
        autolr.create_optimizer(frozen, recipe())


def test_a_recipe_in_the_trainer_keeps_its_rates(tmp_path):
    trainer, _ = trained(autolr.with_rates(Trainer, recipe()), tmp_path)
    first = trainer.state.log_history[0]
    rates = {name: rate for name, rate in first.items() if name.startswith("lr_")}
    assert rates == pytest.approx({"lr_q": 1e-3, "lr_q_B": 4e-3, "lr_v": 8e-3, "lr_v_B": 3e-2})


class _Module(nn.Module):
    """What a LightningModule is to the optimizer: the model is an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.model = adapted()

    def configure_optimizers(self):
        return autolr.create_optimizer(self, recipe())


def test_a_module_around_the_model():
    optimizer = _Module().configure_optimizers()
    assert [group["name"] for group in optimizer.param_groups] == ["q", "q_B", "v", "v_B"]


def test_lightning(tmp_path):
    lightning = pytest.importorskip("lightning.pytorch", reason="needs lightning: pip install lightning")

    class Mine(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = adapted()

        def training_step(self, batch, _):
            loss = self.model(input_ids=batch["input_ids"], labels=batch["input_ids"]).loss
            rates = self.optimizers().param_groups
            self.log_dict({f"lr_{group['name']}": group["lr"] for group in rates}, on_step=True, on_epoch=False)
            return loss

        def configure_optimizers(self):
            return autolr.create_optimizer(self, recipe())

    loader = torch.utils.data.DataLoader(Dataset.from_list(rows()).with_format("torch"), BATCH)
    module = Mine()
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    trainer = lightning.Trainer(
        max_steps=STEPS, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, loader)
    assert trainer.logged_metrics["lr_v"] == pytest.approx(8e-3)
    moved = {name for name, p in module.named_parameters() if not torch.equal(p, before[name])}
    assert moved and all(".lora_" in name for name in moved)


def chats() -> Dataset:
    return Dataset.from_list([{"prompt": "good fine word1", "completion": f" word{row}"} for row in range(8)])


def test_trl_sft(tmp_path):
    trl = pytest.importorskip("trl", reason="needs TRL: pip install trl")
    config = trl.SFTConfig(
        output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=2, logging_steps=1, report_to="none",
        use_cpu=True, bf16=False, disable_tqdm=True,
    )  # fmt: skip
    trainer = autolr.with_rates(trl.SFTTrainer, {"lr_q": 1e-3, "ratio": 4})(
        model=tiny.model("llama/lm"),
        args=config,
        train_dataset=chats(),
        processing_class=tokenizer_with(eos_token="[SEP]"),
        peft_config=LORA,
    )
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [(entry["lr_q"], entry["lr_v"]) for entry in logs] == [
        pytest.approx((1e-3, 4e-3)),
        pytest.approx((5e-4, 2e-3)),
    ]
    held = [id(p) for group in trainer.optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in trainer.model.parameters() if p.requires_grad)


def test_trl_dpo(tmp_path):
    trl = pytest.importorskip("trl", reason="needs TRL: pip install trl")
    config = trl.DPOConfig(
        output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=2, logging_steps=1, report_to="none",
        use_cpu=True, bf16=False, disable_tqdm=True,
    )  # fmt: skip
    pairs = [{"prompt": "good word1", "chosen": f" word{row}", "rejected": " bad"} for row in range(8)]
    trainer = autolr.with_rates(trl.DPOTrainer, recipe())(
        model=tiny.model("llama/lm"),
        args=config,
        train_dataset=Dataset.from_list(pairs),
        processing_class=tokenizer_with(eos_token="[SEP]"),
        peft_config=LORA,
    )
    trainer.train()
    first = trainer.state.log_history[0]
    assert (first["lr_q"], first["lr_v"], first["lr_v_B"]) == pytest.approx((1e-3, 8e-3, 3e-2))
