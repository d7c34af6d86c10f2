"""A module that trains its weight in parts: of some rows, or of one role each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class InParts(nn.Module):
    """Parameters of their own while training; to whoever saves, loads or merges it, one `weight`, and its bias."""

    @property
    def weight(self) -> Tensor:
        """All parts together."""
        raise NotImplementedError

    def fill(self, weight: Tensor) -> None:
        """Copy a weight into the parts."""
        raise NotImplementedError

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}weight"] = self.weight if keep_vars else self.weight.detach()
        bias = getattr(self, "bias", None)
        if bias is not None:
            destination[f"{prefix}bias"] = bias

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        weight = state_dict.get(f"{prefix}weight")
        if weight is None:
            missing_keys.append(f"{prefix}weight")
            return
        with torch.no_grad():
            self.fill(weight)
