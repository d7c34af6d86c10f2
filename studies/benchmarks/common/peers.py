"""What a user could pick instead: one PEFT trial after another in the Trainer, and time-slicing."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from autolr.data.batches import TokenSet, batch_order
from autolr.model import adapters
from autolr.model.backbone import Backbone
from autolr.model.quiet import quiet
from autolr.pack.pack import Pack
from autolr.schema.space import Role

ALPHA = 16.0
RATES: dict[Role, float] = {"q": 1e-4, "k": 0.0, "v": 1e-3, "head": 5e-3}
# Three rounds of the batches' lengths, and about the 20 steps after which adapters are to be swapped.
CHUNK = 24
# The Trainer sorts this many batches at a time: a window of as many steps sees all lengths.
GROUPED = 50


class Rows(Dataset[dict[str, Any]]):
    """Examples as the Trainer wants them, so that it can group them by length."""

    def __init__(self, data: TokenSet) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"input_ids": self.data.ids[row], "labels": self.data.labels[row]}

    def collate(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Pad examples, of this or of another split, to the longest of the batch: dynamic padding."""
        ids, labels = ([example[key] for example in examples] for key in ("input_ids", "labels"))
        return TokenSet(ids, labels, self.data.pad_id).collate(range(len(examples)))


def peft_model(base: Backbone, rank: int, seed: int = 0) -> Any:
    """Put a stock PEFT adapter on a base; what is trained is float32, also on a base in bf16."""
    with quiet():
        model = adapters.peft_model(base, "qv", rank, ALPHA, seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def arguments(device: torch.device, batch_size: int, **more: Any) -> TrainingArguments:
    """Return the Trainer's settings without anything that costs time and is not asked for."""
    return TrainingArguments(
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=32,
        train_sampling_strategy="group_by_length",
        optim="adamw_torch_fused",
        max_grad_norm=1.0,
        logging_nan_inf_filter=False,  # it waits for the device in every step
        report_to="none",
        disable_tqdm=True,
        use_cpu=device.type == "cpu",
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=device.type != "cpu",
        **more,
    )


class _Clock(TrainerCallback):
    """Takes the time of the steps alone, without set-up and end."""

    seconds = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        wait()
        self.start = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == state.max_steps:
            wait()
            self.seconds = time.perf_counter() - self.start


class Sequential:
    """PEFT and transformers.Trainer, one trial after another.

    Args:
        model: a PEFT model; every run goes on with its weights, which changes no timing.
        data: the examples.
        batch_size: of each step.
        device: where the model is.
        options: of TrainingArguments, such as those that `tune` found.
    """

    def __init__(
        self, model: Any, data: TokenSet, batch_size: int, device: torch.device, options: Mapping[str, Any]
    ) -> None:
        rows, self.clock = Rows(data), _Clock()
        with quiet(), tempfile.TemporaryDirectory() as folder:
            self.trainer = Trainer(
                model=model,
                args=arguments(
                    device,
                    batch_size,
                    output_dir=folder,
                    save_strategy="no",
                    logging_strategy="no",
                    learning_rate=1e-4,
                    max_steps=1,
                    **options,
                ),
                train_dataset=rows,
                data_collator=rows.collate,
                callbacks=[self.clock],
            )
        self.trainer.remove_callback(PrinterCallback)

    def rate(self, steps: int, seed: int) -> float:
        """Return steps per second of a trial of so many steps."""
        trainer = self.trainer
        trainer.args.max_steps = steps
        trainer.optimizer = None
        if trainer.model_wrapped is trainer.model:
            unwrap(trainer.model)
        torch.manual_seed(seed)  # the order of the batches
        with quiet():
            trainer.train()
        return steps / self.clock.seconds


def unwrap(model: Any) -> Any:
    """Undo what accelerate did to a model; otherwise the next Trainer leaves it as it is, whatever its precision."""
    for name in ("forward", "_original_forward", "_is_accelerate_prepared"):
        model.__dict__.pop(name, None)
    return model


def tune(
    model: Any, data: TokenSet, batch_size: int, device: torch.device, *, steps: int = 16, compiled: bool = False
) -> tuple[dict[str, Any], dict[str, float]]:
    """Return the Trainer's fastest options on the device, and steps per second of all that were tried.

    Args:
        model: a PEFT model.
        data: the examples.
        batch_size: of each step.
        device: where the model is.
        steps: that are timed.
        compiled: whether to try torch.compile, which takes minutes.
    """
    tried: dict[str, dict[str, Any]] = {"bf16": {"bf16": True}}
    if device.type == "cpu":
        tried = {"fp32": {}, **tried}
    if compiled:
        tried["bf16, compiled"] = {"bf16": True, "torch_compile": True}
    rates: dict[str, float] = {}
    for name, options in tried.items():
        try:
            peer = Sequential(model, data, batch_size, device, options)
            peer.rate(max(2, steps // 4), 0)
            rates[name] = statistics.median(peer.rate(steps, 0) for _ in range(2))
        except Exception as error:  # torch.compile fails in many ways; the peer then does without
            if "compiled" not in name:
                raise
            print(f"the Trainer cannot be compiled here: {type(error).__name__}")
        unwrap(model)
    best = max(rates, key=rates.__getitem__)
    return tried[best], rates


def time_slicing(
    model: Any, data: TokenSet, batch_size: int, trials: int, bf16: bool, chunk: int = CHUNK, seed: int = 0
) -> float:
    """Return steps per second of trials that take turns on a resident base, as RapidFire AI's do.

    A simulation: after `chunk` steps a trial's adapter is copied out to the machine's memory and the next one's in.
    Optimizer states stay on the device, and batches are grouped by length.

    Args:
        model: a PEFT model.
        data: the examples.
        batch_size: of each step.
        trials: how many take turns.
        bf16: whether to train under autocast.
        chunk: steps between swaps.
        seed: of the order of the batches.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    device = trained[0].device
    kept = [[p.detach().to("cpu", copy=True) for p in trained] for _ in range(trials)]
    optimizers = [torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0, fused=True) for _ in range(trials)]
    orders = [batch_order(data.lengths(), batch_size, chunk, seed + trial) for trial in range(trials)]
    model.train()
    wait()
    start = time.perf_counter()
    for values, optimizer, order in zip(kept, optimizers, orders, strict=True):
        _copy(values, trained)
        for rows in order:
            batch = {key: value.to(device, non_blocking=True) for key, value in data.collate(rows).items()}
            with torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext():
                loss = model(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
        _copy(trained, values)
    wait()
    return trials * chunk / (time.perf_counter() - start)


@torch.no_grad()
def _copy(sources: list[Any], targets: list[Any]) -> None:
    for source, target in zip(sources, targets, strict=True):
        target.copy_(source)


def wait() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def profiled(pack: Pack, warm_up: int, steps: int, *, on_gpu: bool) -> profile:
    """Return the profile of a pack's steps, taken after others that warm it up.

    Args:
        pack: with its slots filled.
        warm_up: steps before the profile begins.
        steps: that are profiled.
        on_gpu: record the GPU's kernels as well.
    """
    for _ in range(warm_up):
        pack.step()
    pack.flush()
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as profiler:
        for _ in range(steps):
            pack.step()
        pack.flush()
    return profiler
