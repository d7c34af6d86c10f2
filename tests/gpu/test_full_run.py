"""The full run: on the GPU it is given, in a process whose search has filled the card, and after a pause."""

from __future__ import annotations

import pytest
import torch

import autolr
from autolr.errors import RunError
from autolr.model import adapters


@pytest.fixture(scope="module")
def recipe(small_recipe):
    training = small_recipe.training.model_copy(update={"precision": "fp32"})
    return small_recipe.model_copy(update={"training": training, "steps": 12})


@pytest.fixture(scope="module")
def on_cpu(recipe, tmp_path_factory):
    return autolr.train(recipe, tmp_path_factory.mktemp("cpu") / "full", device="cpu")


def weights(result) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(result.adapter / "adapter_model.safetensors")


def same(found, expected) -> None:
    one, other = weights(found), weights(expected)
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-3, atol=1e-4)
    assert found.test["loss"] == pytest.approx(expected.test["loss"], abs=1e-4)


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_machine_with_two_gpus_trains_on_the_one_it_is_told(make_gpu, recipe, on_cpu, tmp_path, device):
    gpu = make_gpu(devices=2)
    same(autolr.train(recipe, tmp_path / "full", device=device), on_cpu)
    assert set(gpu.by_device) == {torch.device(device).index or 0}


def test_a_full_run_that_was_stopped_goes_on(gpu, recipe, on_cpu, tmp_path):
    def stop(entry):
        if entry.get("step", 0) >= 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        autolr.train(recipe, tmp_path / "full", device="cuda", on_log=stop)
    same(autolr.train(recipe, tmp_path / "full", device="cuda"), on_cpu)


def test_a_full_run_in_bf16_is_near_that_in_float32(gpu, recipe, on_cpu, tmp_path):
    half = recipe.model_copy(update={"training": recipe.training.model_copy(update={"precision": "bf16"})})
    found = autolr.train(half, tmp_path / "full", device="cuda")
    assert found.test["loss"] == pytest.approx(on_cpu.test["loss"], abs=0.02)


def test_a_card_that_a_search_has_filled_has_room_for_its_full_run(gpu, recipe, on_cpu, tmp_path):
    gpu.reset_peak()
    autolr.train(recipe, tmp_path / "first", device="cuda")
    needed = gpu.peak()
    held = torch.empty(4 * needed, dtype=torch.uint8, device="cuda")
    del held  # it is torch's still, as slots are after a search
    gpu.limit = gpu.reserved()
    assert torch.cuda.mem_get_info()[0] == 0
    same(autolr.train(recipe, tmp_path / "full", device="cuda"), on_cpu)


def test_a_full_run_that_does_not_fit_trains_in_parts_to_the_same_end(gpu, recipe, tmp_path):
    large = recipe.model_copy(update={"training": recipe.training.model_copy(update={"batch_size": 32}), "steps": 4})
    gpu.reset_peak()
    whole = autolr.train(large, tmp_path / "whole", device="cuda")
    gpu.limit = int(0.7 * gpu.peak())
    torch.cuda.empty_cache()
    shortages = gpu.shortages
    same(autolr.train(large, tmp_path / "parts", device="cuda"), whole)
    assert gpu.shortages > shortages


def test_a_full_run_scores_as_many_examples_at_once_as_fit(gpu, recipe, on_cpu, tmp_path):
    gpu.reset_peak()
    autolr.train(recipe, tmp_path / "first", device="cuda")
    gpu.limit = int(0.6 * gpu.peak())
    torch.cuda.empty_cache()
    same(autolr.train(recipe, tmp_path / "full", device="cuda"), on_cpu)


def test_a_full_run_of_which_nothing_fits_says_so(gpu, recipe, tmp_path, monkeypatch):
    own = adapters.peft_model

    def then_no_room(*args, **kwargs):
        made = own(*args, **kwargs)
        gpu.limit = gpu.used() + 2**12
        return made

    monkeypatch.setattr(adapters, "peft_model", then_no_room)
    with pytest.raises(RunError, match="memory"):
        autolr.train(recipe, tmp_path / "full", device="cuda")
