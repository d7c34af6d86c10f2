"""A search around a transformers or TRL trainer: its arguments in, a recipe out."""

from __future__ import annotations

import copy
import gc
import inspect
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from autolr.errors import AutoLRError
from autolr.external import given
from autolr.external.function import tune
from autolr.external.handle import Report
from autolr.integrations import trl
from autolr.integrations.to_study import study_of
from autolr.integrations.trainers import with_rates
from autolr.progress.callbacks import Callback
from autolr.rundir.result import SearchResult
from autolr.schema.candidate import Candidate
from autolr.schema.study import StageSetting
from autolr.tuner.stages import steps_of

# Evaluations of a training, beside those at its rungs.
EVALUATIONS = 4


def tune_trainer(
    trainer: type,
    args: TrainingArguments,
    *,
    model: str | Callable[..., Any] | None = None,
    train_dataset: Any,
    eval_dataset: Any,
    peft_config: Any,
    trials: int = 16,
    out: str | Path | None = None,
    callback: Callback | None = None,
    study: dict[str, Any] | None = None,
    **options: Any,
) -> SearchResult:
    """Search λ, η_V and the rank around a trainer that you have: its arguments in, a recipe out.

    The rule of thumb in the comparison is what you have now: λ = 1 at `args.learning_rate`. The search looks at a
    factor of ten around it, and at half and twice the adapter's rank. A trial is the first quarter of the run that
    the arguments describe; the best two and yours then train from the start to its end. Take the recipe home with
    `autolr.with_rates(trainer, result.recipe)`.

    Args:
        trainer: transformers.Trainer or a subclass, such as TRL's SFTTrainer or DPOTrainer.
        args: its arguments; those of saving, evaluating and reporting are set aside.
        model: a hub id or folder, where the trainer takes such (TRL's do), or a function that returns a new base
            model. Trainer's `model_init` means the same.
        train_dataset: as the trainer takes it; of a stream `args.max_steps` gives the length.
        eval_dataset: halved: by one half candidates are chosen, by the other they are judged. A dict of data sets is
            taken together.
        peft_config: a LoraConfig; its rank, `use_dora` and `use_rslora` are the candidate's.
        trials: a total: a resumed search counts what it has.
        out: the run folder; None: `runs/<name>-<identity>`.
        callback: is told what happens, and what of the arguments was not taken over.
        study: sections of a study that are to be otherwise, as `autolr.tune` takes them.
        options: anything else the trainer takes, such as `processing_class`, `data_collator`, `compute_metrics`,
            `callbacks` or `optimizer_cls_and_kwargs`.

    Raises:
        AutoLRError: something of this cannot be used in each training; nothing has been trained.
        DocumentError: the study is wrong.
    """
    with_rates(trainer, {})  # refuses what is no trainer, or makes its own optimizer
    takes_adapter = "peft_config" in inspect.signature(trainer.__init__).parameters  # type: ignore[misc]
    init = options.pop("model_init", None)
    source = given.new_model(init if model is None else model, trainer, takes_adapter=takes_adapter)
    given.check(trainer, peft_config, options)
    validation, test = given.halves(eval_dataset)
    horizon = given.steps(args, train_dataset)
    callbacks = options.pop("callbacks", None)
    steps = steps_of(StageSetting(to=0.25), horizon)
    content, left = _content(args, peft_config, source, horizon)
    notes = [*(f"not taken over: {line}" for line in left), *given.callbacks_of(callbacks)[1]]
    for name, section in (study or {}).items():
        content[name] = {**content.get(name, {}), **section} if isinstance(section, dict) else section
    for line in notes:
        if callback:
            callback.note(line)
        else:
            warnings.warn(f"tune_trainer: {line}", stacklevel=2)

    def train(candidate: Candidate, report: Report) -> float | None:
        set_seed(report.seed)
        own = _arguments(args, report)
        config = copy.deepcopy(peft_config)
        config.r = candidate.rank
        config.use_dora, config.use_rslora = candidate.kind == "dora", candidate.kind == "rslora"
        built = given.built(source)
        own_callbacks = given.callbacks_of(callbacks)[0]
        settings = {**copy.copy(options), "train_dataset": train_dataset, "callbacks": own_callbacks}
        if takes_adapter:
            settings |= {"model": built, "peft_config": config}
        else:
            from peft import get_peft_model

            settings["model"] = get_peft_model(built, config)
        kind: Any = with_rates(trainer, report.rates)
        # TRL makes tokens of what it is given here, and of nothing later.
        found = kind(args=own, eval_dataset={"validation": validation, "test": test}, **settings)
        found.add_callback(_Reports(found, report))
        found.train()
        if not report.should_stop():
            raise AutoLRError(
                f"{trainer.__name__}: the training ended at step {found.state.global_step} of {report.steps}, though "
                "it was not to stop. Leave out callbacks that stop it"
            )
        judged = _loss(found, "test") if report.is_tested else None
        del found, settings, built
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return judged

    name = content.pop("name", trainer.__name__)
    train.__module__, train.__qualname__ = trainer.__module__, trainer.__name__
    return tune(
        train, lr=args.learning_rate, steps=steps, trials=trials, out=out, callback=callback, name=name, **content
    )


def _loss(trainer: Any, half: str) -> float:
    """Return a trainer's loss on a half of what it is evaluated on.

    Raises:
        AutoLRError: it gives none.
    """
    found = trainer.evaluate(trainer.eval_dataset[half])
    if "eval_loss" not in found:
        raise AutoLRError(
            f"{type(trainer).__name__}: its evaluation gives no eval_loss (but {', '.join(found)}); eval_dataset "
            "must contain the labels, under the names in args.label_names"
        )
    return float(found["eval_loss"])


class _Reports(TrainerCallback):
    """Evaluates a trainer on *validation* now and then, reports it, and stops the trainer when told."""

    def __init__(self, trainer: Any, report: Report) -> None:
        self.trainer = trainer
        self.report = report
        self.every = max(1, report.steps // EVALUATIONS)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        step = state.global_step
        if step % self.every and step != self.report.steps:
            return
        self.report(step, _loss(self.trainer, "validation"))
        if self.report.should_stop():
            control.should_training_stop = True


def _arguments(args: TrainingArguments, report: Report) -> TrainingArguments:
    """Return arguments of one training: schedule of the whole run, nothing saved, evaluated by us."""
    own = copy.deepcopy(args)
    own.max_steps, own.seed, own.data_seed = report.horizon, report.seed, report.seed
    own.eval_strategy, own.save_strategy = IntervalStrategy.NO, SaveStrategy.NO
    own.load_best_model_at_end, own.push_to_hub = False, False
    own.report_to = []
    own.disable_tqdm = True
    return own


def _content(args: TrainingArguments, peft_config: Any, model: Any, horizon: int) -> tuple[dict[str, Any], list[str]]:
    """Return what a study says of arguments and adapter, and what it cannot say."""
    whole: dict[str, Any] = args.to_dict()  # type: ignore[no-untyped-call]
    saved = {name: value for name, value in whole.items() if name in trl.NAMES}
    terms, _ = trl.read(saved, Path())
    terms |= {"rank": peft_config.r, "lora_alpha": peft_config.lora_alpha, "dropout": peft_config.lora_dropout}
    terms |= {"targets": peft_config.target_modules, "dora": peft_config.use_dora, "rslora": peft_config.use_rslora}
    terms |= {"steps": horizon, "batch": args.train_batch_size * args.world_size}
    for term in ("lr", "bf16", "seed", "max_length"):
        terms.pop(term, None)
    of_language = str(getattr(peft_config.task_type, "value", peft_config.task_type)) == "CAUSAL_LM"
    terms["task"] = "sft" if of_language else "classification"
    content, left = study_of(terms)
    if not of_language:
        content["method"]["lr_head"] = args.learning_rate  # the same for all candidates, and the one in use
    if isinstance(model, str):
        content["model"] = model
    content["seed"] = args.seed
    return content, [line for line in left if not line.startswith("dropout")]
