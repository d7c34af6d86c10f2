"""A candidate: one point of the space, and the rates that follow from it."""

from __future__ import annotations

from pydantic import Field, model_validator

from autolr.schema.space import NO_HEAD_RATES, SOFTMAX, MethodKind, Rate, Ratio, Role, Targets, has_ratio, roles_of
from autolr.schema.yaml_io import Document


class Candidate(Document):
    """One point of the space: the rate of W_v, the ratio λ, the rank, what is trained and how.

    W_k, where it is trained, learns as fast as W_q: both act through the softmax alone, which is why paper 1's
    Theorem 2 gives them one rate. W_o and the MLP's matrices act on the output directly, as W_v does, and learn
    as fast as W_v.
    """

    RENAMED = {"rho": "loraplus_lr_ratio"}
    REMOVED = {"guide": (("none",), NO_HEAD_RATES)}

    lr_v: Rate
    ratio: Ratio = Field(description="λ = lr_v / lr_q")
    rank: int = Field(ge=0, le=4096, description="of the adapters; 0 where the matrices themselves are trained")
    targets: Targets = "qv"
    kind: MethodKind = "lora"
    loraplus_lr_ratio: Ratio = Field(1.0, description="LoRA+: ρ = lr_B / lr_A")

    @model_validator(mode="after")
    def _rank_of_adapters(self) -> Candidate:
        if (self.rank == 0) != (self.kind == "full"):
            raise ValueError(
                f"rank {self.rank} does not go with kind {self.kind}: full has rank 0, adapters at least 1"
            )
        return self

    @property
    def lr_q(self) -> float:
        """The rate of W_q: lr_v / ratio."""
        return self.lr_v / self.ratio

    @property
    def has_ratio(self) -> bool:
        """Whether λ means something for what is trained: matrices of either rate."""
        return has_ratio(self.targets)

    @property
    def rate(self) -> float:
        """The rate of a candidate that has no ratio: lr_v, or lr_q where W_q and W_k alone are trained."""
        return self.lr_q if set(roles_of(self.targets)) <= SOFTMAX else self.lr_v

    def is_as_large_as(self, other: Candidate) -> bool:
        """Return True if training this one takes at least the memory of the other: no smaller adapters, as many."""
        covers = set(roles_of(other.targets)) <= set(roles_of(self.targets))
        return covers and self.rank >= other.rank and (self.kind == other.kind or self.kind == "dora")

    def rates(self, lr_head: float) -> dict[Role, float]:
        """Return the rate of each role; a role at 0 is frozen."""
        own: dict[Role, float] = {
            "q": self.lr_q,
            "k": self.lr_q,
            "v": self.lr_v,
            "o": self.lr_v,
            "mlp": self.lr_v,
        }
        trained = roles_of(self.targets)
        return {**{role: rate if role in trained else 0.0 for role, rate in own.items()}, "head": lr_head}

    def rates_b(self, largest: float) -> dict[Role, float]:
        """Return the rate of each role's B where it is not that of its A: lr_A ρ, and no more than `largest`."""
        if self.loraplus_lr_ratio == 1.0:
            return {}
        rates = self.rates(0.0)
        return {role: min(rates[role] * self.loraplus_lr_ratio, largest) for role in roles_of(self.targets)}

    def describe(self) -> str:
        """Return the candidate in a few words, such as `λ=4 lr_v=2.00e-03 r=8`; without λ where it means nothing."""
        text = f"λ={self.ratio:.3g} lr_v={self.lr_v:.2e}"
        if not self.has_ratio:
            text = f"lr_{'q' if set(roles_of(self.targets)) <= SOFTMAX else 'v'}={self.rate:.2e}"
        text += f" r={self.rank}" if self.rank else ""
        text += f" ρ={self.loraplus_lr_ratio:.3g}" if self.loraplus_lr_ratio != 1.0 else ""
        text += "" if self.kind == "lora" else f" {self.kind}"
        return text + {"qv": "", "qkv": " with W_k"}.get(self.targets, f" on {self.targets}")
