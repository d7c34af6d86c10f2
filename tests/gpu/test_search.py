"""A whole search, its full run, and a comparison, on the second of two GPUs."""

from __future__ import annotations

import json

import pytest
import torch

import autolr
from autolr.rundir.result import SearchResult
from tests.tuner.test_search import Stop


@pytest.fixture(scope="module")
def study(small_study):
    """The small study on a base in float32, so that another card, or a pause, changes nothing but the last digits."""
    update = {
        "training": small_study.training.model_copy(update={"precision": "fp32"}),
        "budget": small_study.budget.model_copy(update={"trials": 6}),
        "baselines": ["default", "same_lr"],
    }
    return small_study.model_copy(update=update)


def machine_of(result: SearchResult) -> dict:
    return json.loads((result.folder / "machine.json").read_text())


def test_a_search_its_pause_its_full_run_and_a_comparison_on_the_second_gpu(make_gpu, study, tmp_path):
    expected = autolr.search(study, tmp_path / "cpu", device="cpu")
    gpu = make_gpu(devices=2)
    with pytest.raises(KeyboardInterrupt):
        autolr.search(study, tmp_path / "run", device="cuda:1", callback=Stop(19))
    found = autolr.search(study, tmp_path / "run", device="cuda:1")
    # Candidates, what became of them, and the recipe are the CPU's: it is the same search.
    assert [trial.candidate for trial in found.trials] == [trial.candidate for trial in expected.trials]
    assert [trial.outcome for trial in found.trials] == [trial.outcome for trial in expected.trials]
    assert found.recipe.candidate == expected.recipe.candidate
    losses, others = ([record.test_loss for record in result.over_seeds] for result in (found, expected))
    assert losses == pytest.approx(others, abs=1e-3)
    machine = machine_of(found)
    assert machine["device"].startswith("cuda") and machine["slots"] == 4

    assert set(gpu.asked) == {1}  # the first GPU has no context of this process

    before = sum(gpu.by_device.values())
    full = autolr.train(found.recipe, tmp_path / "full", device="cuda:1")
    host = autolr.train(expected.recipe, tmp_path / "full-cpu", device="cpu")
    assert full.test["loss"] == pytest.approx(host.test["loss"], abs=1e-3)
    assert sum(gpu.by_device.values()) > before

    compared = autolr.compare([found.recipe], vary=["ratio=1"], seeds=2, out=tmp_path / "ab", device="cuda:1")
    on_host = autolr.compare([expected.recipe], vary=["ratio=1"], seeds=2, out=tmp_path / "ab-cpu", device="cpu")
    losses, others = ([arm.test_loss for arm in result.arms] for result in (compared, on_host))
    assert losses == pytest.approx(others, abs=1e-3)
    assert set(gpu.by_device) == {1} and gpu.peak(0) == 0


def test_a_search_in_bf16_chooses_its_slots_and_says_what_it_took(gpu, small_study, tmp_path):
    update = {
        "search": small_study.search.model_copy(update={"slots": "auto"}),
        "budget": small_study.budget.model_copy(update={"trials": 4}),
        "baselines": ["default"],
    }
    found = autolr.search(small_study.model_copy(update=update), tmp_path / "run", device="cuda")
    machine = machine_of(found)
    assert machine["precision"] == "bf16" and machine["slots"] >= 1
    assert machine["peak_bytes"] == gpu.peak() <= 1.1 * machine["predicted_bytes"]
    assert machine["peak_bytes"] <= machine["reserved_bytes"] == torch.cuda.max_memory_reserved()
    assert found.recipe.evidence.verdict and not gpu.stuck


def test_a_search_of_a_language_model(gpu, small_study, model_folders, tmp_path):
    update = {
        "model": model_folders["lm"],
        "task": "lm",
        "budget": small_study.budget.model_copy(update={"trials": 4}),
    }
    study = small_study.model_copy(update={**update, "baselines": ["default"]})
    found = autolr.search(study, tmp_path / "run", device="cuda")
    machine = machine_of(found)
    assert not machine["graphs"] and machine["peak_bytes"] <= 1.1 * machine["predicted_bytes"]
    full = autolr.train(found.recipe, tmp_path / "full", device="cuda")
    assert full.test["loss"] > 0
