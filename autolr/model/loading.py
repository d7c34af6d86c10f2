"""Reading a checkpoint in three passes: its configuration and tokenizer, how it is kept, and its weights."""

from __future__ import annotations

from contextlib import nullcontext, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from typing import Any

import torch

from autolr.errors import ModelError
from autolr.model import calls, outputs, placement, precision, remote_code
from autolr.model.checkpoint import auto_class, cannot_load, locate
from autolr.model.placement import Placement
from autolr.schema.data import LANGUAGE, TaskName
from autolr.schema.training import Attention, Precision


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of which no weights are read yet.

    Attributes:
        location: what transformers reads it from, with `gguf` and `code` as options.
        auto: transformers' auto class for the task.
        config: without dropout.
        head: how the checkpoint's outputs fit the data; None for a language model.
    """

    source: str
    location: str
    gguf: dict[str, str]
    code: dict[str, bool]
    auto: Any
    config: Any
    tokenizer: Any
    head: outputs.Fit | None
    attention: Attention


@dataclass(frozen=True)
class Storage:
    """How a frozen base is kept.

    Attributes:
        precision: of products with its weights.
        device: where it goes.
        dtype: in which transformers reads the weights.
        placed: why it goes there; None if its checkpoint is quantized.
        settings: bitsandbytes' settings, if it makes the weights few bits.
        quantized: whether they are few bits, by settings or in the checkpoint.
        halved: whether all of the base is rounded to bf16.
    """

    precision: Precision
    device: torch.device
    dtype: Any
    placed: Placement | None
    settings: Any
    quantized: bool
    halved: bool


def read_checkpoint(
    source: str, classes: list[str], task: TaskName, attention: Attention, trust_remote_code: bool
) -> Checkpoint:
    """Read configuration and tokenizer; the arguments are those of `autolr.model.backbone.load`.

    Raises:
        ModelError: one of them cannot be read, or does not fit the task.
    """
    from transformers import AutoConfig, AutoTokenizer

    location, gguf = locate(source)
    # Not saying so would make transformers ask at the terminal.
    code = {"trust_remote_code": trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(location, **gguf, **code)
        head = None if task in LANGUAGE else outputs.fit(config, classes, task)
        for option, value in (head.options if head else {}).items():
            setattr(config, option, value)
        auto = auto_class(config, task, source, trust_remote_code)
        if attention == "auto":
            remote_code.check_config(config, source)
        else:
            config._attn_implementation = attention  # whatever its file says
        disable_dropout(config)
        tokenizer = AutoTokenizer.from_pretrained(location, **gguf, **code)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(cannot_load(source, error)) from None
    _give_pad_token(tokenizer, config, source)
    if task in LANGUAGE and tokenizer.eos_token is None:
        raise ModelError(f"model {source!r}: its tokenizer has no end token, with which what is learned must end")
    return Checkpoint(source, location, gguf, code, auto, config, tokenizer, head, attention)


def storage_of(checkpoint: Checkpoint, wanted: Precision, device: torch.device) -> Storage:
    """Choose how a checkpoint's weights are kept on a device.

    Args:
        checkpoint: says how large they are, and whether they are quantized.
        wanted: the study's precision.
        device: where they go.

    Raises:
        ModelError: they fit nowhere, or cannot be kept so.
    """
    held, source = getattr(checkpoint.config, "quantization_config", None), checkpoint.source
    placed = None
    if held is None:
        try:
            parameters = placement.count(checkpoint.auto, checkpoint.config, **checkpoint.code)
        except Exception as error:
            raise ModelError(cannot_load(source, error)) from None
        placed = placement.place(parameters, wanted, device, source)
        wanted = placed.precision
    settings = precision.quantization(wanted, held, source, device)
    if settings is not None or held is not None:
        return Storage(wanted, device, precision.activations(device), placed, settings, quantized=True, halved=False)
    chosen = precision.choose(wanted, device)
    halved = chosen == "bf16" and precision.whole(device)
    # A base that a GPU keeps in bf16 is read in its checkpoint's own type: 8 billion parameters would take 30 GiB in
    # float32. A GGUF file's numbers have no such type, and the fingerprint needs them before they are rounded.
    dtype = "auto" if halved and not checkpoint.gguf else torch.float32
    return Storage(chosen, device, dtype, placed, None, quantized=False, halved=halved)


def read_weights(checkpoint: Checkpoint, storage: Storage) -> tuple[Any, frozenset[str], frozenset[str]]:
    """Read the weights; the model is frozen and in eval mode.

    Returns:
        The model; the names of its parameters that the checkpoint lacks; those that it holds in another shape.

    Raises:
        ModelError: they cannot be read, or the tokenizer has tokens for which the model has no embedding.
    """
    options: dict[str, Any] = {}
    if checkpoint.attention != "auto":
        options["attn_implementation"] = checkpoint.attention
    if storage.settings is not None:
        options["quantization_config"] = storage.settings
    if storage.quantized:
        options["device_map"] = {"": str(storage.device)}
    try:
        # The bar of a GGUF file's conversion is none of transformers' own, which can be switched off.
        with redirect_stderr(StringIO()) if checkpoint.gguf else nullcontext():
            model, info = checkpoint.auto.from_pretrained(
                checkpoint.location,
                config=checkpoint.config,
                dtype=storage.dtype,
                use_safetensors=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **checkpoint.code,
                **checkpoint.gguf,
                **options,
            )
    except Exception as error:
        raise ModelError(cannot_load(checkpoint.source, error)) from None
    model.eval().requires_grad_(False)
    if storage.quantized:  # before its first forward pass, which would pack them
        precision.spare_packing(model)
    if (
        not checkpoint.gguf
    ):  # transformers adds a token of its own to a GGUF file's tokenizer, which texts seldom hold
        calls.check_vocabulary(model, checkpoint.tokenizer, checkpoint.source)
    mismatched = {item[0] if isinstance(item, tuple) else item for item in info["mismatched_keys"]}
    return model, frozenset(info["missing_keys"]), frozenset(mismatched)


def disable_dropout(config: Any) -> None:
    """Set every dropout probability of a configuration to 0.

    Trials of a pack share one forward pass, so dropout would tie a trial's luck to its
    neighbours; and the full run must train what the trials trained.
    """
    for name, value in config.to_dict().items():
        is_probability = isinstance(value, float) and ("dropout" in name or name.endswith(("pdrop", "drop")))
        if is_probability:
            setattr(config, name, 0.0)
        part = getattr(config, name, None)
        if hasattr(part, "to_dict"):  # MPT keeps its attention's in a configuration of its own
            disable_dropout(part)


def _give_pad_token(tokenizer: Any, config: Any, source: str) -> None:
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ModelError(f"model {source!r}: its tokenizer has neither a padding nor an end token")
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    config.pad_token_id = tokenizer.pad_token_id
