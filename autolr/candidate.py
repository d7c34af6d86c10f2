"""A candidate: one point of the space, and the rates that follow from it."""

from __future__ import annotations

from pydantic import Field

from autolr.documents import Document
from autolr.study import Rank, Rate, Ratio, Role, Targets


class Candidate(Document):
    """One point of the space: the rate of W_v, the ratio λ, the rank, and what is trained."""

    lr_v: Rate
    ratio: Ratio = Field(description="λ = lr_v / lr_q")
    rank: Rank
    targets: Targets = "qv"

    @property
    def lr_q(self) -> float:
        """The rate of W_q: lr_v / ratio."""
        return self.lr_v / self.ratio

    def rates(self, lr_head: float) -> dict[Role, float]:
        """Return the rate of each role; a role at 0 is frozen. W_k, where trained, learns as W_q does."""
        lr_k = self.lr_q if self.targets == "qkv" else 0.0
        return {"q": self.lr_q, "k": lr_k, "v": self.lr_v, "head": lr_head}

    def describe(self) -> str:
        """Return the candidate in a few words, such as `λ=4 lr_v=2.0e-03 r=8`."""
        text = f"λ={self.ratio:.3g} lr_v={self.lr_v:.2e} r={self.rank}"
        return f"{text} with W_k" if self.targets == "qkv" else text
