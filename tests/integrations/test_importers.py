"""Set-ups of other tools, taken over as studies."""

from __future__ import annotations

import json

import pytest
import yaml

from autolr.errors import DocumentError
from autolr.integrations.importers import read
from autolr.integrations.registry import export
from autolr.schema.study import Study
from autolr.schema.yaml_io import validate
from autolr.tuner.propose.space import SearchSpace, rule_rate
from autolr.tuner.propose.warm_start import carried, priors


def study(path, **more) -> tuple[Study, list[str]]:
    found = read(path)
    content = {**found.study, **{key: value for key, value in more.items() if key not in found.study}}
    return validate(Study, content, str(path)), found.left


@pytest.fixture
def write(tmp_path):
    def write(name: str, content: dict) -> str:
        path = tmp_path / name
        path.write_text(json.dumps(content) if name.endswith(".json") else yaml.safe_dump(content), encoding="utf-8")
        return str(path)

    return write


@pytest.mark.parametrize("tool", ["trl", "axolotl"])
def test_what_was_exported_comes_back(tool, recipe_of, rows, tmp_path):
    for number, (task, data) in enumerate((("sft", None), ("lm", None), ("sft", rows["chats"]))):
        recipe = recipe_of(task, data)
        _, paths = export(recipe, tool, tmp_path / f"{tool}{number}")
        found, left = study(paths[0])
        assert found.model == recipe.model and found.seed == recipe.seed
        assert found.training.model_dump(exclude={"precision"}) == recipe.training.model_dump(exclude={"precision"})
        assert found.method.lora_alpha == 16 and found.space.rank == [2, 4, 8] and found.space.targets == ["qv"]
        assert found.data.max_length == 32
        (known,) = found.search.warm_start
        rate = rule_rate(32, "llama")
        assert known.rate * rate == pytest.approx(8e-3, rel=1e-3) and known.rank == 4
        assert known.ratio == pytest.approx(8 if tool == "axolotl" else 1)  # TRL's file has one rate
        assert not [line for line in left if "targets" in line or "lr_scheduler_type" in line], left
        if tool == "axolotl":
            assert found.task == task and found.data.source == "data/train.jsonl"
            assert found.data.prompt_column == (None if task == "lm" or data else "prompt")
            assert found.data.messages_column == ("messages" if data else None)


def test_an_adapter(recipe_of, tmp_path, model_folders):
    recipe = recipe_of("classification")
    export(recipe, "peft", tmp_path)
    for path in (tmp_path, tmp_path / "adapter_config.json"):
        found, left = study(path, data="rows.csv")
        assert (
            found.model == model_folders["bert"] and found.space.rank == [2, 4, 8] and found.method.lora_alpha == 16
        )
        assert found.task == "classification" and found.search.warm_start == [] and left == []


def test_the_search_begins_at_the_set_ups_rate(recipe_of, tmp_path):
    from autolr.model.meta_model import outline

    recipe = recipe_of()
    _, paths = export(recipe, "axolotl", tmp_path)
    found, _ = study(paths[0])
    space = SearchSpace.of(found, outline(found.model, "sft"), 100)
    first = carried(found.search.warm_start[0], space)
    assert first.lr_v == pytest.approx(8e-3, rel=1e-3) and first.ratio == pytest.approx(8) and first.rank == 4
    assert priors(found.search.warm_start, space)["lr_v"].centre == pytest.approx(8e-3, rel=1e-3)


def test_what_cannot_be_taken_over_is_listed(write):
    path = write(
        "axolotl.yml",
        {
            "base_model": "nobody/nothing",
            "adapter": "lora",
            "lora_r": 16,
            "lora_alpha": 32,
            "lora_dropout": 0.05,
            "lora_target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
            "datasets": [{"path": "tatsu-lab/alpaca", "type": "alpaca"}, {"path": "other"}],
            "sequence_len": 2048,
            "sample_packing": True,
            "micro_batch_size": 2,
            "gradient_accumulation_steps": 4,
            "num_epochs": 2,
            "learning_rate": "2e-4",
            "lr_scheduler": "cosine",
            "warmup_steps": 10,
            "load_in_8bit": True,
            "wandb_project": "mine",
            "neftune_noise_alpha": 5,
        },
    )
    found, left = study(path)
    assert (found.model, found.data.source, found.data.max_length) == ("nobody/nothing", "tatsu-lab/alpaca", 2048)
    assert found.training.batch_size == 8 and found.training.horizon.epochs == 2
    assert found.training.precision == "int8" and found.method.lora_alpha == 32 and found.space.rank == [8, 16, 32]
    assert found.space.targets == ["qkv"]
    assert (found.space.lr_v.low, found.space.lr_v.high) == pytest.approx((2e-5, 2e-3))  # the model is out of reach
    starts = (
        "dropout 0.05",
        "targets q_proj",
        "schedule cosine",
        "warmup of 10 steps",
        "lr 0.0002",
        "sample_packing",
    )
    for start in (*starts, "datasets: 1 more", "datasets[0].type: alpaca", "neftune_noise_alpha: 5"):
        assert [line for line in left if line.startswith(start)], (start, left)
    assert "datasets[1].path: other" in left
    assert [line for line in left if "wandb" in line] == ["how the run is watched, kept and sped up: wandb_project"]


def test_saved_training_arguments(tmp_path, write):
    from transformers import TrainingArguments

    arguments = TrainingArguments(
        output_dir=str(tmp_path), learning_rate=3e-4, per_device_train_batch_size=4, num_train_epochs=5, use_cpu=True
    )
    path = write("training_args.json", json.loads(arguments.to_json_string()))
    found, left = study(path, model="a/model", data="rows.jsonl")
    assert found.training.batch_size == 4 and found.training.horizon.epochs == 5 and found.task == "sft"
    assert (found.space.lr_v.low, found.space.lr_v.high) == pytest.approx((3e-5, 3e-3))
    assert [line for line in left if line.startswith("adapter: none is named here")]


def test_all_linear_and_one_target(write):
    usual = {"peft_type": "LORA", "base_model_name_or_path": "a/model", "r": 1, "lora_alpha": 2}
    everything = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    for number, (names, targets) in enumerate(
        (
            ("all-linear", "all-linear"),
            (everything, "all-linear"),
            (["v_proj"], "v"),
            (["query", "value"], "qv"),
            (["model.layers.0.self_attn.v_proj", "model.layers.0.self_attn.o_proj"], "vo"),
        )
    ):
        found, left = study(write(f"{number}.json", {**usual, "target_modules": names}), data="rows.csv")
        assert found.space.targets == [targets] and left == [] and found.space.rank == [1, 2]
    found, left = study(write("odd.json", {**usual, "target_modules": ["lm_head", "v_proj"]}), data="rows.csv")
    assert found.space.targets == ["v"] and "lm_head: of no known role" in left[0]


def test_what_is_no_set_up_is_refused(tmp_path, write):
    for name, content, said in (
        ("other.yaml", {"colour": "red"}, "is no adapter_config.json"),
        ("factory.yaml", {"finetuning_type": "lora", "model_name_or_path": "x"}, "LLaMA-Factory's"),
        ("bad.yaml", {"base_model": "x", "micro_batch_size": "many"}, "is no Axolotl file that can be read"),
    ):
        with pytest.raises(DocumentError, match=said):
            read(write(name, content))
    (tmp_path / "training_args.bin").write_bytes(b"\x80")
    with pytest.raises(DocumentError, match="is a pickle, which is never opened"):
        read(tmp_path / "training_args.bin")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(DocumentError, match="is not JSON"):
        read(tmp_path / "broken.json")
    with pytest.raises(DocumentError, match="no such file"):
        read(tmp_path / "none")


BASES = {
    "axolotl.yml": {
        "base_model": "a/model",
        "adapter": "lora",
        "datasets": [{"path": "rows.jsonl", "type": "completion"}],
    },
    "trl.yml": {"model_name_or_path": "a/model", "use_peft": True, "datasets": [{"path": "rows.jsonl"}]},
    "adapter.json": {"peft_type": "LORA", "base_model_name_or_path": "a/model", "r": 2},
}
# Keys of which no reader knows anything, with values of every kind; and places to put them.
STRANGE = {
    "odd_flag": False,
    "odd_number": 0,
    "odd_text": "x",
    "odd_list": [1, 2],
    "odd_part": {"inner": {"deep": 3}},
}


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("key", STRANGE)
@pytest.mark.parametrize("nested", [False, True])
def test_every_key_that_is_not_taken_over_is_listed(write, name, key, nested):
    content = json.loads(json.dumps(BASES[name]))
    if nested and "datasets" not in content:
        pytest.skip("an adapter has no data")
    (content["datasets"][0] if nested else content)[key] = STRANGE[key]
    _, left = study(write(name, content), data="rows.csv")
    assert [line for line in left if key in line and line.startswith("datasets[0]." if nested else key)], left


@pytest.mark.parametrize("tool", ["trl", "axolotl"])
def test_a_value_that_is_changed_is_in_the_study_or_listed(recipe_of, write, tmp_path, tool):
    """Whatever key of an exported file is changed, what is read changes too: the study, or what is listed."""
    _, paths = export(recipe_of(), tool, tmp_path / "out")
    usual = yaml.safe_load(paths[0].read_text())
    before = read(write("usual.yml", usual))
    same = {"use_peft", "lora_task_type"}  # they say that there is an adapter, which is read from the rest as well
    same |= {"learning_rate"} if "lr_groups" in usual else set()  # the groups' rates are those of all roles
    for number, (key, value) in enumerate(usual.items()):
        if key in same or isinstance(value, (list, dict)):
            continue
        other = (
            not value if isinstance(value, bool) else value + 1 if isinstance(value, (int, float)) else f"{value}x"
        )
        if key in ("warmup_steps", "max_steps"):
            other = value + 40
        after = read(write(f"{number}.yml", {**usual, key: other}))
        is_named = any(key in line for line in after.left)  # settings of how a run is watched: the name is enough
        assert (after.study, after.left) != (before.study, before.left) or is_named, key
