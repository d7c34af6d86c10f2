"""The examples run, are short, and the public names are documented."""

from __future__ import annotations

import inspect
import runpy
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "examples"


def example(name: str):
    return runpy.run_path(str(FOLDER / name))["main"]


def test_search_then_train(model_folders, reviews, tmp_path, capsys):
    example("search_your_data.py")(model_folders["bert"], reviews, str(tmp_path / "run"), trials=5)
    assert (tmp_path / "run" / "report.html").is_file()
    example("train_a_recipe.py")(str(tmp_path / "run" / "recipe.yaml"), str(tmp_path / "full"))
    assert "PeftModelForSequenceClassification loaded" in capsys.readouterr().out


def test_your_own_loop():
    losses = example("your_own_loop.py")(steps=30)
    assert losses[-1] < losses[0]


def test_your_trainer(tmp_path):
    logs = example("your_trainer.py")(str(tmp_path), steps=2)
    assert [entry["lr_q"] for entry in logs] == pytest.approx([1e-4, 5e-5])
    assert [entry["lr_v"] for entry in logs] == pytest.approx([8e-4, 4e-4])


def test_tune_your_function(tmp_path):
    verdict = example("tune_your_function.py")(str(tmp_path / "run"), trials=4)
    assert "the default" in verdict and (tmp_path / "run" / "recipe.yaml").is_file()


@pytest.mark.parametrize("path", FOLDER.glob("*.py"), ids=lambda path: path.name)
def test_examples_are_short(path):
    assert len(path.read_text().splitlines()) < 55


def test_public_names_are_documented_functions_and_classes():
    import autolr.finetune.run
    import autolr.tuner.run

    for name in autolr.__all__:
        value = getattr(autolr, name)
        assert inspect.isfunction(value) or inspect.isclass(value), name
        assert inspect.getdoc(value), name
