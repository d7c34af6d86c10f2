"""Loading a pretrained model as a frozen base, with a fresh head where the task needs one."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from contextlib import nullcontext, redirect_stderr
from copy import deepcopy
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autolr.data import demo
from autolr.errors import ModelError
from autolr.model import calls, labelled, outputs, placement, precision, projections, remote
from autolr.model.projections import Projections
from autolr.study import LANGUAGE, Attention, Precision, TaskName


@dataclass
class Backbone:
    """A pretrained model, frozen, in eval mode and without dropout.

    Attributes:
        model: the transformers model, with a head for the task or as a language model.
        tokenizer: its tokenizer, padding on the right.
        source: what the user calls the model.
        projections: where its W_q, W_k and W_v are.
        head: full names of the modules the head consists of; they hold all its parameters. A language model has none.
        fresh: those of the head's parameters the checkpoint does not hold.
        precision: of products with the frozen weights.
        digest: fingerprint of the weights before they were rounded, where they were.
        placed: where it lies, and why, in words.
        notes: what the user should know of the head, and of parts that are not called, in words.
    """

    model: Any
    tokenizer: Any
    source: str
    projections: Projections
    head: tuple[str, ...]
    fresh: frozenset[str]
    precision: Precision = "fp32"
    digest: str | None = None
    placed: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream, the n of paper 1's Theorem 2."""
        config = self.model.config.get_text_config()
        return int(config.hidden_size)

    @property
    def model_type(self) -> str:
        """The family's name in transformers."""
        return str(self.model.config.model_type)

    @property
    def max_length(self) -> int | None:
        """The longest input the position embeddings allow, in tokens; None where unlimited."""
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if limit is None:
            return None
        # RoBERTa and its kin number positions from pad_token_id + 1.
        offset = 0
        for name, module in self.model.named_modules():
            if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
                offset = int(module.padding_idx) + 1
        return int(limit) - offset

    @property
    def vocabulary(self) -> int:
        """How many tokens the model has an embedding for."""
        return len(self.model.get_input_embeddings().weight)

    def head_parameters(self) -> dict[str, nn.Parameter]:
        """Return the head's parameters by their full names, in the model's order."""
        prefixes = tuple(f"{name}." for name in self.head)
        return {name: p for name, p in self.model.named_parameters() if name.startswith(prefixes)}

    def fingerprint(self) -> str:
        """Return a sha256 over the frozen weights, as the checkpoint holds them."""
        if self.digest:
            return self.digest
        digest = hashlib.sha256()
        head = self.head_parameters()
        for name, parameter in self.model.named_parameters():
            if name not in head:
                digest.update(f"{name}{tuple(parameter.shape)}".encode())
                digest.update(memoryview(parameter.detach().float().cpu().contiguous().numpy()).cast("B"))
        return digest.hexdigest()


def load(
    source: str,
    classes: list[str],
    device: str | torch.device = "cpu",
    wanted: Precision = "fp32",
    task: TaskName = "classification",
    attention: Attention = "auto",
    checkpointing: bool = False,
    *,
    trust_remote_code: bool = False,
) -> Backbone:
    """Load a model for a task.

    Args:
        source: `demo:all-MiniLM-L6-v2`, a local folder with safetensors, a GGUF file, or a hub id.
        classes: names of the classes; the head gets one output for each, in their order. A trained head's outputs
            are matched by name. None for a language model.
        device: where the model goes.
        wanted: precision of products with the frozen weights; see `autolr.model.precision`.
        task: what the head is for; `sft` and `lm` take the language model as it is.
        attention: how it is computed, as transformers names it.
        checkpointing: keep the inputs of layers alone for the way back.
        trust_remote_code: run Python code that comes with the model.

    Raises:
        ModelError: the model cannot be loaded, AutoLR does not know its projections, or its tokenizer has tokens for
            which the model has no embedding.
    """
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
    )

    if attention == "flash_attention_2" and torch.device(device).type != "cuda":
        raise ModelError(f"training.attention {attention}: runs on a GPU alone, not on {device}; take sdpa or auto")
    of_language = task in LANGUAGE
    auto: Any = AutoModelForCausalLM if of_language else AutoModelForSequenceClassification
    known = MODEL_FOR_CAUSAL_LM_MAPPING if of_language else MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    location, where = _locate(source)
    # Not saying so would make transformers ask at the terminal.
    code = {"trust_remote_code": trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(location, **where, **code)
        head = None if of_language else outputs.fit(config, classes, task)
        for option, value in (head.options if head else {}).items():
            setattr(config, option, value)
        if type(config) not in known and not (trust_remote_code and remote.names_own_code(config, auto.__name__)):
            raise ModelError(_no_class(source, config, of_language))
        if attention == "auto":
            remote.check_config(config, source)
        else:
            config._attn_implementation = attention  # whatever its file says
        disable_dropout(config)
        tokenizer = AutoTokenizer.from_pretrained(location, **where, **code)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(_cannot_load(source, error)) from None
    _give_pad_token(tokenizer, config, source)
    if of_language and tokenizer.eos_token is None:
        raise ModelError(f"model {source!r}: its tokenizer has no end token, with which what is learned must end")
    held = getattr(config, "quantization_config", None)
    placed = None
    if held is None:
        try:
            size = placement.count(auto, config, **code)
        except Exception as error:
            raise ModelError(_cannot_load(source, error)) from None
        placed = placement.place(size, wanted, torch.device(device), source)
        wanted = placed.precision
    where_to = torch.device(device)
    few_bits = precision.quantization(wanted, held, source, where_to)
    quantized = few_bits is not None or held is not None
    in_half = not quantized and precision.choose(wanted, where_to) == "bf16" and precision.whole(where_to)
    # A base that a GPU keeps in bf16 is read in its checkpoint's own type: 8 billion parameters would take 30 GiB in
    # float32. A GGUF file's numbers have no such type, and the fingerprint needs them before they are rounded.
    dtype: Any = precision.activations(where_to) if quantized else torch.float32
    if in_half and not where:
        dtype = "auto"
    try:
        # The bar of a GGUF file's conversion is none of transformers' own, which can be switched off.
        with redirect_stderr(StringIO()) if where else nullcontext():
            model, info = auto.from_pretrained(
                location,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **code,
                **({} if attention == "auto" else {"attn_implementation": attention}),
                **({"quantization_config": few_bits} if few_bits is not None else {}),
                **({"device_map": {"": str(device)}} if quantized else {}),
                **where,
            )
    except Exception as error:
        raise ModelError(_cannot_load(source, error)) from None
    model.eval().requires_grad_(False)
    if quantized:  # before its first forward pass, which would pack them
        precision.spare_packing(model)
    mismatched = {item[0] if isinstance(item, tuple) else item for item in info["mismatched_keys"]}
    if not where:  # transformers adds a token of its own to the tokenizer of a GGUF file, which texts seldom hold
        calls.check_vocabulary(model, tokenizer, source)
    missing, notes = frozenset(info["missing_keys"]), []
    if head:
        has_outputs = f"{outputs.layer_of(model)}.weight" not in missing
        notes = [head.note] if head.note and has_outputs else []
        missing = outputs.settle(model, head, classes, task, missing)
    base = from_model(model, tokenizer, source, missing | mismatched)
    base.notes = (*notes, *base.notes)
    base.placed = placed.reason if placed else None
    if checkpointing:
        checkpoint_layers(model, source)
    if quantized:  # bitsandbytes has put it on its device
        base.precision = wanted
        return base
    base.precision = precision.choose(wanted, where_to)
    if in_half:  # before it goes to the device, where there may be no room for all its bits
        base.digest = base.fingerprint()
        precision.halve(model)
    if placed and placed.split:
        placement.spread(model, placement.device_map(model, placed.split))
    else:
        model.to(device)
    if base.precision == "bf16" and not in_half:
        precision.round_products(model, base.head)
    return base


def in_order(source: str, classes: list[str], *, trust_remote_code: bool = False) -> list[str]:
    """Return classes in the order of a checkpoint's outputs, or as they are if it has none of these names.

    Raises:
        ModelError: its configuration cannot be read.
    """
    from transformers import AutoConfig

    location, where = _locate(source, weights=False)
    try:
        config = AutoConfig.from_pretrained(location, **where, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise ModelError(_cannot_load(source, error)) from None
    return outputs.in_order(config, classes)


def from_model(model: Any, tokenizer: Any, source: str, fresh: frozenset[str]) -> Backbone:
    """Wrap a loaded model; `fresh` names the parameters without pretrained values.

    Raises:
        ModelError: projections are missing, so much is fresh that the checkpoint cannot be one of this model, or a
            language model sees the tokens it is to predict.
    """
    called = calls.called(model, tokenizer, source)
    model.config.get_text_config().use_cache = False  # keys and values of a trained text are never read again
    found = projections.find(model, source, called)
    notes = uncalled(found)
    body = model.base_model_prefix
    if model.get_output_embeddings() is not None:
        if fresh:
            raise ModelError(
                f"model {source!r}: its checkpoint lacks {', '.join(sorted(fresh)[:4])}, so it is no language model"
            )
        if _sees_ahead(model):
            raise ModelError(
                f"model {source!r}: reads a text in both directions, so it cannot learn to continue one; choose a "
                "decoder, such as llama or qwen3, or task=classification"
            )
        labelled.watch(model)
        return Backbone(model, tokenizer, source, found, head=(), fresh=frozenset(), notes=notes)
    head = [
        name
        for name, child in model.named_children()
        if name != body and list(child.parameters()) and any(own.split(".")[0] == name for own in called)
    ]
    named = dict(model.named_parameters())
    extra = [
        name for name in fresh if name in named and name.split(".")[0] == body and name.rpartition(".")[0] in called
    ]
    # A checkpoint of another head may lack the body's last layer (BERT's pooler): train it as head.
    # Anything that lacks more than that is not the checkpoint of this model.
    inner = sorted({name.rpartition(".")[0] for name in extra})
    if len(inner) > 1:
        raise ModelError(
            f"model {source!r}: its checkpoint lacks {len(extra)} weights of the model itself "
            f"({', '.join(sorted(extra)[:4])}, ...); it does not fit its config.json"
        )
    return Backbone(
        model=model,
        tokenizer=tokenizer,
        source=source,
        projections=found,
        head=tuple([*inner, *head]),
        fresh=frozenset(name for name in fresh if name in named),
        notes=notes,
    )


def uncalled(found: Projections) -> tuple[str, ...]:
    """Return what the user should know of matrices that the task does not call."""
    return tuple(f"not called by this task, so without an adapter: {part}" for part in found.uncalled)


def gguf_file(source: str) -> str | None:
    """Return the name of the GGUF file that a model is read from; None where it is another model."""
    return _locate(source)[1].get("gguf_file")


def checkpoint_layers(model: Any, source: str) -> None:
    """Let each layer keep its input alone, and compute what is inside once more on the way back.

    The layers are marked as training, which is when transformers does so; what is inside stays in eval mode.

    Raises:
        ModelError: the family cannot.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers or not model.supports_gradient_checkpointing:
        raise ModelError(
            f"model {source!r}: transformers cannot checkpoint its family {model.config.model_type!r}; "
            "set training.checkpointing=false"
        )
    # Nothing is drawn inside, so there is no state of a generator to keep.
    model.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
    for layer in layers:
        layer.training = True


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


def fresh_head(backbone: Backbone, seed: int) -> dict[str, torch.Tensor]:
    """Return the head's first values: the checkpoint's, or those the family's own rule draws.

    The values depend on `seed` and the parameter's place alone; they are float32 on the CPU.
    """
    values: dict[str, torch.Tensor] = {}
    modules = dict(backbone.model.named_modules())
    parameters = backbone.head_parameters()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for owner in dict.fromkeys(name.rpartition(".")[0] for name in parameters):
            leaf = _on_cpu(modules[owner])
            for child in leaf.modules():
                child._is_hf_initialized = False
            for parameter in leaf.parameters():
                parameter.__dict__.pop("_is_hf_initialized", None)
            backbone.model._init_weights(leaf)
            for name, parameter in leaf.named_parameters(recurse=False):
                values[f"{owner}.{name}"] = parameter.detach().clone()
    for name, parameter in parameters.items():
        if name not in backbone.fresh:
            values[name] = parameter.detach().cpu().float().clone()
    return {name: values[name] for name in parameters}


def _on_cpu(module: Any) -> Any:
    """Return a copy of a module in the machine's memory, in float32; it takes nothing of a GPU's."""
    own = {id(p): nn.Parameter(p.detach().cpu().float().clone(), p.requires_grad) for p in module.parameters()}
    return deepcopy(module, own)


@torch.no_grad()
def _sees_ahead(model: Any) -> bool:
    """Tell whether the last token of a text changes what is predicted before it."""
    vocabulary = int(model.config.get_text_config().vocab_size)
    ids = torch.arange(8, device=model.device)[None] * 7 % vocabulary
    other = ids.clone()
    other[0, -1] = (ids[0, -1] + 1) % vocabulary
    before, after = (
        model(input_ids=each, attention_mask=torch.ones_like(each)).logits[0, :-1] for each in (ids, other)
    )
    return bool((before - after).abs().max() > 1e-3 * before.abs().max())


def has_weights(source: str) -> bool:
    """Return True if the weights of a model are on this machine, in a form that is read.

    Raises:
        ModelError: there is no such model.
    """
    location, where = _locate(source, weights=False)
    if where:
        return True
    if Path(location).is_dir():
        return any(Path(location).glob("*.safetensors"))
    from huggingface_hub import try_to_load_from_cache

    names = ("model.safetensors", "model.safetensors.index.json")
    return any(isinstance(try_to_load_from_cache(location, name), str) for name in names)


def _locate(source: str, *, weights: bool = True) -> tuple[str, dict[str, str]]:
    """Return where a model lies, and what else transformers needs to read it: the name of a GGUF file.

    Args:
        source: what the user calls the model.
        weights: whether they are needed; False: its configuration is enough.
    """
    if demo.is_demo(source):
        path = demo.model_path(source)
        return _gguf(path, source) if path.is_file() else (str(path), {})
    path = Path(source).expanduser()
    looks_local = path.exists() or source.startswith((".", "/", "~")) or source.count("/") > 1
    if not looks_local:
        return source, {}
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise ModelError(f"model {source!r}: no such file (--model)")
        return _gguf(path, source)
    if not path.is_dir():
        raise ModelError(f"model {source!r}: no such folder or .gguf file (--model)")
    packed = sorted(path.glob("*.gguf"))
    config = path / "config.json"
    if packed and not config.is_file():
        if len(packed) > 1:
            names = ", ".join(file.name for file in packed)
            raise ModelError(f"model {source!r}: the folder has several GGUF files ({names}); give one of them")
        return _gguf(packed[0], source)
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


def _gguf(path: Path, source: str) -> tuple[str, dict[str, str]]:
    if importlib.util.find_spec("gguf") is None:
        raise ModelError(f"model {source!r}: GGUF files are read by the package gguf; install it: pip install gguf")
    return str(path.parent), {"gguf_file": path.name}


def _give_pad_token(tokenizer: Any, config: Any, source: str) -> None:
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ModelError(f"model {source!r}: its tokenizer has neither a padding nor an end token")
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    config.pad_token_id = tokenizer.pad_token_id


def _no_class(source: str, config: Any, of_language: bool) -> str:
    kind = "causal language model" if of_language else "sequence-classification"
    remedy = "" if of_language else "; search it with task=sft or task=lm, or"
    return (
        f"model {source!r}: transformers has no {kind} class for its family {config.model_type!r}{remedy} "
        "choose a model of another family, such as llama or qwen3"
    )


def _cannot_load(source: str, error: Exception) -> str:
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
