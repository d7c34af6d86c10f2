"""Where a model's files are: an embedded model, a folder, a GGUF file or the hub."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from autolr.data import demo
from autolr.errors import ModelError
from autolr.model import remote_code
from autolr.schema.data import LANGUAGE, TaskName


def locate(source: str, *, weights: bool = True) -> tuple[str, dict[str, str]]:
    """Return where a model lies, and what else transformers needs to read it: the name of a GGUF file.

    Args:
        source: what the user calls the model.
        weights: whether they are needed; False: its configuration is enough.
    """
    if demo.is_demo(source):
        path = demo.model_path(source)
        return _in_gguf(path, source) if path.is_file() else (str(path), {})
    path = Path(source).expanduser()
    looks_local = path.exists() or source.startswith((".", "/", "~")) or source.count("/") > 1
    if not looks_local:
        return source, {}
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise ModelError(f"model {source!r}: no such file (--model)")
        return _in_gguf(path, source)
    if not path.is_dir():
        raise ModelError(f"model {source!r}: no such folder or .gguf file (--model)")
    packed = sorted(path.glob("*.gguf"))
    config = path / "config.json"
    if packed and not config.is_file():
        if len(packed) > 1:
            names = ", ".join(file.name for file in packed)
            raise ModelError(f"model {source!r}: the folder has several GGUF files ({names}); give one of them")
        return _in_gguf(packed[0], source)
    if not config.is_file():
        raise ModelError(f"model {source!r}: the folder has no config.json; give the folder of a saved model")
    try:
        json.loads(config.read_text(encoding="utf-8"))
    except (ValueError, OSError):
        raise ModelError(f"model {source!r}: its config.json is not readable JSON") from None
    if weights and not list(path.glob("*.safetensors")):
        remedy = "; convert it with save_pretrained" if list(path.glob("*.bin")) else ""
        raise ModelError(
            f"model {source!r}: the folder has no *.safetensors; other weights (pickles) are never loaded{remedy}. "
            "From config.json alone work autolr theory and autolr validate --model"
        )
    return str(path), {}


def _in_gguf(path: Path, source: str) -> tuple[str, dict[str, str]]:
    if importlib.util.find_spec("gguf") is None:
        raise ModelError(f"model {source!r}: GGUF files are read by the package gguf; install it: pip install gguf")
    return str(path.parent), {"gguf_file": path.name}


def has_weights(source: str) -> bool:
    """Return True if the weights of a model are on this machine, in a form that is read.

    Raises:
        ModelError: there is no such model.
    """
    location, where = locate(source, weights=False)
    if where:
        return True
    if Path(location).is_dir():
        return any(Path(location).glob("*.safetensors"))
    from huggingface_hub import try_to_load_from_cache

    names = ("model.safetensors", "model.safetensors.index.json")
    return any(isinstance(try_to_load_from_cache(location, name), str) for name in names)


def gguf_file(source: str) -> str | None:
    """Return the name of the GGUF file that a model is read from; None where it is another model."""
    return locate(source)[1].get("gguf_file")


def auto_class(config: Any, task: TaskName, source: str, trust_remote_code: bool = False) -> Any:
    """Return transformers' auto class for a task, which has a model for a configuration.

    Raises:
        ModelError: it has none, nor does trusted code that comes with the model.
    """
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
    )

    auto: Any
    if task in LANGUAGE:
        auto, known, kind, remedy = AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING, "causal language model", ""
    else:
        auto, known = AutoModelForSequenceClassification, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
        kind, remedy = "sequence-classification", "; search it with task=sft or task=lm, or"
    if type(config) in known or (trust_remote_code and remote_code.names_own_code(config, auto.__name__)):
        return auto
    raise ModelError(
        f"model {source!r}: transformers has no {kind} class for its family {config.model_type!r}{remedy} "
        "choose a model of another family, such as llama or qwen3"
    )


def cannot_load(source: str, error: Exception) -> str:
    """Return the message for a model that transformers cannot load."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    reason = " ".join(lines)[:300]
    if "trust_remote_code" in str(error):
        return (
            f"model {source!r}: comes with Python code of its own, which is not run; if you trust it, write "
            "trust_remote_code: true in the study and give --trust-remote-code"
        )
    kind = (
        "cannot be loaded"
        if Path(source).expanduser().exists() or demo.is_demo(source)
        else ("is no local folder, and cannot be loaded from the hub")
    )
    return f"model {source!r}: {kind}: {reason}"
