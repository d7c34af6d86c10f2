"""A merged adapter cut to a smaller rank: the best approximation of its products, by singular values.

B A is decomposed through the QR factors of B and of A's transpose, so that the largest matrix that is ever made has
the rank's size: B = Q_b R_b, A' = Q_a R_a, and the singular values of B A are those of R_b R_a' [rank, rank].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from autolr.merging.adapter import Adapter, kept, with_factors


@dataclass(frozen=True)
class Decomposed:
    """B A = left diag(values) right, and rank at most the smaller side of the matrix."""

    left: Tensor  # [d_out, rank], orthonormal columns
    values: Tensor  # [rank], the largest first
    right: Tensor  # [rank, d_in], orthonormal rows

    @classmethod
    def of(cls, a: Tensor, b: Tensor) -> Decomposed:
        """Decompose the product of A [rank, d_in] and B [d_out, rank], in float64."""
        q_b, r_b = torch.linalg.qr(b.double())
        q_a, r_a = torch.linalg.qr(a.double().T)
        u, values, v = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
        left = q_b @ u
        left[(b == 0).all(1)] = 0.0  # rows that nobody trained, such as W_k's of a fused matrix, stay exactly so
        return cls(left, values, v @ q_a.T)

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """Return A and B of the best approximation of a rank; each gets the square root of the values."""
        root = self.values[:rank].sqrt()
        return root[:, None] * self.right[:rank], self.left[:, :rank] * root


class Spectrum:
    """The singular values of each matrix that a LoRA adapter adds, and the adapter cut to any rank.

    Args:
        adapter: of PEFT, as `autolr.merging.average.average` returns it.
    """

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self.parts: dict[str, Decomposed] = {}
        for module, (a, b) in adapter.factors().items():
            scaled = adapter.scaling(module) * adapter.tensors[a].double()
            self.parts[module] = Decomposed.of(scaled, adapter.tensors[b])

    @property
    def largest(self) -> int:
        """The rank that leaves all as it is."""
        return max(self.adapter.ranks().values())

    @property
    def values(self) -> dict[str, list[float]]:
        """The singular values of each module's matrix, the largest first."""
        return {module: part.values.tolist() for module, part in self.parts.items()}

    def cut(self, rank: int) -> Adapter:
        """Return the adapter with no rank above `rank`; the same adapter where that changes nothing."""
        if rank >= self.largest:
            return self.adapter
        names, tensors = self.adapter.factors(), self.adapter.tensors
        factors = {}
        for module, part in self.parts.items():
            like = tensors[names[module][0]]
            a, b = part.factors(rank)
            factors[module] = kept(a, like), kept(b, like)
        return with_factors(self.adapter.label, self.adapter.config, factors, names, self.adapter.others())


def smallest_rank(largest: int, loss_of: Callable[[int], float], limit: float) -> int:
    """Return the smallest rank whose loss is at most `limit`, by bisection.

    The loss is taken to fall as the rank rises. Where it does not, the result is within the limit all the same.

    Args:
        largest: a rank within the limit.
        loss_of: measures the loss of a smaller rank.
        limit: the largest loss that is accepted.
    """
    low, high = 1, largest
    while low < high:
        middle = (low + high) // 2
        if loss_of(middle) <= limit:
            high = middle
        else:
            low = middle + 1
    return high
