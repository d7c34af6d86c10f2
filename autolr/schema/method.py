"""The section `method`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator

from autolr.schema.space import MethodKind, Rate, one_as_list
from autolr.schema.yaml_io import Document


class Method(Document):
    """What is trained beside the frozen base: the matrices in space.targets or adapters of them, and the new head."""

    RENAMED = {"alpha": "lora_alpha"}

    kind: Annotated[list[MethodKind], BeforeValidator(one_as_list)] = Field(
        ["lora"],
        min_length=1,
        description="lora; rslora: scaled by alpha / sqrt(rank); dora: the length of each row learns by itself; "
        "several are compared in one search. full: the matrices themselves",
    )
    lora_alpha: float = Field(
        16.0,
        gt=0,
        allow_inf_nan=False,
        description="LoRA's alpha, one for all ranks (lora and dora are scaled by alpha / rank)",
    )
    lr_head: Literal["auto"] | Rate = Field(
        "auto", description="rate of the new output layer, the same for all candidates; auto: 2 / the model's width"
    )
    max_lr_b: Literal["auto"] | Rate = Field(
        "auto",
        description="no B learns faster than this, whatever the ratios are; auto: ten times the default's rate, "
        "or the highest lr_v of the space",
    )

    @field_validator("kind")
    @classmethod
    def _comparable(cls, kinds: list[MethodKind]) -> list[MethodKind]:
        if len(set(kinds)) != len(kinds):
            raise ValueError(f"kind lists a value twice: {kinds}")
        if "full" in kinds and len(kinds) > 1:
            raise ValueError(
                "full has no rank, and rates of another order than adapters: search it in a study of its own"
            )
        return kinds

    @property
    def full(self) -> bool:
        """Whether the matrices train themselves."""
        return self.kind == ["full"]
