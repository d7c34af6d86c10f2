"""An adapter goes to the hub, with its card; the token goes nowhere; and whoever may not, is told so beforehand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from autolr.errors import AutoLRError, RunError
from autolr.finetune import hub as ours
from autolr.schema.recipe import Recipe
from tests.finetune.fake_hub import TOKEN, Hub, hub


@pytest.fixture
def own_hub() -> Hub:
    with hub() as held:
        yield held


@pytest.fixture
def recipe_file(small_recipe, tmp_path) -> Path:
    small_recipe.save(tmp_path / "run" / "recipe.yaml")
    return tmp_path / "run"


def train(recipe: Path, address: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Train a recipe as a user would who has a hub at this address."""
    told = {
        **os.environ,
        "HF_ENDPOINT": address,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(recipe.parent / "hf"),
        "HF_TOKEN": TOKEN,
        **environment,
    }
    command = [sys.executable, "-m", "autolr", "train", str(recipe), "--device", "cpu", "--push-to-hub", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=told)


def test_an_adapter_goes_to_the_hub_and_the_token_nowhere(own_hub, recipe_file):
    done = train(recipe_file, own_hub.address, "--hub-model-id", "my-team/reviews")
    assert done.returncode == 0, done.stderr
    assert f"hub      {own_hub.address}/my-team/reviews" in done.stdout
    assert own_hub.repositories == {"my-team/reviews": True}  # private
    adapter = recipe_file / "train" / "adapter"
    kept = {path.name: path.read_bytes() for path in adapter.iterdir()}
    there = {name.removeprefix("my-team/reviews/"): content for name, content in own_hub.files.items()}
    configs = [json.loads(files.pop("adapter_config.json")) for files in (kept, there)]
    assert there == kept
    assert configs[0].pop("base_model_name_or_path") == Recipe.load(recipe_file).model
    assert configs[1].pop("base_model_name_or_path") == "bert"  # nothing of this machine's folders
    assert configs[0] == configs[1]
    assert {"README.md", "adapter_model.safetensors"} <= set(kept)
    assert "POST /api/validate-yaml" in own_hub.asked  # the card's front matter

    again = train(recipe_file, own_hub.address, "--hub-public")  # nothing is trained again
    assert again.returncode == 0 and own_hub.repositories["me/small"] is False
    assert TOKEN not in done.stdout + done.stderr + again.stdout + again.stderr
    for path in recipe_file.parent.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path


@pytest.mark.parametrize(
    ("token", "offline", "refuses", "said"),
    [
        ("", "0", None, "log in with hf auth login, or set HF_TOKEN"),
        (TOKEN, "1", None, "HF_HUB_OFFLINE=1"),
        ("hf_anotherspersonstoken00", "0", None, "log in anew"),
        (TOKEN, "0", 403, "may not write there"),
        (TOKEN, "0", 500, "500 Internal Server Error"),
    ],
)
def test_who_may_not_is_told_before_anything_is_trained(
    own_hub, monkeypatch, tmp_path, token, offline, refuses, said
):
    from huggingface_hub import constants, hf_api

    own_hub.refuses = refuses
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline == "1")
    monkeypatch.setattr(hf_api.HfApi, "__init__", _at(own_hub.address, hf_api.HfApi.__init__))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(AutoLRError) as refused:
        ours.claim("me/reviews")
    message = str(refused.value)
    assert message.startswith("--push-to-hub") and said in message and "\n" not in message
    assert not token or token not in message


def _at(address: str, original):
    def init(self, *arguments, **options):
        original(self, *arguments, **{**options, "endpoint": address})

    return init


def test_a_hub_that_cannot_be_reached_ends_the_command_before_the_training(recipe_file):
    done = train(recipe_file, "http://127.0.0.1:9")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "--push-to-hub small: " in done.stderr and "give the same command again" in done.stderr
    assert not (recipe_file / "train").exists()


def test_what_is_no_adapter_is_not_uploaded(tmp_path, own_hub):
    with pytest.raises(RunError, match="holds no trained adapter"):
        ours.push_to_hub(tmp_path, "me/reviews")
    assert own_hub.asked == []


def test_options_of_the_hub_without_it_are_refused(recipe_file, capsys):
    from autolr import cli

    for option in (["--hub-model-id", "me/x"], ["--hub-public"]):
        with pytest.raises(SystemExit) as stop:
            cli.main(["train", str(recipe_file), *option])
        assert stop.value.code == 2 and "works only with --push-to-hub" in capsys.readouterr().err
    assert Recipe.load(recipe_file).name == "small"
