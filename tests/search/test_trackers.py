"""Trials and full runs arrive at local TensorBoard and MLflow stores."""

from __future__ import annotations

import pytest

from autolr.errors import AutoLRError
from autolr.pack.resources import usage
from autolr.recipe import Recipe
from autolr.search.folder import RunFolder
from autolr.search.run import search
from autolr.search.trackers import tracker
from autolr.train.run import train


def scalars(path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(path))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_has_every_trial_and_the_full_run(small_study, tmp_path):
    folder = RunFolder(tmp_path / "run")
    result = search(small_study, folder.path, device="cpu", watcher=tracker("tensorboard", folder, "small"))
    for trial in result.trials:
        found = scalars(folder.path / "tensorboard" / f"search-{trial.rule or f'trial-{trial.number}'}-seed0")
        assert [value for _, value in found["train/loss"]] == pytest.approx(trial.curve, rel=1e-3)
        assert found["select/loss"][-1] == (max(trial.rungs), pytest.approx(trial.score, rel=1e-5))
    assert len(list((folder.path / "tensorboard").iterdir())) == len(result.trials) + len(result.repeats)
    recipe = Recipe.load(folder.path)
    entries: list[dict] = []
    full = train(recipe, tmp_path / "full", device="cpu", report_to=["tensorboard"], on_log=entries.append)
    found = scalars(full.folder / "tensorboard")
    wanted = [(e["step"], pytest.approx(e["eval_loss"], rel=1e-5)) for e in entries if "eval_loss" in e]
    assert found["eval/loss"] == wanted
    taken = usage(full.folder / "resources.parquet")["full run"]
    assert taken.tokens > 0 and taken.peak_bytes > 0
    silent = train(recipe, tmp_path / "silent", device="cpu")
    assert not (silent.folder / "tensorboard").exists()  # off unless asked for


def test_mlflow_has_every_trial(small_study, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = RunFolder(tmp_path / "run")
    result = search(small_study, folder.path, device="cpu", watcher=tracker("mlflow", folder, "small"))
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{folder.path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("small").experiment_id
    found = client.search_runs([experiment], max_results=500)
    assert len(found) == len(result.trials) + len(result.repeats)
    trial = result.trials[0]
    one = next(run for run in found if run.data.params["label"] == "rule" and run.data.tags["phase"] == "search")
    assert float(one.data.params["lr_v"]) == trial.candidate.lr_v
    assert one.data.metrics["select_loss"] == pytest.approx(trial.score)
    curve = client.get_metric_history(one.info.run_id, "train_loss")
    assert [m.value for m in sorted(curve, key=lambda m: m.step)] == pytest.approx(trial.curve, rel=1e-3)


def test_what_cannot_be_reported_to(small_study, tmp_path, monkeypatch):
    with pytest.raises(AutoLRError, match="tensorboard or mlflow"):
        tracker("paper", RunFolder(tmp_path), "x")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(AutoLRError, match="pip install mlflow"):
        tracker("mlflow", RunFolder(tmp_path), "x")
