"""The section `training`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from autolr.schema.yaml_io import Document

Precision = Literal["auto", "fp32", "bf16", "int8", "nf4"]
Attention = Literal["auto", "sdpa", "eager", "flash_attention_2"]

# More are a slip of the pen: all batches of a run are drawn before it.
MOST_STEPS = 10**7


class Horizon(Document):
    """Length of the full run, in epochs over *train* or in optimizer steps."""

    epochs: float | None = Field(None, gt=0, le=10_000)
    steps: int | None = Field(None, ge=1, le=MOST_STEPS)

    @model_validator(mode="after")
    def _one(self) -> Horizon:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give either epochs or steps")
        return self


class Training(Document):
    """Settings that every trial and the full run share."""

    RENAMED = {
        "schedule": "lr_scheduler_type",
        "warmup": "warmup_ratio",
        "clip_norm": "max_grad_norm",
        "checkpointing": "gradient_checkpointing",
        "attention": "attn_implementation",
    }

    batch_size: int = Field(16, ge=1, le=2**20, description="examples per optimizer step, over all devices")
    horizon: Horizon = Horizon(epochs=3.0)
    lr_scheduler_type: Literal["linear", "constant"] = Field(
        "linear", description="linear: down to 0 at the last step"
    )
    warmup_ratio: float = Field(0.0, ge=0, lt=1, description="share of the steps over which rates rise from 0")
    weight_decay: float = Field(0.0, ge=0, le=1)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    max_grad_norm: float | None = Field(1.0, gt=0, description="largest norm of a trial's gradient; null: none")
    precision: Precision = Field(
        "auto",
        description="of products with frozen weights; auto: bf16 where the device is fast at it, else fp32; int8 and "
        "nf4: weights are kept in 8 or 4 bits by bitsandbytes",
    )
    attn_implementation: Attention = Field(
        "auto", description="how attention is computed; auto: as transformers chooses"
    )
    gradient_checkpointing: bool = Field(
        False, description="keep the inputs of layers alone and compute the rest once more: less memory, more time"
    )

    @field_validator("betas")
    @classmethod
    def _below_one(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must be at least 0 and below 1: {list(betas)}")
        return betas
