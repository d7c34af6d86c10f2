"""The full run: transformers.Trainer and PEFT, with the rates of a recipe."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
)

from autolr.divergence import is_number
from autolr.errors import AutoLRError, DocumentError, RunError
from autolr.finetune.card import model_card
from autolr.finetune.distributed import Processes
from autolr.finetune.evaluation import evaluate
from autolr.finetune.fitting import parts_that_fit
from autolr.finetune.resume import last_checkpoint, step_of
from autolr.finetune.trainer import RecipeTrainer, Resources
from autolr.model import adapters
from autolr.model.quiet import quiet
from autolr.problem import Problem, load_problem
from autolr.progress.resources import Recorder
from autolr.schema import yaml_io
from autolr.schema.recipe import Recipe


@dataclass(frozen=True)
class TrainResult:
    """A finished full run.

    Attributes:
        folder: holds everything of the run.
        adapter: folder of the adapter, tokenizer and model card; loads in stock PEFT.
        metrics: `validation` and `test` scores of the best checkpoint, `best_step`, `seconds`, log.
    """

    folder: Path
    adapter: Path
    metrics: dict[str, Any]

    @property
    def validation(self) -> dict[str, float]:
        """Loss and metric on *validation*, by which the checkpoint was chosen."""
        return dict(self.metrics["validation"])

    @property
    def test(self) -> dict[str, float]:
        """Loss and metric on *test*, seen by no choice."""
        return dict(self.metrics["test"])


def train(
    recipe: Recipe,
    out: str | Path,
    *,
    device: str | None = None,
    on_log: Callable[[dict[str, Any]], None] | None = None,
    report_to: Sequence[str] = (),
    allow_code: bool = False,
    trust_remote_code: bool = False,
) -> TrainResult:
    """Train a recipe to its horizon, keep what is best on *validation*, and report *test*.

    Under `accelerate launch` each process trains its share of every batch, so the global batch stays the recipe's.
    Where a share does not fit the device's memory, it is trained in parts, which take the same steps. A run that was
    stopped resumes from its last checkpoint; a finished one is returned as it is.

    Args:
        recipe: what to train.
        out: folder of the run.
        device: such as `cpu` or `cuda:0`; None: the GPU where there is one.
        on_log: is called with each entry of the Trainer's log.
        report_to: trackers of transformers that are told, such as `tensorboard`, which writes to `tensorboard/` of
            the run unless TENSORBOARD_LOGGING_DIR says otherwise.
        allow_code: whether the recipe's metric may be code of your own, `my_module:function`.
        trust_remote_code: whether Python code that comes with the model may run, where the recipe asks for it.

    Raises:
        AutoLRError: a tracker is not known, or its package is not installed.
        DataError: the data is not that of the search.
        ModelError: the model is not that of the search, or the rank is too large for it.
        RunError: the folder holds another run, the training diverged, the processes cannot share a batch evenly, or
            not even one example fits the device's memory.
    """
    folder, processes = Path(out), Processes.here()
    where = processes.join(device, recipe.training.batch_size)
    _check_folder(folder, recipe)
    _check_trackers(report_to)
    metrics_file = folder / "metrics.json"
    if metrics_file.is_file():
        return TrainResult(folder, folder / "adapter", json.loads(metrics_file.read_text(encoding="utf-8")))
    with quiet():
        problem = load_problem(recipe, where, allow_code=allow_code, trust_remote_code=trust_remote_code)
        processes.wait()  # all have looked into the folder before one writes there
        return _train(recipe, folder, problem, processes, on_log, report_to)


def _train(
    recipe: Recipe,
    folder: Path,
    problem: Problem,
    processes: Processes,
    on_log: Callable[[dict[str, Any]], None] | None,
    report_to: Sequence[str],
) -> TrainResult:
    base, data, task = problem.backbone, problem.data, problem.task
    device = next(base.model.parameters()).device
    candidate, alpha = recipe.candidate, recipe.method.lora_alpha
    model = adapters.peft_model(base, candidate.targets, candidate.rank, alpha, recipe.seed, candidate.kind)
    checkpoints = folder / "checkpoints"
    if processes.first:
        recipe.save(folder / "recipe.yaml")
        last_checkpoint(checkpoints, clean=True)
    processes.wait()
    start = time.perf_counter()
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype == torch.bfloat16:  # on a GPU's base
            parameter.data = parameter.data.float()
    if processes.sharded:
        model.float()  # weights that are shared out together must be of one type
    parts = 1 if processes.sharded else parts_that_fit(model, task, data.train, recipe, processes)
    trainer = RecipeTrainer(recipe, model, task, data, checkpoints, processes, parts, on_log, report_to)
    recorder = Recorder(folder / "resources.parquet", device)
    if processes.first:
        trainer.add_callback(Resources(recorder, data.train, recipe))
    try:
        trainer.train(resume_from_checkpoint=last_checkpoint(checkpoints))
    finally:
        if processes.first:
            recorder.write()
    validation, test = evaluate(model, data.validation, task), evaluate(model, data.test, task)
    best = trainer.state.best_metric
    if best is None or not all(map(is_number, (best, validation["loss"], test["loss"]))):
        raise RunError(f"{folder}: the full run diverged (test loss {test['loss']}); lower the recipe's rates")
    metrics = {
        "steps": recipe.steps,
        "best_step": step_of(trainer.state.best_model_checkpoint),
        "validation": validation,
        "test": test,
        "seconds": round(time.perf_counter() - start, 1),
        "log": trainer.state.log_history,
    }
    state = processes.gathered(model) if processes.sharded else None
    if processes.first:
        _save(folder, model, base.tokenizer, recipe, metrics, state)
        yaml_io.write_text(folder / "metrics.json", json.dumps(metrics, indent=1) + "\n")
        shutil.rmtree(checkpoints, ignore_errors=True)
    processes.wait()
    return TrainResult(folder, folder / "adapter", metrics)


def holds(folder: Path, recipe: Recipe) -> bool:
    """Return True if a folder's run is one of this recipe; the evidence may differ."""
    try:
        held = Recipe.load(folder / "recipe.yaml")
    except DocumentError:
        return False
    return _settings(held) == _settings(recipe)


def _check_trackers(names: Sequence[str]) -> None:
    there = get_available_reporting_integrations()  # type: ignore[no-untyped-call]
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            known = ", ".join(sorted(INTEGRATION_TO_CALLBACK))
            raise AutoLRError(f"--report-to {name}: transformers knows {known}")
        if name not in there:
            raise AutoLRError(f"--report-to {name}: needs {name}, which is not installed: pip install {name}")


def _check_folder(folder: Path, recipe: Recipe) -> None:
    if folder.exists() and not folder.is_dir():
        raise RunError(f"--out {folder}: is a file, not a folder")
    if folder.is_dir() and any(folder.iterdir()) and not holds(folder, recipe):
        raise RunError(f"--out {folder}: holds something else than a run of this recipe; choose another --out")


def _settings(recipe: Recipe) -> dict[str, Any]:
    return recipe.model_dump(mode="json", exclude={"evidence", "versions", "commit", "name"})


def _save(
    folder: Path,
    model: Any,
    tokenizer: Any,
    recipe: Recipe,
    metrics: dict[str, Any],
    state: dict[str, torch.Tensor] | None,
) -> None:
    target, draft = folder / "adapter", folder / ".adapter"
    shutil.rmtree(draft, ignore_errors=True)
    model.peft_config["default"].base_model_name_or_path = adapters.base_place(recipe.model)
    model.save_pretrained(str(draft), **({} if state is None else {"state_dict": state}))
    tokenizer.save_pretrained(str(draft))
    yaml_io.write_text(draft / "README.md", model_card(recipe, metrics))
    shutil.rmtree(target, ignore_errors=True)
    draft.rename(target)
