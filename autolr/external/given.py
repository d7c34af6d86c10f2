"""What `tune_trainer` is given: taken as transformers.Trainer takes it, or refused before anything is trained."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.data import ConcatDataset, IterableDataset, Subset
from transformers import EarlyStoppingCallback, TrainingArguments

from autolr.errors import AutoLRError


def new_model(model: Any, trainer: type, *, takes_adapter: bool) -> str | Callable[[], Any]:
    """Return a name that the trainer takes, or a function that returns a new model for each candidate.

    Args:
        model: a name, or a function; of one argument too, as `model_init` may be.
        trainer: its class.
        takes_adapter: whether the trainer puts the adapter on, and so takes names as well.

    Raises:
        AutoLRError: it is something else.
    """
    if isinstance(model, nn.Module):
        raise AutoLRError(
            f"model={type(model).__name__}(...): each candidate needs a new model. Give a function that returns one, "
            "such as model=lambda: AutoModelForCausalLM.from_pretrained(name)"
        )
    if isinstance(model, str) and takes_adapter:
        return model
    if not callable(model):
        raise AutoLRError(
            f"model={model!r}: {trainer.__name__} takes a model, not its name; give a function that returns a new one"
        )
    needed = [p for p in inspect.signature(model).parameters.values() if p.default is p.empty and p.kind < 2]
    return (lambda: model(None)) if len(needed) == 1 else model


def built(model: str | Callable[[], Any]) -> Any:
    """Return the name, or a new model.

    Raises:
        AutoLRError: the function returns no model, or one that was trained before.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    if isinstance(model, str):
        return model
    found = model()
    if not isinstance(found, nn.Module):
        raise AutoLRError(f"model: the function returns {type(found).__name__}, not a model")
    if any(isinstance(module, BaseTunerLayer) for module in found.modules()):
        raise AutoLRError(
            "model: the function returns a model that already has an adapter. Return a new base model each time; "
            "peft_config says which adapter goes on it"
        )
    return found


def halves(dataset: Any) -> tuple[Any, Any]:
    """Return two halves of what is evaluated on, drawn by a seed that is always the same.

    Args:
        dataset: with a length; or several by name, which are taken together.

    Raises:
        AutoLRError: there is nothing to evaluate on, or it cannot be halved.
    """
    if isinstance(dataset, Mapping):
        dataset = _together(list(dataset.values()))
    if dataset is None:
        raise AutoLRError("eval_dataset: candidates are chosen and judged on it; give one of at least 2 examples")
    if not _has_length(dataset):
        raise AutoLRError(
            "eval_dataset: a stream has no length and cannot be halved. Give examples of it, such as "
            "Dataset.from_list(list(stream.take(1000)))"
        )
    if len(dataset) < 2:
        raise AutoLRError("eval_dataset: candidates are chosen and judged on it; give one of at least 2 examples")
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0)).tolist()
    middle = len(order) // 2
    if hasattr(dataset, "select"):
        return dataset.select(order[:middle]), dataset.select(order[middle:])
    return Subset(dataset, order[:middle]), Subset(dataset, order[middle:])


def steps(args: TrainingArguments, dataset: Any) -> int:
    """Return the optimizer steps of the run that arguments describe.

    Raises:
        AutoLRError: there is nothing to train on, there are several data sets, or a stream says no length.
    """
    if dataset is None or isinstance(dataset, Mapping):
        names = f" ({', '.join(map(str, dataset))})" if dataset else ""
        raise AutoLRError(f"train_dataset: must be one data set{names}, such as train_dataset=data['train']")
    if args.max_steps > 0:
        return args.max_steps
    if not _has_length(dataset):
        raise AutoLRError(
            "train_dataset: a stream has no length, so epochs have none; set max_steps in the arguments"
        )
    batch = int(args.train_batch_size * args.gradient_accumulation_steps * args.world_size)
    return max(1, round(args.num_train_epochs * -(-len(dataset) // batch)))


def check(trainer: type, peft_config: Any, options: Mapping[str, Any]) -> None:
    """Refuse what could not be used in each training of a search.

    Raises:
        AutoLRError: it is named, and what to give instead.
    """
    from peft import LoraConfig

    if not isinstance(peft_config, LoraConfig):
        raise AutoLRError(
            f"peft_config={type(peft_config).__name__}: candidates are LoRA adapters; give a LoraConfig, such as "
            'LoraConfig(r=8, target_modules=["q_proj", "v_proj"])'
        )
    given = options.get("optimizers")
    if given is not None and any(one is not None for one in given):
        raise AutoLRError(
            "optimizers=: belong to one model, and each candidate has its own. Give "
            "optimizer_cls_and_kwargs=(kind, options), which is built anew; schedules come from the arguments"
        )
    try:
        inspect.signature(trainer.__init__).bind_partial(None, **options)  # type: ignore[misc]
    except TypeError as error:
        raise AutoLRError(f"{trainer.__name__}: {error}") from None


def callbacks_of(given: Sequence[Any] | None) -> tuple[list[Any], list[str]]:
    """Return the callbacks of a training, each as new, and notes on those that are not taken over as they are."""
    kept, notes = [], []
    for one in given or ():
        if one is EarlyStoppingCallback or isinstance(one, EarlyStoppingCallback):
            notes.append("not taken over: EarlyStoppingCallback: the search itself ends what is hopeless")
            continue
        try:
            kept.append(copy.deepcopy(one))
        except Exception as error:  # copying a file or a connection raises whatever its library does
            kept.append(one)
            notes.append(f"{type(one).__name__}: all trainings share this callback, which cannot be copied ({error})")
    return kept, notes


def _has_length(dataset: Any) -> bool:
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        return False
    try:
        return len(dataset) >= 0
    except (TypeError, NotImplementedError):
        return False


def _together(datasets: list[Any]) -> Any:
    """Return several data sets as one."""
    from datasets import Dataset, concatenate_datasets

    if not all(map(_has_length, datasets)):
        return next(one for one in datasets if not _has_length(one))
    if all(isinstance(one, Dataset) for one in datasets):
        try:
            return concatenate_datasets(datasets) if datasets else None
        except ValueError as error:
            raise AutoLRError(f"eval_dataset: its data sets have other columns ({error}); give one of them") from None
    return ConcatDataset(datasets)
