"""`autolr heads` and `autolr.insight.heads`, from models and adapters to pages."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import autolr
from autolr.cli import app
from autolr.errors import AutoLRError, DataError, RunError
from autolr.finetune.run import train
from autolr.insight.activations import Pattern
from autolr.schema.candidate import Candidate
from autolr.schema.data import Data
from autolr.schema.method import Method
from autolr.schema.recipe import Rates, Recipe
from autolr.schema.training import Training

runner = CliRunner()


@pytest.fixture(scope="module")
def runs(model_folders, reviews, tmp_path_factory):
    """Three trained adapters on one model, at three rates."""
    folder = tmp_path_factory.mktemp("trained")
    for name, lr_v in (("one", 1e-2), ("two", 2e-2), ("three", 5e-3)):
        candidate = Candidate(lr_v=lr_v, ratio=2.0, rank=2)
        recipe = Recipe(
            name=name,
            model=model_folders["bert"],
            data=Data(source=reviews, validation=0.2, test=0.2),
            classes=["bad", "good"],
            method=Method(),
            candidate=candidate,
            rates=Rates(q=candidate.lr_q, v=lr_v, head=1e-2),
            training=Training(batch_size=8),
            steps=12,
        )
        train(recipe, folder / name, device="cpu")
    return folder


def test_an_adapter_is_looked_at_before_and_after(runs, tmp_path):
    found = autolr.heads(runs / "one", samples=40, device="cpu")
    look = found.looks[0]
    assert look.label == "one" and look.before.of().shape == (2, 4) and len(look.before.losses) == 40
    assert (look.after.losses != look.before.losses).all()
    summary = found.summary()["looks"][0]
    assert summary["gini"]["before"]["low"] <= summary["gini"]["before"]["mean"] <= summary["gini"]["before"]["high"]
    assert summary["correlation"]["mean"] < 1 and summary["mse"]["mean"] > 0
    assert len(summary["most_used"]) == 5
    folder = found.save(tmp_path / "heads")
    again = Pattern.load(folder / "0-after.safetensors")
    np.testing.assert_array_equal(again.of("signed"), look.after.of("signed"))
    assert "Heads" in found._repr_html_()


def test_a_model_alone_needs_data(model_folders, reviews):
    with pytest.raises(DataError, match="--data"):
        autolr.heads(model_folders["bert"], device="cpu")
    found = autolr.heads(model_folders["llama"], reviews, samples=16, device="cpu", kind="signed")
    assert found.looks[0].after is None and found.looks[0].change is None
    with pytest.raises(AutoLRError, match="at least 2 samples"):
        autolr.heads(model_folders["llama"], reviews, samples=1)


def test_what_is_not_trained_yet_is_refused(runs, tmp_path):
    (tmp_path / "recipe.yaml").write_text((runs / "one" / "recipe.yaml").read_text())
    with pytest.raises(RunError, match="no trained adapter yet"):
        autolr.heads(tmp_path)


def test_the_command_combines_and_draws(runs, in_folder):
    names = [str(runs / name) for name in ("one", "two", "three")]
    done = runner.invoke(app, ["heads", *names, "--combine", "100", "--samples", "30", "--device", "cpu"])
    assert done.exit_code == 0, done.output
    assert "R²" in done.output and "heads permuted" in done.output
    found = json.loads((in_folder / "runs" / "heads" / "heads.json").read_text())
    assert sum(found["combination"]["advice"].values()) == 100
    assert len(found["distances"]) == 3
    page = (in_folder / "runs" / "heads" / "heads.html").read_text()
    for key in ("fit", "weights", "tasks", "before-0", "after-1", "change-2", "entropy-0"):
        assert f'id="{key}"' in page
    assert str(runs) not in page


def test_models_alone_cannot_be_combined(runs, reviews, model_folders):
    with pytest.raises(AutoLRError, match="is not trained"):
        autolr.heads([runs / "one", model_folders["bert"]], reviews, combine_for=10, samples=8, device="cpu")
    with pytest.raises(AutoLRError, match="basic tasks"):
        autolr.heads(runs / "one", combine_for=10)


def test_the_command_chooses_data(model_folders, reviews, in_folder):
    options = ["--data", reviews, "--pool", reviews, "--take", "20", "--samples", "16", "--out", "some.csv"]
    done = runner.invoke(app, ["heads", model_folders["bert"], *options, "--device", "cpu"])
    assert done.exit_code == 0, done.output
    with (in_folder / "some.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 20 and set(rows[0]) == {"text", "label"} and {row["label"] for row in rows} <= {"good", "bad"}


def test_chosen_rows_are_those_of_the_file_whatever_is_left_out_of_it(model_folders, reviews, in_folder):
    lines = Path(reviews).read_text().splitlines()
    (in_folder / "pool.csv").write_text("\n".join([lines[0], ",good", *lines[1:61]]) + "\n")
    options = ["--data", reviews, "--pool", "pool.csv", "--take", "60", "--samples", "16", "--out", "some.csv"]
    done = runner.invoke(app, ["heads", model_folders["bert"], *options, "--device", "cpu"])
    assert done.exit_code == 0, done.output
    with (in_folder / "some.csv").open() as file:
        assert sorted(f"{row['text']},{row['label']}" for row in csv.DictReader(file)) == sorted(lines[1:61])


def test_json_is_all_that_is_printed(model_folders, reviews, in_folder):
    arguments = ["heads", model_folders["gpt2"], "--data", reviews, "--samples", "8", "--json", "--device", "cpu"]
    done = runner.invoke(app, arguments)
    assert json.loads(done.stdout)["looks"][0]["samples"] == 8
