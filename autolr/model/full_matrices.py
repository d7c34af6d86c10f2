"""Matrices that train themselves, in stock PEFT's form: all of a module's rows, or those of some roles.

A module of PEFT's LN tuning is a copy of the base's. Its bias stays frozen, as under LoRA. Where roles share a
matrix, the rows of each are a parameter of their own while training, so that they learn at rates of their own and
the rows of no role, such as W_k's, stay exactly as they are; saved, they are one `weight`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from autolr.model.projections import Site


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


class _Rows(InParts):
    """A linear module of which some rows train; to whoever saves or loads it, what it was made from.

    Args:
        module: Linear, or Conv1D, which keeps W the other way round.
        sites: on its rows, or one on all of them.
    """

    def __init__(self, module: nn.Linear | Conv1D, sites: Sequence[Site]) -> None:
        super().__init__()
        self.turned = isinstance(module, Conv1D)
        weight = module.weight.detach()
        self.register_buffer("frozen", (weight.T if self.turned else weight).clone(), persistent=False)
        self.register_buffer("bias", None if module.bias is None else module.bias.detach().clone())
        self.parts = ["whole" if site.rows is None else site.role for site in sites]
        for part, site in zip(self.parts, sites, strict=True):
            index = torch.tensor(site.rows.index() if site.rows else range(site.d_out), device=weight.device)
            self.register_buffer(f"rows_of_{part}", index, persistent=False)
            self.register_parameter(part, nn.Parameter(self.get_buffer("frozen")[index]))

    def _filled(self) -> Tensor:
        """Return W, [d_out, d_in]."""
        filled = self.get_buffer("frozen")
        for part in self.parts:
            own = self.get_parameter(part)
            filled = filled.to(own.dtype).index_copy(0, self.get_buffer(f"rows_of_{part}"), own)
        return filled

    @property
    def weight(self) -> Tensor:
        """W as the module it was made from keeps it."""
        filled = self._filled()
        return filled.T.contiguous() if self.turned else filled

    def forward(self, x: Tensor) -> Tensor:
        bias = self.bias if isinstance(self.bias, Tensor) else None
        return nn.functional.linear(x, self._filled(), bias)

    def fill(self, weight: Tensor) -> None:
        weight = weight.T if self.turned else weight
        for part in self.parts:
            rows = self.get_buffer(f"rows_of_{part}")
            self.get_parameter(part).copy_(weight[rows.to(weight.device)])


def train_rows(layer: Any, sites: Sequence[Site], adapter: str = "default") -> None:
    """Let the copy in a stock PEFT LN-tuning layer train W, and of a fused W the rows of its sites alone.

    Args:
        layer: the PEFT layer.
        sites: those of the module that are trained.
        adapter: the adapter's name.
    """
    copy = layer.ln_tuning_layers[adapter]
    copy.__dict__.pop("forward", None)  # of a frozen matrix in bf16: autolr.model.precision
    if sites[0].rows or isinstance(copy, Conv1D):
        layer.ln_tuning_layers[adapter] = _Rows(copy, sites)
    elif copy.bias is not None:
        copy.bias.requires_grad_(False)
