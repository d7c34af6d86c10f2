"""The section `space`: what a search varies; and the words for matrices, methods and rates."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from autolr.schema.yaml_io import Document

Role = Literal["q", "k", "v", "o", "mlp", "head"]
# What is trained beside the head: W_q, W_k, W_v, the output projection W_o; all of them and the MLP's matrices.
Targets = Literal["qv", "qkv", "q", "k", "v", "qk", "kv", "vo", "all-linear"]
MethodKind = Literal["lora", "rslora", "dora", "full"]
# What is said of documents that ask for rates of attention heads, which AutoLR had before 0.1.0.
NO_HEAD_RATES = "rates of single heads were removed, since they improved nothing. Remove this key"

Rate = Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)]
Ratio = Annotated[float, Field(gt=0, le=1e4, allow_inf_nan=False)]
Rank = Annotated[int, Field(ge=1, le=4096)]

# What acts through the softmax alone, and learns at the rate of W_q.
SOFTMAX: frozenset[Role] = frozenset({"q", "k"})


def roles_of(targets: Targets) -> tuple[Role, ...]:
    """Return the roles that `targets` names."""
    return ("q", "k", "v", "o", "mlp") if targets == "all-linear" else tuple(targets)  # type: ignore[arg-type]


def has_ratio(targets: Targets) -> bool:
    """Return True if λ means something for `targets`: whether matrices of either rate are among them."""
    roles = set(roles_of(targets))
    return bool(roles & SOFTMAX) and bool(roles - SOFTMAX)


class Range(Document):
    """A range of a dimension, sampled evenly in its logarithm (`log: true`) or in itself."""

    low: float = Field(gt=0, allow_inf_nan=False)
    high: float = Field(gt=0, allow_inf_nan=False)
    log: bool = True

    @model_validator(mode="after")
    def _upright(self) -> Range:
        if self.low > self.high:
            raise ValueError(f"low ({self.low:g}) is above high ({self.high:g}): exchange them")
        return self


def one_as_list(value: Any) -> Any:
    """Return a single value as a list of one, and all else as it is."""
    return [value] if isinstance(value, (int, float, str)) and not isinstance(value, bool) else value


def _rate_choice(value: Any) -> Any:
    """Turn a single number into a list of one, and say plainly what is accepted."""
    value = value if isinstance(value, str) else one_as_list(value)
    if not isinstance(value, (dict, list, tuple, Range)):
        raise ValueError(f"must be a range {{low: , high: }}, a list or a number (given: {value!r})")
    return value


# All combinations of choices are looked at.
MOST_CHOICES = 100


class Space(Document):
    """The dimensions of the search. A list holds choices, a single number fixes the dimension."""

    RENAMED = {"rho": "loraplus_lr_ratio"}
    REMOVED = {"guide": (("none", ["none"]), NO_HEAD_RATES)}

    lr_v: Literal["auto"] | Annotated[Range | list[Rate], BeforeValidator(_rate_choice)] = Field(
        "auto", description="rate of W_v; auto: a factor of 10 around the rule of thumb for the model's width"
    )
    ratio: Annotated[Range | list[Ratio], BeforeValidator(_rate_choice)] = Field(
        Range(low=0.5, high=32.0), description="λ = lr_v / lr_q; below 1 is legal"
    )
    rank: Annotated[list[Rank], BeforeValidator(one_as_list)] = Field(
        [4, 8, 16], min_length=1, description="of adapters; method.kind full has none"
    )
    loraplus_lr_ratio: Annotated[Range | list[Ratio], BeforeValidator(_rate_choice)] = Field(
        [1.0], description="LoRA+: ρ = lr_B / lr_A, the rate of every B by that of its A"
    )
    targets: Annotated[list[Targets], BeforeValidator(one_as_list)] = Field(
        ["qv"],
        min_length=1,
        description="matrices that are trained: q, k, v, o, or all-linear, which has the MLP's as well; several "
        "choices are compared in one search",
    )

    @model_validator(mode="after")
    def _sound(self) -> Space:
        for name, limit in (("lr_v", 10.0), ("ratio", 1e4), ("loraplus_lr_ratio", 1e4)):
            value = getattr(self, name)
            if isinstance(value, Range) and value.high > limit:
                raise ValueError(f"{name}.high ({value.high:g}) is above {limit:g}")
            if isinstance(value, list) and len(value) > MOST_CHOICES:
                raise ValueError(f"{name} lists {len(value)} values; give a range {{low: , high: }} instead")
            if isinstance(value, list) and (not value or len(set(value)) != len(value)):
                raise ValueError(f"{name} must list at least one value, and each value once: {value}")
        for name in ("rank", "targets"):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise ValueError(f"{name} lists a value twice: {values}")
        return self
