"""transformers.Trainer with the batches, rates and schedule of a recipe: those of a slot in a pack."""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback
from transformers.integrations.integration_utils import TensorBoardCallback

from autolr.data.batches import TokenSet, batch_order
from autolr.data.pipeline import Prepared
from autolr.data.tasks import Task
from autolr.finetune.distributed import Processes
from autolr.finetune.evaluation import evaluate
from autolr.finetune.one_device import OnOneDevice
from autolr.finetune.param_groups import create_optimizer
from autolr.model.sparse_logits import forward
from autolr.pack.schedule import schedule_factor
from autolr.progress.resources import Recorder, Training
from autolr.schema.recipe import Recipe

EVALUATIONS = 8


class _Rows(Dataset[int]):
    """Row numbers; the collator looks the examples up."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> int:
        return row


class RecipeTrainer(Trainer):
    """Trainer with the recipe's batches, rates and schedule: those of a slot in a pack.

    Args:
        recipe: what is trained.
        model: with its adapter, on its device.
        task: gives the loss.
        data: prepared for the model.
        checkpoints: their folder.
        processes: that share each batch.
        parts: in which a process trains its share of a batch.
        on_log: is called with each entry of the log.
        report_to: trackers of transformers.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: Any,
        task: Task,
        data: Prepared,
        checkpoints: Path,
        processes: Processes,
        parts: int,
        on_log: Callable[[dict[str, Any]], None] | None,
        report_to: Sequence[str],
    ) -> None:
        self.recipe, self.task, self.processes, self.parts = recipe, task, processes, parts
        self.order = batch_order(data.train.lengths(), recipe.training.batch_size, recipe.steps, recipe.seed)
        self.train_data, self.validation_data = data.train, data.validation
        base = next(model.parameters())
        device = base.device
        every = max(1, math.ceil(recipe.steps / EVALUATIONS))
        arguments = OnOneDevice(
            place=str(device),
            output_dir=str(checkpoints),
            max_steps=recipe.steps,
            per_device_train_batch_size=max(1, recipe.training.batch_size // processes.count // parts),
            gradient_accumulation_steps=parts,
            max_grad_norm=recipe.training.max_grad_norm or 0.0,
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
            bf16=base.dtype == torch.bfloat16,  # a GPU's base
        )
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=_Rows(len(data.train)),
            eval_dataset=_Rows(len(data.validation)),
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
        """Return this process's share of the batches."""
        # Not prepared by accelerate, which would deal out whole batches to the processes.
        own = self.processes.share(self.order, self.parts)
        return DataLoader(_Rows(len(self.train_data)), batch_sampler=own, collate_fn=self.train_data.collate)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Return the part of the mean loss of the global batch that these inputs are."""
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
        """Score the model on *validation*, as the report does."""
        # The Trainer's own loss gives a short last batch the weight of a full one, and leaves out
        # what is not finite: the checkpoint would be chosen by another number than is reported.
        scores = evaluate(self.model, self.validation_data, self.task)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in scores.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Make the optimizer, each role at its rate."""
        optimizer = create_optimizer(self.model if model is None else model, self.recipe)  # type: ignore[arg-type]
        self.optimizer = optimizer
        return optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Make the schedule of the recipe."""
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


class Resources(TrainerCallback):
    """Records what the full run takes of its device."""

    def __init__(self, recorder: Recorder, data: TokenSet, recipe: Recipe) -> None:
        self.recorder = recorder
        lengths = data.lengths()
        order = batch_order(lengths, recipe.training.batch_size, recipe.steps, recipe.seed)
        self.tokens = list(itertools.accumulate(sum(lengths[row] for row in rows) for rows in order))
        self.started, self.first = time.perf_counter(), 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Begin to record."""
        self.recorder.phase("full run")
        self.started, self.first = time.perf_counter(), state.global_step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Record a step, if it is time."""
        if self.recorder.due:
            self.recorder.sample([self._training(state.global_step)])

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Record the last step."""
        self.recorder.sample([self._training(state.global_step)._replace(ended=True)])

    def _training(self, step: int) -> Training:
        before = self.tokens[self.first - 1] if self.first else 0
        tokens = self.tokens[step - 1] - before if step else 0
        return Training(0, "full run", step, tokens, round(time.perf_counter() - self.started, 3))
