"""A candidate: one point of the space, and the rates that follow from it."""

from __future__ import annotations

from pydantic import Field

from autolr.documents import Document
from autolr.study import Rank, Rate, Ratio, Role, Targets


class Candidate(Document):
    """One point of the space: the rate of W_v, the ratio λ, the rank, and what is trained.

    W_k, where it is trained, learns as fast as W_q; W_o as fast as W_v.
    """

    lr_v: Rate
    ratio: Ratio = Field(description="λ = lr_v / lr_q")
    rank: Rank
    targets: Targets = "qv"

    @property
    def lr_q(self) -> float:
        """The rate of W_q: lr_v / ratio."""
        return self.lr_v / self.ratio

    def rates(self, lr_head: float) -> dict[Role, float]:
        """Return the rate of each role; a role at 0 is frozen."""
        own: dict[Role, float] = {"q": self.lr_q, "k": self.lr_q, "v": self.lr_v, "o": self.lr_v}
        return {**{role: rate if role in self.targets else 0.0 for role, rate in own.items()}, "head": lr_head}

    def describe(self) -> str:
        """Return the candidate in a few words, such as `λ=4 lr_v=2.0e-03 r=8`."""
        text = f"λ={self.ratio:.3g} lr_v={self.lr_v:.2e} r={self.rank}"
        return text + {"qv": "", "qkv": " with W_k"}.get(self.targets, f" on {self.targets}")
