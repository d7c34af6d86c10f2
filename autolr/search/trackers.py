"""Trials on the way to TensorBoard, MLflow, Weights & Biases or trackio: one run for each that ends."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import os
import re
from typing import Any

from autolr.errors import AutoLRError
from autolr.search.folder import RunFolder
from autolr.search.loop import Running, Watcher

TRACKERS = ("tensorboard", "mlflow", "wandb", "trackio")


def tracker(name: str, folder: RunFolder, study: str) -> Watcher:
    """Return a watcher that reports every trial and repeat when it ends.

    Args:
        name: tensorboard, which writes to `tensorboard/` of the run folder; mlflow, which writes to the server or
            file in MLFLOW_TRACKING_URI, else to `mlflow.db` of the run folder; wandb, to the project of the study's
            name, or to `wandb/` of the run folder with WANDB_MODE=offline; trackio, to a project of that name.
        folder: of the run.
        study: its name.

    Raises:
        AutoLRError: there is no such tracker, its package is not installed, or nobody is logged in to it.
    """
    if name not in TRACKERS:
        raise AutoLRError(f"--report-to {name}: unknown tracker. Choose one of: {', '.join(TRACKERS)}")
    if importlib.util.find_spec(name) is None:
        raise AutoLRError(f"--report-to {name}: needs {name}, which is not installed: pip install {name}")
    if name == "tensorboard":
        return _TensorBoard(folder)
    return _MLflow(folder, study) if name == "mlflow" else _Runs(name, folder, study)


class _TensorBoard(Watcher):
    def __init__(self, folder: RunFolder) -> None:
        self.path = folder.path / "tensorboard"
        self.name = ""

    def phase(self, name: str, total: int, done: int) -> None:
        """Remember what the runs are called after."""
        self.name = name

    def ended(self, running: Running) -> None:
        """Write a run: the curve, the score, the candidate."""
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        label = re.sub(r"[^A-Za-z0-9.=_]+", "-", running.job.label)
        path = self.path / f"{self.name}-{label}-seed{running.job.config.seed}"
        with SummaryWriter(str(path)) as writer:
            for step, loss in enumerate(running.slot.losses, 1):
                writer.add_scalar("train/loss", loss, step)
            scores = {} if running.score is None else {"select/loss": running.score}
            for key, value in scores.items():
                writer.add_scalar(key, value, running.slot.step)
            # All of one run in one file: `add_hparams` would make a run of its own.
            for part in hparams(_facts(running), scores):  # type: ignore[no-untyped-call]
                writer.file_writer.add_summary(part)


class _MLflow(Watcher):
    def __init__(self, folder: RunFolder, study: str) -> None:
        self.folder = folder
        self.study = study
        self.name = ""
        self._client: Any = None
        self._experiment = ""

    def phase(self, name: str, total: int, done: int) -> None:
        """Open the experiment."""
        from mlflow import MlflowClient

        self.name = name
        if self._client is None:
            own = f"sqlite:///{(self.folder.path / 'mlflow.db').absolute()}"
            self._client = MlflowClient(tracking_uri=os.environ.get("MLFLOW_TRACKING_URI") or own)
            found = self._client.get_experiment_by_name(self.study)
            self._experiment = found.experiment_id if found else self._client.create_experiment(self.study)

    def ended(self, running: Running) -> None:
        """Write a run: the curve, the score, the candidate."""
        from mlflow.entities import Metric, Param

        label = running.job.label
        run = self._client.create_run(self._experiment, run_name=label, tags={"phase": self.name}).info.run_id
        metrics = [Metric("train_loss", loss, 0, step) for step, loss in enumerate(running.slot.losses, 1)]
        if running.score is not None:
            metrics.append(Metric("select_loss", running.score, 0, running.slot.step))
        params = [Param(key, str(value)) for key, value in _facts(running).items()]
        self._client.log_batch(run, params=params)
        for start in range(0, len(metrics), 1000):  # the most that MLflow takes at once
            self._client.log_batch(run, metrics=metrics[start : start + 1000])
        self._client.set_terminated(run, "FAILED" if running.outcome in ("diverged", "infeasible") else "FINISHED")


class _Runs(Watcher):
    """Weights & Biases; or trackio, which has the same calls."""

    def __init__(self, tracker: str, folder: RunFolder, study: str) -> None:
        self.module: Any = importlib.import_module(tracker)
        self.study, self.name = study, ""
        self.is_trackio = tracker == "trackio"
        self.options: dict[str, Any] = {"auto_log_gpu": False, "auto_log_cpu": False, "embed": False}
        if not self.is_trackio:
            _log_in(self.module)
            folder.path.mkdir(parents=True, exist_ok=True)
            # A run of the caller's own goes on beside them.
            self.options = {"dir": str(folder.path), "reinit": "create_new", "settings": {"silent": True}}

    def phase(self, name: str, total: int, done: int) -> None:
        """Remember what the runs are called after."""
        self.name = name

    def ended(self, running: Running) -> None:
        """Write a run: the curve, the score, the candidate."""
        name = f"{self.name} {running.job.label} seed {running.job.config.seed}"
        with contextlib.redirect_stdout(io.StringIO()):  # what trackio says of each run would tear the live view
            run = self.module.init(
                project=self.study, name=name, group=self.name, config=_facts(running), **self.options
            )
            last = {} if running.score is None else {"select/loss": running.score}
            for step, loss in enumerate(running.slot.losses, 1):
                run.log({"train/loss": loss, **(last if step == running.slot.step else {})}, step=step)
            (self.module if self.is_trackio else run).finish()


def _log_in(wandb: Any) -> None:
    """Ask for the key now, where there is somebody to ask, and not in the middle of a search."""
    if os.environ.get("WANDB_MODE", "online") != "online":
        return
    try:
        wandb.login()
    except wandb.errors.Error as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise AutoLRError(
            f"--report-to wandb: {reason}; give the key with wandb login, or set WANDB_MODE=offline"
        ) from None


def _facts(running: Running) -> dict[str, Any]:
    candidate = running.job.candidate.model_dump()
    return {**candidate, "seed": running.job.config.seed, "outcome": str(running.outcome), "label": running.job.label}
