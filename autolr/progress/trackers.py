"""Trials reported to TensorBoard, MLflow, Weights & Biases or trackio: one run for each training that ends.

accelerate's trackers report step by step, which an ended training does not need: MLflow then gets a request for each
step (200 steps: 14 s, in one batch 0.05 s), TensorBoard two runs for each, and the caller's own runs are written to.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import os
import re
from typing import Any

from autolr.errors import AutoLRError
from autolr.progress.callbacks import Callback
from autolr.progress.jobs import Running
from autolr.rundir.folder import RunFolder


class Tracker(Callback):
    """Reports every trial and repeat when it ends.

    Args:
        name: of the tool.
        folder: of the run.
        study: its name.
    """

    def __init__(self, name: str, folder: RunFolder, study: str) -> None:
        self.write, self.folder, self.study = TRACKERS[name], folder.path, study
        self.current = ""

    def phase(self, name: str, total: int, done: int) -> None:
        """Remember what the runs are called after."""
        self.current = name

    def ended(self, running: Running) -> None:
        """Report a run: its candidate, its curve, its score."""
        job = running.job
        facts = {**job.candidate.model_dump(), "seed": job.config.seed, "outcome": str(running.outcome)}
        self.write(self, running, {**facts, "label": job.label})


def _tensorboard(to: Tracker, running: Running, facts: dict[str, Any]) -> None:
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams

    label = re.sub(r"[^A-Za-z0-9.=_]+", "-", running.job.label)
    path = to.folder / "tensorboard" / f"{to.current}-{label}-seed{running.job.config.seed}"
    scores = {} if running.score is None else {"validation/loss": running.score}
    with SummaryWriter(str(path)) as writer:
        for step, loss in enumerate(running.slot.losses, 1):
            writer.add_scalar("train/loss", loss, step)
        for key, value in scores.items():
            writer.add_scalar(key, value, running.slot.step)
        # All of one run in one file: `add_hparams` would make a run of its own.
        for part in hparams(facts, scores):  # type: ignore[no-untyped-call]
            writer.file_writer.add_summary(part)


def _mlflow(to: Tracker, running: Running, facts: dict[str, Any]) -> None:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    own = f"sqlite:///{(to.folder / 'mlflow.db').absolute()}"
    client = MlflowClient(tracking_uri=os.environ.get("MLFLOW_TRACKING_URI") or own)
    found = client.get_experiment_by_name(to.study)
    experiment = found.experiment_id if found else client.create_experiment(to.study)
    run = client.create_run(experiment, run_name=running.job.label, tags={"phase": to.current}).info.run_id
    metrics = [Metric("train_loss", loss, 0, step) for step, loss in enumerate(running.slot.losses, 1)]
    if running.score is not None:
        metrics.append(Metric("validation_loss", running.score, 0, running.slot.step))
    client.log_batch(run, params=[Param(key, str(value)) for key, value in facts.items()])
    for start in range(0, len(metrics), 1000):  # the most that MLflow takes at once
        client.log_batch(run, metrics=metrics[start : start + 1000])
    client.set_terminated(run, "FAILED" if running.outcome in ("diverged", "infeasible") else "FINISHED")


def _wandb(to: Tracker, running: Running, facts: dict[str, Any]) -> None:
    # A run of the caller's own stays open beside it.
    options = {"dir": str(to.folder), "reinit": "create_new", "settings": {"silent": True}}
    _write_run("wandb", to, running, facts, options)


def _trackio(to: Tracker, running: Running, facts: dict[str, Any]) -> None:
    with contextlib.redirect_stdout(io.StringIO()):  # what it says of each run would tear the live view
        _write_run("trackio", to, running, facts, {"auto_log_gpu": False, "auto_log_cpu": False, "embed": False})


def _write_run(module: str, to: Tracker, running: Running, facts: dict[str, Any], options: dict[str, Any]) -> None:
    """Write a run by the calls that Weights & Biases and trackio have in common."""
    name = f"{to.current} {running.job.label} seed {running.job.config.seed}"
    run = importlib.import_module(module).init(project=to.study, name=name, group=to.current, config=facts, **options)
    last = {} if running.score is None else {"validation/loss": running.score}
    for step, loss in enumerate(running.slot.losses, 1):
        run.log({"train/loss": loss, **(last if step == running.slot.step else {})}, step=step)
    run.finish()


TRACKERS = {"tensorboard": _tensorboard, "mlflow": _mlflow, "wandb": _wandb, "trackio": _trackio}


def tracker(name: str, folder: RunFolder, study: str) -> Tracker:
    """Return a callback that reports every trial and repeat when it ends.

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
    if name == "wandb":
        _log_in()
        folder.path.mkdir(parents=True, exist_ok=True)
    return Tracker(name, folder, study)


def _log_in() -> None:
    """Ask for the key now, while somebody is there to ask, and not in the middle of a search."""
    if os.environ.get("WANDB_MODE", "online") != "online":
        return
    import wandb

    try:
        wandb.login()
    except wandb.errors.Error as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise AutoLRError(
            f"--report-to wandb: {reason}; give the key with wandb login, or set WANDB_MODE=offline"
        ) from None
