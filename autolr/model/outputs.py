"""The outputs of a trained classifier: which of them means which class of the data.

A checkpoint names its outputs in `id2label`. Names are compared with the data's classes, never places: places alone
would train a head under wrong names, and nobody would notice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from autolr.schema.data import TaskName

_SPELLINGS: tuple[Callable[[str], str], ...] = (str, lambda name: name.strip().casefold())


@dataclass(frozen=True)
class Fit:
    """How a checkpoint's outputs fit the data.

    Attributes:
        options: of the configuration that the checkpoint is loaded with.
        rows: for each class of the data, the checkpoint's output; None: the output layer starts fresh.
        note: what is told if the checkpoint holds an output layer; None: nothing.
    """

    options: dict[str, Any]
    rows: tuple[int, ...] | None
    note: str | None


def fit(config: Any, classes: Sequence[str], task: TaskName) -> Fit:
    """Compare a checkpoint's outputs with the classes of the data.

    Args:
        config: as its file has it.
        classes: of the data, in the order in which the model is to have them.
        task: classification, or regression with its one output.
    """
    names, kind = names_of(config), getattr(config, "problem_type", None)
    if task == "regression":
        is_own = len(names) == 1
        note = None if is_own else f"its {len(names)} outputs are no number"
        rows: tuple[int, ...] | None = (0,) if is_own else None
    elif len(names) == 1:
        rows, note = None, "its one output is a number, no class"
    else:
        found = matched(names, classes)
        rows = None if found is None else tuple(found)
        note = _note(names, classes, rows)
        if rows is not None and kind == "multi_label_classification":
            note = "; ".join(
                [*([note] if note else []), "the checkpoint's were trained for several labels of a text"]
            )
    if note:
        start = "the output layer starts fresh" if rows is None else "outputs are the checkpoint's"
        note = f"head: {start}: {note}"
    return Fit(options(classes if rows is None else names, task), rows, note)


def options(names: Sequence[str], task: TaskName) -> dict[str, Any]:
    """Return what a configuration says of a head."""
    return {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {name: index for index, name in enumerate(names)},
        "problem_type": "regression" if task == "regression" else "single_label_classification",
    }


def names_of(config: Any) -> list[str]:
    """Return the names of a checkpoint's outputs, in their order."""
    named: dict[int, Any] = getattr(config, "id2label", None) or {}
    return [str(named[place]) for place in sorted(named)]


def matched(names: Sequence[str], classes: Sequence[str]) -> list[int] | None:
    """Return the output of each class; None if the names do not fit.

    Names may differ in case. Classes 0 to n-1 mean the outputs of these numbers.

    Args:
        names: of all outputs.
        classes: of the data; they may be fewer.
    """
    for spelled in _SPELLINGS:
        own, wanted = [spelled(name) for name in names], [spelled(name) for name in classes]
        if len(set(own)) == len(own) and len(set(wanted)) == len(wanted) and set(wanted) <= set(own):
            return [own.index(name) for name in wanted]
    if sorted(classes) == sorted(str(number) for number in range(len(names))):
        return [int(name) for name in classes]
    return None


def in_order(config: Any, classes: Sequence[str]) -> list[str]:
    """Return classes in the order of the checkpoint's outputs, or as they are if the names do not fit.

    So an adapter has the right names with the checkpoint's own configuration too.
    """
    rows = matched(names_of(config), classes)
    return (
        list(classes)
        if rows is None
        else [classes[place] for place in sorted(range(len(rows)), key=rows.__getitem__)]
    )


def layer_of(model: Any) -> str | None:
    """Return the name of the output layer: the last matrix outside the body with an output for each label."""
    body = f"{model.base_model_prefix}."
    found = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and not name.startswith(body)
        and module.out_features == model.config.num_labels
    ]
    return found[-1] if found else None


@torch.no_grad()
def settle(model: Any, found: Fit, classes: Sequence[str], task: TaskName, lacking: frozenset[str]) -> frozenset[str]:
    """Give a loaded model an output for each class, in their order.

    Args:
        model: loaded with the fit's options.
        found: how its outputs fit.
        classes: of the data.
        task: what the head is for.
        lacking: names of the parameters that the checkpoint does not hold.

    Returns:
        The parameters that start fresh.
    """
    name = layer_of(model)
    layer = model.get_submodule(name) if name else None
    if found.rows is None and layer is not None:
        lacking |= {f"{name}.{own}" for own, _ in layer.named_parameters()}
    elif found.rows is not None and layer is not None and list(found.rows) != list(range(layer.out_features)):
        rows = torch.tensor(found.rows, device=layer.weight.device)
        layer.weight = nn.Parameter(layer.weight[rows].clone(), layer.weight.requires_grad)
        if layer.bias is not None:
            layer.bias = nn.Parameter(layer.bias[rows].clone(), layer.bias.requires_grad)
        layer.out_features = len(rows)
    for key, value in options(classes, task).items():
        setattr(model.config, key, value)
    if hasattr(model, "num_labels"):
        model.num_labels = len(classes)
    return lacking


def _note(names: Sequence[str], classes: Sequence[str], rows: tuple[int, ...] | None) -> str | None:
    if rows is None:
        return (
            f"the checkpoint names its outputs {_some(names)}, the data's classes are {_some(classes)}; to keep "
            "them, write the classes' names into id2label of its config.json"
        )
    if list(classes) == list(names):
        return None
    left = [name for place, name in enumerate(names) if place not in rows]
    pairs = [f"{name} is {names[row]}" for name, row in zip(classes, rows, strict=True) if name != names[row]]
    parts = [*([_some(pairs)] if pairs else []), *([f"without {_some(left)}, which the data lacks"] if left else [])]
    return "matched by name" + "".join(f"; {part}" for part in parts)


def _some(names: Sequence[str], most: int = 6) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown}, ... ({len(names)} in all)"
