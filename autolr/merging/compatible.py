"""Which adapters can be averaged, and why others cannot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from autolr.errors import DocumentError
from autolr.merging.adapter import Adapter
from autolr.model.adapters import base_place

# Settings that may differ between ingredients. The average allows for them, they matter in training alone, or the
# tensors show what they mean (modules_to_save, to which PEFT adds names that no module has).
_FREE = (
    "alpha_pattern",
    "auto_mapping",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "megatron_core",
    "modules_to_save",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "runtime_config",
    "target_modules",
    "use_rslora",
)
# Settings that all ingredients must share.
_SHARED = ("task_type", "bias", "trainable_token_indices", "ensure_weight_tying", "revision")
# First values that leave the base as it is; the others (PiSSA, OLoRA, CorDA, LoftQ, ...) change it.
_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
# Cosine of A's, above which adapters have begun with the same values. Those of other values have about 0.
RELATED = 0.1


def check(adapters: Sequence[Adapter], base: str | None = None) -> None:
    """Refuse adapters that have no exact average; see `problems`.

    Raises:
        DocumentError: lists all that is wrong.
    """
    found = problems(adapters, base)
    if found:
        raise DocumentError("merge", found)


def problems(adapters: Sequence[Adapter], base: str | None = None) -> list[str]:
    """Return why adapters have no exact average; nothing if they have one.

    Args:
        adapters: the ingredients.
        base: what all of them are adapters of, whatever they say; None: they must agree.
    """
    reasons = [why_not(one) for one in adapters]
    sound = [one for one, reason in zip(adapters, reasons, strict=True) if reason is None]
    return [
        *(f"{one.label}: {reason}" for one, reason in zip(adapters, reasons, strict=True) if reason is not None),
        *(problem for one in sound[1:] for problem in _differences(sound[0], one, base)),
    ]


def why_not(adapter: Adapter) -> str | None:
    """Return why an adapter cannot be averaged with others of its kind; None if it can."""
    config = adapter.config
    if adapter.kind is None:
        return (
            f"is an adapter of PEFT's kind {config['peft_type']}. Only LoRA, rsLoRA and adapters that hold whole "
            "matrices can be averaged"
        )
    if config.get("use_dora"):
        return (
            "is a DoRA adapter: its rows are divided by their own lengths, so its average is no low-rank adapter. "
            "Leave it out, or train lora or rslora"
        )
    if config.get("init_lora_weights") not in _STARTS:
        return (
            f"was initialized by {config['init_lora_weights']}, which changes the base model. Convert it to an "
            "ordinary LoRA adapter (save_pretrained, path_initial_model_for_weight_conversion)"
        )
    strange = _strange(config) if adapter.kind == "lora" else []
    if strange:
        return f"uses {', '.join(strange)}, of which no average is known. Leave it out"
    if not adapter.tensors or (adapter.kind == "lora" and not adapter.factors()):
        return "holds no trained matrices. Save it again with PEFT"
    pairs = adapter.factors().values()
    if any(b not in adapter.tensors for _, b in pairs):
        return "holds an A without its B. Save it again with PEFT"
    if any(adapter.tensors[a].dim() != 2 or adapter.tensors[b].dim() != 2 for a, b in pairs):
        return "adapts convolutions, which are not averaged. Leave it out"
    return None


def relation(one: Adapter, other: Adapter) -> float | None:
    """Return the cosine of the A's of two adapters, over the rows both have; None if none can be compared.

    A starts random and moves little, so adapters that began with the same values have a cosine far above 0.
    """
    product = of_one = of_other = 0.0
    theirs = other.factors()
    for module, (name, _) in one.factors().items():
        if module in theirs:
            a, b = one.tensors[name].double(), other.tensors[theirs[module][0]].double()
            rows = min(len(a), len(b))
            a, b = a[:rows], b[:rows]
            product += float((a * b).sum())
            of_one += float(a.square().sum())
            of_other += float(b.square().sum())
    return product / (of_one * of_other) ** 0.5 if of_one and of_other else None


def _strange(config: dict[str, Any]) -> list[str]:
    """Return the settings that change what an adapter computes, and are neither free nor shared."""
    from peft import LoraConfig

    usual = LoraConfig().to_dict()
    known = {*_FREE, *_SHARED, "base_model_name_or_path", "peft_type", "use_dora"}
    return sorted(name for name, value in config.items() if name not in known and value and value != usual.get(name))


def _differences(first: Adapter, one: Adapter, base: str | None) -> list[str]:
    """Return what forbids the average of two adapters."""

    def differs(what: str, own: Any, other: Any, remedy: str) -> str:
        return f"{one.label}: has {what} {own}, {first.label} has {other}. {remedy}"

    if one.kind != first.kind:
        return [differs("the kind", one.kind, first.kind, "Merge adapters of one kind")]
    found = []
    own, other = (str(adapter.config.get("base_model_name_or_path")) for adapter in (one, first))
    if base is None and base_place(own) != base_place(other):
        remedy = "Merge adapters of one base; if it is one and the same, name it: --model"
        found.append(differs("the base model", own, other, remedy))
    for name in _SHARED:
        values = [adapter.config.get(name) for adapter in (one, first)]
        plain = [sorted(value) if isinstance(value, list) else value or None for value in values]
        if plain[0] != plain[1]:
            found.append(differs(name, values[0], values[1], "Merge adapters of one task, trained alike"))
    return found or _other_shapes(first, one)


def _other_shapes(first: Adapter, one: Adapter) -> list[str]:
    shapes = [{name: tuple(tensor.shape) for name, tensor in adapter.others().items()} for adapter in (one, first)]
    wrong = sorted(name for name in {*shapes[0], *shapes[1]} if shapes[0].get(name) != shapes[1].get(name))
    found = [
        f"{one.label}: its {name} is {shapes[0].get(name, 'missing')}, that of {first.label} is "
        f"{shapes[1].get(name, 'missing')}. Merge adapters that train the same head and matrices"
        for name in wrong[:3]
    ]
    both = first.factors()
    for module, (a, b) in one.factors().items():
        if module in both:
            own = (one.tensors[a].shape[1], one.tensors[b].shape[0])
            other = (first.tensors[both[module][0]].shape[1], first.tensors[both[module][1]].shape[0])
            if own != other:
                found.append(
                    f"{one.label}: {module} maps {own[0]} to {own[1]} numbers, in {first.label} {other[0]} to "
                    f"{other[1]}. Merge adapters of one base"
                )
                break
    return found
