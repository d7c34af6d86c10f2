"""The full run: transformers.Trainer and PEFT, with the rates of a recipe."""

from __future__ import annotations

import itertools
import json
import math
import os
import pickle
import shutil
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch.utils.data import DataLoader, Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    TensorBoardCallback,
    get_available_reporting_integrations,
)
from transformers.trainer_pt_utils import safe_globals

from autolr import documents
from autolr.data.batches import TokenSet, batch_order
from autolr.data.prepared import Prepared
from autolr.data.tasks import Task
from autolr.errors import AutoLRError, DocumentError, RunError
from autolr.model import adapters
from autolr.model.labelled import forward
from autolr.model.quiet import quiet
from autolr.pack.divergence import is_number
from autolr.pack.resources import Recorder, Training
from autolr.pack.schedule import schedule_factor
from autolr.recipe import Recipe
from autolr.train import material
from autolr.train.card import write_card
from autolr.train.evaluation import evaluate
from autolr.train.fitting import parts_that_fit
from autolr.train.material import Material
from autolr.train.one_device import OnOneDevice
from autolr.train.optimizer import create_optimizer
from autolr.train.processes import Processes

EVALUATIONS = 8


@dataclass(frozen=True)
class TrainResult:
    """A finished full run.

    Attributes:
        folder: holds everything of the run.
        adapter: folder of the adapter, tokenizer and model card; loads in stock PEFT.
        metrics: `select` and `confirm` scores of the best checkpoint, `best_step`, `seconds`, log.
    """

    folder: Path
    adapter: Path
    metrics: dict[str, Any]

    @property
    def select(self) -> dict[str, float]:
        """Loss and metric on *select*, by which the checkpoint was chosen."""
        return dict(self.metrics["select"])

    @property
    def confirm(self) -> dict[str, float]:
        """Loss and metric on *confirm*, seen by no choice."""
        return dict(self.metrics["confirm"])


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
    """Train a recipe to its horizon, keep what is best on *select*, and report *confirm*.

    Under `accelerate launch` each process trains its share of every batch, so the global batch stays the recipe's.
    Where a share does not fit the device's memory, it is trained in parts, which take the same steps. A run that was
    stopped goes on from its last checkpoint; a finished one is returned as it is.

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
        found = material.read(
            recipe,
            where,
            allow_code=allow_code,
            trust_remote_code=trust_remote_code,
        )
        processes.wait()  # all have looked into the folder before one writes there
        return _train(recipe, folder, found, processes, on_log, report_to)


def _train(
    recipe: Recipe,
    folder: Path,
    found: Material,
    processes: Processes,
    on_log: Callable[[dict[str, Any]], None] | None,
    report_to: Sequence[str],
) -> TrainResult:
    base, data, task = found.backbone, found.data, found.task
    device = next(base.model.parameters()).device
    candidate = recipe.candidate
    method = recipe.method
    model = adapters.peft_model(base, candidate.targets, candidate.rank, method.alpha, recipe.seed, candidate.kind)
    checkpoints = folder / "checkpoints"
    if processes.first:
        recipe.save(folder / "recipe.yaml")
        _last_checkpoint(checkpoints, clean=True)
    processes.wait()
    start = time.perf_counter()
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype == torch.bfloat16:  # on a GPU's base
            parameter.data = parameter.data.float()
    if processes.sharded:
        model.float()  # weights that are shared out together must be of one type
    parts = 1 if processes.sharded else parts_that_fit(model, task, data.train, recipe, processes)
    trainer = _RecipeTrainer(recipe, model, task, data, checkpoints, device, processes, parts, on_log, report_to)
    recorder = Recorder(folder / "resources.parquet", device)
    if processes.first:
        trainer.add_callback(_Resources(recorder, data.train, recipe))
    try:
        trainer.train(resume_from_checkpoint=_last_checkpoint(checkpoints))
    finally:
        if processes.first:
            recorder.write()
    select, confirm = evaluate(model, data.select, task), evaluate(model, data.confirm, task)
    best = trainer.state.best_metric
    if best is None or not all(map(is_number, (best, select["loss"], confirm["loss"]))):
        raise RunError(f"{folder}: the full run diverged (confirm loss {confirm['loss']}); lower the recipe's rates")
    metrics = {
        "steps": recipe.steps,
        "best_step": _step_of(trainer.state.best_model_checkpoint),
        "select": select,
        "confirm": confirm,
        "seconds": round(time.perf_counter() - start, 1),
        "log": trainer.state.log_history,
    }
    state = processes.gathered(model) if processes.sharded else None
    if processes.first:
        _save(folder, model, base.tokenizer, recipe, metrics, state)
        documents.write_text(folder / "metrics.json", json.dumps(metrics, indent=1) + "\n")
        shutil.rmtree(checkpoints, ignore_errors=True)
    processes.wait()
    return TrainResult(folder, folder / "adapter", metrics)


def holds(folder: Path, recipe: Recipe) -> bool:
    """Tell whether a folder's run is one of this recipe; the evidence may differ."""
    try:
        held = Recipe.load(folder / "recipe.yaml")
    except DocumentError:
        return False
    return _settings(held) == _settings(recipe)


class _Rows(Dataset[int]):
    """Row numbers; the collator looks the examples up."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> int:
        return row


class _RecipeTrainer(Trainer):
    """Trainer with the recipe's batches, rates and schedule: those of a slot in a pack."""

    def __init__(
        self,
        recipe: Recipe,
        model: Any,
        task: Task,
        data: Prepared,
        checkpoints: Path,
        device: torch.device,
        processes: Processes,
        parts: int,
        on_log: Callable[[dict[str, Any]], None] | None,
        report_to: Sequence[str],
    ) -> None:
        self.recipe = recipe
        self.processes, self.parts = processes, parts
        self.order = batch_order(data.train.lengths(), recipe.training.batch_size, recipe.steps, recipe.seed)
        self.task = task
        self.train_data = data.train
        self.select_data = data.select
        half = next(model.parameters()).dtype == torch.bfloat16  # a GPU's base
        every = max(1, math.ceil(recipe.steps / EVALUATIONS))
        arguments = OnOneDevice(
            place=str(device),
            output_dir=str(checkpoints),
            max_steps=recipe.steps,
            per_device_train_batch_size=max(1, recipe.training.batch_size // processes.count // parts),
            gradient_accumulation_steps=parts,
            max_grad_norm=recipe.training.clip_norm or 0.0,
            eval_strategy="steps",
            eval_steps=every,
            save_strategy="steps",
            save_steps=every,
            save_total_limit=2,
            logging_steps=max(1, min(10, every)),
            logging_nan_inf_filter=False,
            load_best_model_at_end=True,
            metric_for_best_model="eval_loss",
            greater_is_better=False,
            report_to=list(report_to) or "none",
            disable_tqdm=True,
            use_cpu=device.type == "cpu",
            seed=recipe.seed,
            data_seed=recipe.seed,
            remove_unused_columns=False,
            label_names=["labels"],
            dataloader_pin_memory=device.type != "cpu",
            bf16=half,
        )
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=_Rows(len(data.train)),
            eval_dataset=_Rows(len(data.select)),
            data_collator=data.train.collate,
            callbacks=[_Callback(on_log)],
        )
        self.loss_is_scaled_for_ga = True
        self.remove_callback(PrinterCallback)
        if "tensorboard" in report_to and "TENSORBOARD_LOGGING_DIR" not in os.environ:
            from torch.utils.tensorboard import SummaryWriter

            # The Trainer would write among the checkpoints, which go when the run is through.
            self.remove_callback(TensorBoardCallback)
            writer = SummaryWriter(str(checkpoints.parent / "tensorboard"))
            self.add_callback(TensorBoardCallback(writer))  # type: ignore[no-untyped-call]

    def get_train_dataloader(self) -> DataLoader[Any]:
        # Not prepared by accelerate, which would deal out whole batches to the processes.
        own = self.processes.share(self.order, self.parts)
        return DataLoader(_Rows(len(self.train_data)), batch_sampler=own, collate_fn=self.train_data.collate)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        # Stock losses all of them; but logits of a language model are computed where they are needed alone.
        loss = self.task.batch_losses(forward(model, inputs), inputs["labels"])[0]
        if self.processes.count == self.parts == 1:
            return loss
        # A share of the mean over the global batch; gradients are summed over parts, and averaged over processes.
        whole = self.train_data.collate(self.order[self.state.global_step])["labels"]
        share = float(self.task.counts(inputs["labels"])[0]) / float(self.task.counts(whole)[0])
        return loss * share * self.processes.count

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        # The Trainer's own loss gives a short last batch the weight of a full one, and leaves out
        # what is not finite: the checkpoint would be chosen by another number than is reported.
        scores = evaluate(self.model, self.select_data, self.task)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in scores.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        optimizer = create_optimizer(self.model if model is None else model, self.recipe)  # type: ignore[arg-type]
        self.optimizer = optimizer
        return optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        training, steps = self.recipe.training, self.recipe.steps
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer or self.optimizer,  # type: ignore[arg-type]
            lambda step: schedule_factor(training, step, steps),
        )
        return self.lr_scheduler


class _Callback(TrainerCallback):
    """Hands the Trainer's log on, and evaluates and saves at the last step as well."""

    def __init__(self, forward: Callable[[dict[str, Any]], None] | None) -> None:
        self.forward = forward

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_evaluate = control.should_save = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if self.forward and logs and state.is_world_process_zero:
            self.forward({**logs, "step": state.global_step})


class _Resources(TrainerCallback):
    """Records what the full run takes of its device."""

    def __init__(self, recorder: Recorder, data: TokenSet, recipe: Recipe) -> None:
        self.recorder = recorder
        lengths = data.lengths()
        order = batch_order(lengths, recipe.training.batch_size, recipe.steps, recipe.seed)
        self.tokens = list(itertools.accumulate(sum(lengths[row] for row in rows) for rows in order))
        self.started, self.first = time.perf_counter(), 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.recorder.phase("full run")
        self.started, self.first = time.perf_counter(), state.global_step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.recorder.due:
            self.recorder.sample([self._training(state.global_step)])

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.recorder.sample([self._training(state.global_step)._replace(ended=True)])

    def _training(self, step: int) -> Training:
        before = self.tokens[self.first - 1] if self.first else 0
        tokens = self.tokens[step - 1] - before if step else 0
        return Training(0, "full run", step, tokens, round(time.perf_counter() - self.started, 3))


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


def _last_checkpoint(folder: Path, *, clean: bool = False) -> str | None:
    """Return the newest complete checkpoint; those that a crash left incomplete are passed over, or cleaned away."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    for path in sorted(found, key=lambda path: _step_of(path.name), reverse=True):
        if _is_whole(path):
            return str(path)
        if clean:
            shutil.rmtree(path, ignore_errors=True)
    return None


def _is_whole(checkpoint: Path) -> bool:
    """Tell whether all that a run needs to go on is there, plain tensors and numbers, and nothing of it cut short.

    The Trainer writes its state last, but a machine that dies may lose any file's end.
    """
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        with safe_open(checkpoint / "adapter_model.safetensors", framework="pt") as tensors:
            tensors.keys()
        of_chance = [path.name for path in checkpoint.glob("rng_state*.pth")] or ["rng_state.pth"]
        for name in ("optimizer.pt", "scheduler.pt", *of_chance):
            with zipfile.ZipFile(checkpoint / name) as archive:
                if archive.testzip() is not None:
                    return False
            with safe_globals():  # type: ignore[no-untyped-call]  # of the state of chance
                torch.load(checkpoint / name, map_location="cpu", weights_only=True)
    except (OSError, ValueError, RuntimeError, SafetensorError, zipfile.BadZipFile, pickle.UnpicklingError):
        return False
    return True


def _step_of(checkpoint: str | None) -> int:
    return int(checkpoint.rpartition("-")[2]) if checkpoint else 0


def _save(
    folder: Path,
    model: Any,
    tokenizer: Any,
    recipe: Recipe,
    metrics: dict[str, Any],
    state: dict[str, torch.Tensor] | None = None,
) -> Path:
    target, draft = folder / "adapter", folder / ".adapter"
    shutil.rmtree(draft, ignore_errors=True)
    model.peft_config["default"].base_model_name_or_path = adapters.base_place(recipe.model)
    model.save_pretrained(str(draft), **({} if state is None else {"state_dict": state}))
    tokenizer.save_pretrained(str(draft))
    write_card(draft, recipe, metrics)
    shutil.rmtree(target, ignore_errors=True)
    draft.rename(target)
    return target
