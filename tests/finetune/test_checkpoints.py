"""Checkpoints of the full run: how the best is chosen, and what a damaged one does."""

from __future__ import annotations

import pytest
import torch

from autolr.errors import RunError
from autolr.finetune import evaluation, run, trainer
from autolr.finetune.run import train
from autolr.model import adapters
from tests.finetune.test_run import recipe  # noqa: F401 (a fixture)


def test_the_checkpoint_is_chosen_by_the_loss_that_is_reported(recipe, tmp_path, monkeypatch):  # noqa: F811
    losses = []
    own = evaluation.evaluate

    def note(model, data, task, batch_size=32):
        assert len(data) % batch_size  # a short last batch: where the Trainer's own mean goes wrong
        losses.append(own(model, data, task, batch_size)["loss"])
        return own(model, data, task, batch_size)

    for module in (run, trainer):
        monkeypatch.setattr(module, "evaluate", note)
    result = train(recipe, tmp_path / "run", device="cpu")
    evaluations = [entry for entry in result.metrics["log"] if "eval_loss" in entry]
    assert [entry["eval_loss"] for entry in evaluations] == losses[: len(evaluations)]
    assert evaluations[-1]["step"] == recipe.steps
    assert result.validation["loss"] == min(entry["eval_loss"] for entry in evaluations)
    assert result.test == result.metrics["test"]


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "optimizer.pt"])
def test_a_checkpoint_cut_short_is_passed_over_and_the_end_is_the_same(recipe, tmp_path, name):  # noqa: F811
    def stop(entry):
        if entry["step"] >= 14:
            raise KeyboardInterrupt

    whole = train(recipe, tmp_path / "whole", device="cpu")
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "cut", device="cpu", on_log=stop)
    found = (tmp_path / "cut" / "checkpoints").glob("checkpoint-*")
    damaged = max(found, key=lambda path: int(path.name.rpartition("-")[2])) / name
    damaged.write_bytes(damaged.read_bytes()[:-200])
    cut = train(recipe, tmp_path / "cut", device="cpu")
    tensors = [(result.adapter / "adapter_model.safetensors").read_bytes() for result in (whole, cut)]
    assert tensors[0] == tensors[1]


def test_a_run_that_diverged_says_so(recipe, tmp_path, monkeypatch):  # noqa: F811
    own = adapters.peft_model

    def broken(*arguments):
        model = own(*arguments)
        with torch.no_grad():
            next(iter(adapters.values_of(model).values())).fill_(float("nan"))
        return model

    monkeypatch.setattr(adapters, "peft_model", broken)
    with pytest.raises(RunError, match="diverged"):
        train(recipe, tmp_path / "run", device="cpu")
    assert not (tmp_path / "run" / "adapter").exists()
