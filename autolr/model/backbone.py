"""Loading a pretrained model as a frozen base, with a fresh head where the task needs one."""

from __future__ import annotations

import hashlib
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from autolr.errors import ModelError
from autolr.model import calls, loading, outputs, placement, precision, projections, sparse_logits
from autolr.model.loading import Storage
from autolr.model.projections import Projections
from autolr.schema.data import TaskName
from autolr.schema.training import Attention, Precision


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
    gradient_checkpointing: bool = False,
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
        gradient_checkpointing: keep the inputs of layers alone for the way back.
        trust_remote_code: run Python code that comes with the model.

    Raises:
        ModelError: the model cannot be loaded, AutoLR does not know its projections, or its tokenizer has tokens for
            which the model has no embedding.
    """
    device = torch.device(device)
    if attention == "flash_attention_2" and device.type != "cuda":
        raise ModelError(
            f"training.attn_implementation {attention}: runs on a GPU alone, not on {device}; take sdpa or auto"
        )
    checkpoint = loading.read_checkpoint(source, classes, task, attention, trust_remote_code)
    storage = loading.storage_of(checkpoint, wanted, device)
    model, missing, mismatched = loading.read_weights(checkpoint, storage)
    notes: list[str] = []
    if head := checkpoint.head:
        has_outputs = f"{outputs.layer_of(model)}.weight" not in missing
        notes = [head.note] if head.note and has_outputs else []
        missing = outputs.settle(model, head, classes, task, missing)
    base = from_model(model, checkpoint.tokenizer, source, missing | mismatched)
    base.notes = (*notes, *base.notes)
    base.placed = storage.placed.reason if storage.placed else None
    base.precision = storage.precision
    if gradient_checkpointing:
        checkpoint_layers(model, source)
    if not storage.quantized:  # bitsandbytes has put those on their device
        _put(base, storage)
    return base


def _put(base: Backbone, storage: Storage) -> None:
    """Put a base of plain numbers on its device, or split over several, in its precision."""
    if storage.halved:  # before it goes to the device, where there may be no room for all its bits
        base.digest = base.fingerprint()
        precision.halve(base.model)
    if storage.placed and storage.placed.split:
        placement.spread(base.model, placement.device_map(base.model, storage.placed.split))
    else:
        base.model.to(storage.device)
    if storage.precision == "bf16" and not storage.halved:
        precision.round_products(base.model, base.head)


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
        sparse_logits.watch(model)
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
            "set training.gradient_checkpointing=false"
        )
    # Nothing is drawn inside, so there is no state of a generator to keep.
    model.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
    for layer in layers:
        layer.training = True


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
    """Return True if the last token of a text changes what is predicted before it."""
    vocabulary = int(model.config.get_text_config().vocab_size)
    ids = torch.arange(8, device=model.device)[None] * 7 % vocabulary
    other = ids.clone()
    other[0, -1] = (ids[0, -1] + 1) % vocabulary
    before, after = (
        model(input_ids=each, attention_mask=torch.ones_like(each)).logits[0, :-1] for each in (ids, other)
    )
    return bool((before - after).abs().max() > 1e-3 * before.abs().max())
