"""The optimizers that packs have, by name. Another one is a file of its own and a line here."""

from __future__ import annotations

from autolr.pack.adamw import RowAdamW
from autolr.pack.row_optimizer import RowOptimizer

ROW_OPTIMIZERS: dict[str, type[RowOptimizer]] = {"adamw": RowAdamW}
# What packs, full runs and checks train with unless another is named.
DEFAULT = "adamw"


def row_optimizer(name: str = DEFAULT) -> type[RowOptimizer]:
    """Return the optimizer of this name."""
    return ROW_OPTIMIZERS[name]
