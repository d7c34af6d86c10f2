"""`autolr validate`: what it shows, and what it refuses with one message."""

from __future__ import annotations

from pathlib import Path

import pytest

from autolr import cli
from autolr.conformance import kit
from tests import tiny
from tests.conftest import tokenizer_with


def test_a_model_is_described_and_checked(model_folders, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["validate", "--model", model_folders["gpt2"], "--device", "cpu"])
    assert not end.value.code
    said = capsys.readouterr().out
    assert "2 q 32x32 (some rows of c_attn)" in said
    assert "coverage    q and v in 2 of 2 layers" in said
    # Two layers, q and v, rank 4: 2 x 2 x 4 x (32 + 32), as many parameters as on separate matrices.
    assert "rank 4      1,024 parameters" in said
    assert said.count("passed      ") == 8 and said.rstrip().endswith("all checks passed")


def test_a_model_that_is_refused_ends_with_code_2(tmp_path, capsys):
    tiny.model("cohere").save_pretrained(tmp_path)
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        cli.main(["validate", "--model", str(tmp_path)])
    assert end.value.code == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: model") and captured.err.count("\n") == 1
    assert "no sequence-classification class" in captured.err


def test_a_check_that_fails_is_named(model_folders, capsys, monkeypatch):
    def wrong(bench):
        raise ValueError("no")

    monkeypatch.setattr(kit, "check_roles", wrong)
    with pytest.raises(SystemExit) as end:
        cli.main(["validate", "--model", model_folders["bert"], "--device", "cpu"])
    captured = capsys.readouterr()
    assert end.value.code == 2
    assert "FAILED      roles: ValueError: no" in captured.out
    assert "1 of the checks failed (roles)" in captured.err


@pytest.fixture
def config_alone(tmp_path) -> str:
    """A folder with nothing but a config.json: no weights, no tokenizer."""
    tiny.model("llama").config.save_pretrained(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]
    return str(tmp_path)


def facts(said: str) -> list[str]:
    return [line for line in said.splitlines() if line.startswith(("role", "coverage", "rank", "base", "full"))]


@pytest.mark.parametrize("task", ["classification", "sft"])
def test_a_configuration_alone_is_described(config_alone, model_folders, capsys, task):
    """It says the same as the model itself; what needs weights says so."""
    for model in (config_alone, model_folders["llama" if task == "classification" else "lm"]):
        with pytest.raises(SystemExit) as end:
            cli.main(["validate", "--model", model, "--task", task, "--device", "cpu"])
        assert not end.value.code
    alone, _, whole = capsys.readouterr().out.partition("checks      not made: they need the weights")
    assert facts(alone) == facts(whole) and "coverage    q and v in 2 of 2 layers" in alone


def test_theory_of_a_configuration_alone(config_alone, model_folders, capsys):
    said = []
    for model in (config_alone, model_folders["llama"]):
        with pytest.raises(SystemExit):
            cli.main(["theory", model, "--targets", "qv,qkv", "--ranks", "2,4", "--kinds", "lora,full"])
        said.append([line for line in capsys.readouterr().out.splitlines() if not line.startswith("model")])
    assert said[0] == said[1] and len(said[0]) == 7
    with pytest.raises(SystemExit):
        cli.main(
            ["theory", model_folders["llama"], "--targets", "qv", "--ranks", "2", "--measure", "--device", "cpu"]
        )
    costs = capsys.readouterr().out.splitlines()[1]
    assert costs.startswith(said[0][0].split(";")[0])  # with the weights the same parameters
    with pytest.raises(SystemExit) as end:
        cli.main(["theory", config_alone, "--measure"])
    assert end.value.code == 2
    assert "From config.json alone work autolr theory and autolr validate --model" in capsys.readouterr().err


def test_a_tokenizer_beside_a_configuration_is_checked(config_alone, capsys):
    tokenizer = tokenizer_with(eos_token="[SEP]")
    tokenizer.add_tokens([f"new{number}" for number in range(40)])
    tokenizer.save_pretrained(config_alone)
    with pytest.raises(SystemExit) as end:
        cli.main(["validate", "--model", config_alone])
    assert end.value.code == 2 and "tokens without an embedding" in capsys.readouterr().err


def test_a_tokenizer_that_cannot_be_read_is_no_missing_one(config_alone, capsys):
    (Path(config_alone) / "tokenizer.json").write_text("{")
    with pytest.raises(SystemExit) as end:
        cli.main(["validate", "--model", config_alone])
    assert end.value.code == 2 and "cannot be loaded" in capsys.readouterr().err


def test_a_family_that_needs_numbers_says_that_its_parts_are_not_known(tmp_path, capsys):
    tiny.config_of("gpt2", tiny.SHAPES["gpt2"]).save_pretrained(tmp_path)
    with pytest.raises(SystemExit) as end:
        cli.main(["validate", "--model", str(tmp_path)])
    assert not end.value.code
    assert "note        which parts the task calls is not known without weights" in capsys.readouterr().out
