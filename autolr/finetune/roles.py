"""Which role a parameter has, by its full name in a model, with an adapter of PEFT or without."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from autolr.model import families
from autolr.model.projections import NAMES
from autolr.schema.space import Role

# Where PEFT keeps a matrix that trains whole, and what else lies inside one of its layers.
WHOLE = "ln_tuning_layers"
_LAYERS = ("base_layer", WHOLE)
_ROLE_OF: dict[str, Role] = {name: role for names in NAMES for role, name in names.items()}  # type: ignore[misc]


def role_of(name: str, stacks: Collection[str] = ()) -> Role | None:
    """Return the role of a parameter by its full name; None where it has none.

    W_q, W_k, W_v, W_o and the matrices of the MLPs themselves, and what LoRA adds to them, have their own roles.
    Whatever PEFT keeps as `modules_to_save`, and whatever is no adapter and lies outside the model's layers and
    input embeddings, is the head.

    Args:
        name: such as `base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.default.weight`.
        stacks: where the model keeps its layers, such as `base_model.model.bert.encoder.layer.`.
    """
    parts = name.split(".")
    matrix = _matrix(parts)
    if matrix is not None:
        return matrix[1]
    module = _module(parts)
    if families.is_output(module):
        return "o"
    if families.is_mlp(module):
        return "mlp"
    is_adapter = any(part.startswith("lora_") for part in parts)
    if "modules_to_save" in parts or (not is_adapter and not name.startswith(tuple(stacks))):
        return "head" if "embeddings" not in parts and "embed_tokens" not in parts else None
    return None


def _module(parts: list[str]) -> str:
    """Return the name of the module that a parameter, or its adapter, belongs to."""
    end = next((i for i, part in enumerate(parts) if part.startswith("lora_") or part in _LAYERS), None)
    return ".".join(parts[: len(parts) - 1 if end is None else end])


def _matrix(parts: list[str]) -> tuple[int, Role] | None:
    """Return which part names the module, and the role, if a parameter is W_q's, W_k's, W_v's or their adapter's."""
    # What `autolr.model.fused_peft` and `whole` train on the rows of one role: c_attn.lora_A.default.q
    if len(parts) > 3 and parts[-3] in ("lora_A", "lora_B", WHOLE) and parts[-1] in ("q", "k", "v"):
        return len(parts) - 4, parts[-1]  # type: ignore[return-value]
    for index, part in enumerate(parts):
        if part not in _ROLE_OF:
            continue
        rest = parts[index + 1 :]
        if rest[:1] in (["modules_to_save"], [WHOLE]):
            rest = rest[2:]
        if rest[:1] == ["base_layer"]:
            rest = rest[1:]
        # A module that is merely called `value`, such as a critic, has parameters further down.
        if rest in (["weight"], ["bias"]) or (rest and rest[0].startswith("lora_")):
            return index, _ROLE_OF[part]
    return None


def layer_stacks(names: Iterable[str]) -> set[str]:
    """Return the prefixes under which the numbered layers with W_q, W_k and W_v lie."""
    stacks = set()
    for name in names:
        parts = name.split(".")
        matrix = _matrix(parts)
        if matrix is None:
            continue
        number = next((i for i, part in enumerate(parts[: matrix[0]]) if part.isdigit()), None)
        if number is not None:
            stacks.add(".".join(parts[:number]) + ".")
    return stacks
