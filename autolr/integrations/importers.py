"""An existing set-up of another tool as the content of a study."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from autolr.errors import DocumentError
from autolr.integrations import axolotl, peft, trl
from autolr.integrations.terms import Terms
from autolr.integrations.to_study import study_of
from autolr.schema import yaml_io

Reader = Callable[[dict[str, Any], Path], tuple[Terms, list[str]]]


class Adopted(NamedTuple):
    """A set-up taken over.

    Attributes:
        tool: whose it is.
        study: the content of a study; it may lack a model or data.
        left: what was not taken over, and why.
    """

    tool: str
    study: dict[str, Any]
    left: list[str]


def read(path: str | Path) -> Adopted:
    """Read an adapter's `adapter_config.json` (or its folder), an Axolotl YAML, or a TRL one or saved arguments.

    Raises:
        DocumentError: the file cannot be read, or is none of these.
    """
    file = Path(path)
    file = file / "adapter_config.json" if file.is_dir() else file
    content = _content(file)
    tool, reader = _kind(content, file)
    try:
        terms, left = reader(content, file)
        study, more = study_of(terms)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise DocumentError(str(path), [f"is no {tool} file that can be read: {error}"]) from None
    return Adopted(tool, study, [*left, *more])


def _content(path: Path) -> dict[str, Any]:
    if path.suffix == ".bin":
        raise DocumentError(
            str(path), ["is a pickle, which is never opened; save the arguments as JSON: args.to_json_string()"]
        )
    if path.suffix != ".json":
        return yaml_io.read_yaml(path)[0]
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DocumentError(str(path), [f"cannot be read: {error.strerror}"]) from None
    except ValueError as error:
        raise DocumentError(str(path), [f"is not JSON: {error}"]) from None
    if not isinstance(content, dict):
        raise DocumentError(str(path), [f"holds a {type(content).__name__}, not keys and values"])
    return content


def _kind(content: dict[str, Any], path: Path) -> tuple[str, Reader]:
    if "peft_type" in content:
        return "PEFT", peft.read
    if "base_model" in content:
        return "Axolotl", axolotl.read
    if "finetuning_type" in content:
        raise DocumentError(str(path), ["is LLaMA-Factory's, which is written for but not read"])
    if {"model_name_or_path", "learning_rate", "per_device_train_batch_size"} & content.keys():
        return "TRL", trl.read
    raise DocumentError(
        str(path),
        [
            "is no adapter_config.json (peft_type), Axolotl file (base_model), or TRL file or training arguments "
            "(model_name_or_path, learning_rate)"
        ],
    )
