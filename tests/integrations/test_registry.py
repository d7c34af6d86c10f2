"""Exported files, read by the tools they are for."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import yaml
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, Trainer

import autolr
from autolr.data.pipeline import prepare
from autolr.errors import AutoLRError, DataError, ModelError, RunError
from autolr.integrations.bundle import SELECT, TRAIN
from autolr.integrations.registry import TOOLS, export
from autolr.model import adapters, backbone

ROOT = Path(__file__).resolve().parents[2]


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def run(folder: Path, *command: str) -> str:
    """Run a command in an export's folder; what it says."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("tool", ["trl", "axolotl", "llama-factory"])
def test_the_data_is_the_searchs_train_and_select(tool, recipe_of, tmp_path):
    recipe = recipe_of()
    export(recipe, tool, tmp_path)
    base = backbone.load(recipe.model, [], task="sft")
    examples = autolr_examples(recipe)
    data = prepare(examples, recipe.data, base.tokenizer, 4, recipe.split_seed)
    train, validation = lines(tmp_path / TRAIN), lines(tmp_path / SELECT)
    assert (len(train), len(validation)) == (len(data.train), len(data.validation))
    ids = [base.tokenizer(row["prompt"] + row["completion"], add_special_tokens=False)["input_ids"] for row in train]
    assert ids == [own[:-1] for own in data.train.ids]  # the last is the end token
    assert len(train) + len(validation) < len(examples)  # confirm stays at home


def autolr_examples(recipe):
    from autolr.data import sources

    return sources.load(recipe.data, recipe.task)


def test_every_file_says_what_is_lost(recipe_of, tmp_path):
    for tool in ("trl", "llama-factory"):
        written, paths = export(recipe_of(), tool, tmp_path / tool)
        one_rate = next(line for line in written.lost if line.startswith("one rate for all"))
        assert "0.008: the recipe has q at 0.001" in one_rate and "+0.0123" in one_rate
        assert written.command in (tmp_path / tool / "README.md").read_text(encoding="utf-8")
        assert "one rate for all" in paths[0].read_text(encoding="utf-8").split("\n\n")[0]
    written, _ = export(recipe_of(), "axolotl", tmp_path / "axolotl")
    assert not [line for line in written.lost if "rate" in line]


def test_peft(recipe_of, tmp_path):
    for task, auto in (("sft", AutoModelForCausalLM), ("classification", AutoModelForSequenceClassification)):
        recipe = recipe_of(task)
        folder = tmp_path / task
        export(recipe, "peft", folder)
        config = LoraConfig.from_pretrained(str(folder))
        assert (config.r, config.lora_alpha, config.lora_dropout, config.use_dora) == (4, 16, 0.0, False)
        head = {} if task == "sft" else {"num_labels": 2, "ignore_mismatched_sizes": True}
        stock = get_peft_model(auto.from_pretrained(recipe.model, **head), config)
        ours = adapters.peft_model(backbone.load(recipe.model, recipe.classes, task=task), "qv", 4, 16, 0)
        named = [{n: p.shape for n, p in m.named_parameters() if p.requires_grad} for m in (stock, ours)]
        assert named[0] == named[1]
        rates = {g["name"]: g["lr"] for g in autolr.create_optimizer(stock, recipe).param_groups}
        assert rates == recipe.rates.trained()


def test_trl_reads_it(recipe_of, rows, tmp_path):
    trl = pytest.importorskip("trl", reason="needs TRL: pip install trl")
    kinds = (trl.ScriptArguments, trl.SFTConfig, trl.ModelConfig)
    for task, data in (("sft", None), ("lm", None), ("sft", rows["chats"])):
        folder = tmp_path / f"{task}{bool(data)}"
        export(recipe_of(task, data), "trl", folder)
        script, arguments, model = trl.TrlParser(kinds).parse_args_and_config(["--config", str(folder / "trl.yaml")])
        assert (arguments.learning_rate, arguments.max_steps, arguments.per_device_train_batch_size) == (8e-3, 6, 4)
        assert (arguments.adam_beta1, arguments.adam_beta2, arguments.weight_decay) == (0.8, 0.99, 0.01)
        assert (arguments.warmup_steps, arguments.lr_scheduler_type, arguments.max_length) == (3, "linear", 32)
        assert arguments.assistant_only_loss == bool(data) and not arguments.packing
        config = trl.get_peft_config(model)
        assert (config.r, config.lora_alpha, config.lora_dropout) == (4, 16, 0.0)
        assert set(config.target_modules) == {"q_proj", "v_proj"} and config.task_type == "CAUSAL_LM"
        assert (script.dataset_name, script.dataset_test_split) == ("data", "validation")


def test_trl_trains_it_at_the_recipes_rates(recipe_of, tmp_path):
    pytest.importorskip("trl", reason="needs TRL: pip install trl")
    export(recipe_of(), "trl", tmp_path)
    run(tmp_path, "train.py", "--config", "trl.yaml", "--use_cpu", "--logging_steps", "1")
    state = max((tmp_path / "out").glob("checkpoint-*/trainer_state.json"), key=lambda path: path.stat().st_mtime)
    logged = [entry for entry in json.loads(state.read_text())["log_history"] if "lr_v" in entry]
    shares = [0.0, 1 / 3, 2 / 3, 1.0, 2 / 3, 1 / 3][: len(logged)]  # three steps of warmup, then down
    assert [(entry["lr_q"], entry["lr_v"]) for entry in logged] == [
        pytest.approx((1e-3 * share, 8e-3 * share)) for share in shares
    ]
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


def test_axolotl_accepts_it_and_gives_each_role_its_rate(recipe_of, rows, tmp_path):
    schema = pytest.importorskip("axolotl.utils.schemas.config", reason="needs axolotl's schema")
    for number, (task, data) in enumerate((("sft", None), ("lm", None), ("sft", rows["chats"]))):
        rates = {"q": 1e-3, "v": 8e-3, "b": {"q": 4e-3, "v": 3e-2}}
        candidate = {"lr_v": 8e-3, "ratio": 8, "rank": 4, "loraplus_lr_ratio": 4}
        recipe = recipe_of(task, data, rates=rates, candidate=candidate)
        export(recipe, "axolotl", tmp_path / str(number))
        content = yaml.safe_load((tmp_path / str(number) / "axolotl.yaml").read_text())
        config = schema.AxolotlInputConfig(**content)
        assert (config.lora_r, config.lora_alpha, config.max_steps, config.micro_batch_size) == (4, 16, 6, 4)
        assert (config.adam_beta1, config.adam_beta2, config.warmup_steps) == (0.8, 0.99, 3)
        assert set(config.model_dump(exclude_unset=True)) >= set(content)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(recipe.model), autolr.lora_config(recipe))
        groups = {group["name"]: group for group in content["lr_groups"]}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                # As axolotl's OptimizerMixin finds a parameter's group: the first part of a name that fits.
                first = next(g for g in groups.values() if any(part in name for part in g["modules"]))
                role = "v" if "v_proj" in name else "q"
                assert first["lr"] == (rates["b"][role] if "lora_B" in name else rates[role]), name


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_axolotls_own_optimizer(kind, recipe_of, tmp_path):
    axolotl = pytest.importorskip("axolotl", reason="needs axolotl")
    # The module alone: the packages around it import all that axolotl can train with.
    path = Path(axolotl.__path__[0], "core", "trainers", "mixins", "optimizer.py")
    spec = importlib.util.spec_from_file_location("axolotl_optimizer", path)
    mixin = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mixin)
    recipe = recipe_of(
        method={"kind": kind},
        candidate={"lr_v": 8e-3, "ratio": 8, "rank": 4, "targets": "all-linear", "kind": kind},
        rates={"q": 1e-3, "k": 2e-3, "v": 8e-3, "o": 5e-3, "mlp": 6e-3},
    )
    export(recipe, "axolotl", tmp_path)
    content = yaml.safe_load((tmp_path / "axolotl.yaml").read_text())
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(recipe.model), autolr.lora_config(recipe))
    arguments = types.SimpleNamespace(
        lr_groups=content["lr_groups"], weight_decay=0.01, embedding_lr_scale=None, embedding_lr=None
    )
    trainer = types.SimpleNamespace(args=arguments)
    trainer.get_decay_parameter_names = lambda model: Trainer.get_decay_parameter_names(trainer, model)
    groups = mixin.OptimizerMixin.create_optimizer_grouped_parameters(
        trainer, model, {"lr": content["learning_rate"]}
    )
    theirs = {id(p): group["lr"] for group in groups for p in group["params"]}
    ours = {id(p): g["lr"] for g in autolr.create_optimizer(model, recipe).param_groups for p in g["params"]}
    assert theirs == ours and len(set(ours.values())) == 5


def test_llama_factory_reads_it(recipe_of, rows, tmp_path, monkeypatch):
    monkeypatch.setenv("DISABLE_VERSION_CHECK", "1")
    # Sounds are read by torchaudio, which comes with a build of torch of its own; none are read here.
    monkeypatch.setitem(sys.modules, "torchaudio", sys.modules.get("torchaudio", types.ModuleType("torchaudio")))
    hparams = pytest.importorskip("llamafactory.hparams", reason="needs LLaMA-Factory")
    from llamafactory.data.parser import get_dataset_list

    for number, (task, data) in enumerate((("sft", None), ("lm", None), ("sft", rows["chats"]))):
        folder = tmp_path / str(number)
        loraplus_lr_ratio = {"rates": {"q": 1e-3, "v": 8e-3, "b": {"q": 4e-3, "v": 3e-2}}}
        candidate = {"lr_v": 8e-3, "ratio": 8, "rank": 4, "loraplus_lr_ratio": 4}
        export(recipe_of(task, data, candidate=candidate, **loraplus_lr_ratio), "llama-factory", folder)
        content = yaml.safe_load((folder / "llama-factory.yaml").read_text())
        monkeypatch.chdir(folder)
        _, datas, training, finetuning, _ = hparams.get_train_args({**content, "use_cpu": True})
        assert (finetuning.lora_rank, finetuning.lora_alpha, finetuning.lora_target) == (4, 16, ["q_proj", "v_proj"])
        assert (finetuning.loraplus_lr_ratio, training.learning_rate, training.max_steps) == (4, 8e-3, 6)
        assert (training.adam_beta1, training.warmup_steps, datas.cutoff_len) == (0.8, 3, 32)
        assert finetuning.stage == ("pt" if task == "lm" else "sft")
        (found,) = get_dataset_list(datas.dataset, datas.dataset_dir)
        assert Path("data", found.dataset_name).is_file()


def test_refused(recipe_of, model_folders, rows, tmp_path):
    for tool in ("trl", "axolotl", "llama-factory"):
        with pytest.raises(ModelError, match=f"--to {tool}: trains language models.*--to peft"):
            export(recipe_of("classification"), tool, tmp_path / "none")
    for tool in TOOLS:
        with pytest.raises(ModelError, match="more than one of W_q, W_k and W_v.*autolr train"):
            export(recipe_of("sft", model=model_folders["gpt2"]), tool, tmp_path / "none")
    full = {"method": {"kind": "full"}, "candidate": {"lr_v": 8e-3, "ratio": 8, "rank": 0, "kind": "full"}}
    with pytest.raises(ModelError, match="there is no adapter; use autolr train"):
        export(recipe_of(**full), "peft", tmp_path / "none")
    with pytest.raises(ModelError, match="takes whole numbers for alpha alone, and the recipe's is 12.5"):
        export(recipe_of(method={"lora_alpha": 12.5}), "axolotl", tmp_path / "none")
    with pytest.raises(AutoLRError, match="--to keras: known are peft, trl"):
        export(recipe_of(), "keras", tmp_path / "none")
    with pytest.raises(DataError, match="has changed since the search"):
        export(recipe_of(data_fingerprint="0" * 64), "trl", tmp_path / "none")
    assert not (tmp_path / "none").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep me")
    with pytest.raises(RunError, match="is not empty, and holds no export for peft"):
        export(recipe_of(), "peft", tmp_path / "mine")
