"""Trials and full runs arrive at local stores of TensorBoard, MLflow, Weights & Biases and trackio."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys

import pytest

from autolr.errors import AutoLRError
from autolr.finetune.run import train
from autolr.progress.resources import usage
from autolr.progress.trackers import tracker
from autolr.rundir.folder import RunFolder
from autolr.rundir.result import SearchResult
from autolr.schema.recipe import Recipe
from autolr.tuner.run import search


def scalars(path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(path))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def trainings(result: SearchResult) -> int:
    """Count what a search has trained."""
    return sum(map(len, (result.trials, result.trainings)))


def test_tensorboard_has_every_trial_and_the_full_run(small_study, tmp_path):
    folder = RunFolder(tmp_path / "run")
    result = search(small_study, folder.path, device="cpu", callback=tracker("tensorboard", folder, "small"))
    for trial in result.trials:
        found = scalars(folder.path / "tensorboard" / f"trials-{trial.baseline or f'trial-{trial.number}'}-seed0")
        assert [value for _, value in found["train/loss"]] == pytest.approx(trial.curve, rel=1e-3)
        assert found["validation/loss"][-1] == (max(trial.rungs), pytest.approx(trial.score, rel=1e-5))
    assert len(list((folder.path / "tensorboard").iterdir())) == trainings(result)
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
    result = search(small_study, folder.path, device="cpu", callback=tracker("mlflow", folder, "small"))
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{folder.path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("small").experiment_id
    found = client.search_runs([experiment], max_results=500)
    assert len(found) == trainings(result)
    trial = result.trials[0]
    one = next(run for run in found if run.data.params["label"] == "default" and run.data.tags["phase"] == "trials")
    assert float(one.data.params["lr_v"]) == trial.candidate.lr_v
    assert one.data.metrics["validation_loss"] == pytest.approx(trial.score)
    curve = client.get_metric_history(one.info.run_id, "train_loss")
    assert [m.value for m in sorted(curve, key=lambda m: m.step)] == pytest.approx(trial.curve, rel=1e-3)


def test_trackio_has_every_trial(small_study, tmp_path):
    pytest.importorskip("trackio")
    small_study.save(tmp_path / "study.yaml")
    run, kept = tmp_path / "run", tmp_path / "trackio"
    words = ["search", str(tmp_path / "study.yaml"), "--out", str(run), "--device", "cpu", "--report-to", "trackio"]
    done = subprocess.run(
        [sys.executable, "-m", "autolr", *words], env={**os.environ, "TRACKIO_DIR": str(kept)}, text=True,
        capture_output=True, check=True,
    )  # fmt: skip
    assert "Trackio" not in done.stdout  # what it says of each run
    result = SearchResult.load(run)
    with sqlite3.connect(kept / "small.db") as store:
        facts = [json.loads(config) for (config,) in store.execute("select config from configs order by id")]
        rows = store.execute("select run_name, metrics from metrics order by run_id, step").fetchall()
    assert len(facts) == trainings(result)
    assert {fact["lr_v"] for fact in facts} >= {trial.candidate.lr_v for trial in result.trials}
    rule = [json.loads(metrics) for name, metrics in rows if name == "trials default seed 0"]
    assert [row["train/loss"] for row in rule] == pytest.approx(result.trials[0].curve, rel=1e-3)
    assert rule[-1]["validation/loss"] == pytest.approx(result.trials[0].score)


def test_wandb_has_every_trial(small_study, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    folder = RunFolder(tmp_path / "run")
    monkeypatch.setenv("WANDB_MODE", "offline")
    own = wandb.init(project="mine", dir=str(tmp_path), settings={"silent": True})
    result = search(small_study, folder.path, device="cpu", callback=tracker("wandb", folder, "small"))
    assert wandb.run is own  # a run of the caller's own goes on
    own.finish()
    found = [file.read_bytes() for file in folder.path.glob("wandb/offline-run-*/run-*.wandb")]
    assert len(found) == trainings(result)
    assert sum(b"trials default seed 0" in content for content in found) == 1
    monkeypatch.setenv("WANDB_MODE", "online")

    def refused(*args, **fields):
        raise wandb.errors.UsageError("No API key configured.")

    monkeypatch.setattr(wandb, "login", refused)
    with pytest.raises(AutoLRError, match="--report-to wandb: No API key configured; .*WANDB_MODE=offline"):
        tracker("wandb", folder, "small")


def test_what_cannot_be_reported_to(small_study, tmp_path, monkeypatch):
    with pytest.raises(AutoLRError, match="tensorboard, mlflow, wandb, trackio"):
        tracker("paper", RunFolder(tmp_path), "x")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(AutoLRError, match="pip install mlflow"):
        tracker("mlflow", RunFolder(tmp_path), "x")
