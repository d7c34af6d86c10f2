"""Trials on the way to TensorBoard or MLflow: one run for each that ends."""

from __future__ import annotations

import importlib.util
import os
import re
from typing import Any

from autolr.errors import AutoLRError
from autolr.search.folder import RunFolder
from autolr.search.loop import Running, Watcher

TRACKERS = ("tensorboard", "mlflow")


def tracker(name: str, folder: RunFolder, study: str) -> Watcher:
    """Return a watcher that reports every trial and repeat when it ends.

    Args:
        name: tensorboard, which writes to `tensorboard/` of the run folder; or mlflow, which writes to the server or
            file in MLFLOW_TRACKING_URI, else to `mlflow.db` of the run folder.
        folder: of the run.
        study: its name.

    Raises:
        AutoLRError: there is no such tracker, or its package is not installed.
    """
    if name not in TRACKERS:
        raise AutoLRError(f"--report-to {name}: trials can be reported to {' or '.join(TRACKERS)}")
    if importlib.util.find_spec(name) is None:
        raise AutoLRError(f"--report-to {name}: needs {name}, which is not installed: pip install {name}")
    return _TensorBoard(folder) if name == "tensorboard" else _MLflow(folder, study)


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


def _facts(running: Running) -> dict[str, Any]:
    candidate = running.job.candidate.model_dump()
    return {**candidate, "seed": running.job.config.seed, "outcome": str(running.outcome), "label": running.job.label}
