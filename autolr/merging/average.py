"""The exact average of adapters, as one ordinary adapter.

The products of LoRA adapters are added by stacking their factors:

    sum_i w_i s_i B_i A_i  =  [B_1 B_2 ...] [w_1 s_1 A_1; w_2 s_2 A_2; ...]

so the average of adapters of ranks r_1, r_2, ... has rank r_1 + r_2 + ... The base is not touched: it may be kept in
4 bits, fused, or tied. Ranks, alphas and targets may differ; an adapter without a matrix adds 0 to it. Heads, whole
matrices and biases are averaged number by number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from autolr.merging.adapter import Adapter, kept, with_factors
from autolr.merging.compatible import check

# What says together which matrices PEFT adapts.
_SELECTION = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")


def average(
    adapters: Sequence[Adapter], weights: Sequence[float] | None = None, base: str | None = None, label: str = "merge"
) -> Adapter:
    """Return the weighted average of adapters, computed in float64; of one adapter, that adapter.

    Args:
        adapters: the ingredients, of one base, task and kind.
        weights: of each; None: equal ones, which add up to 1.
        base: see `autolr.merging.compatible.check`.
        label: of the result.

    Raises:
        DocumentError: they have no exact average.
    """
    check(adapters, base)
    if weights is None and len(adapters) == 1:
        return adapters[0]
    shares = list(weights) if weights is not None else [1 / len(adapters)] * len(adapters)
    others = {name: _mean([adapter.tensors[name] for adapter in adapters], shares) for name in adapters[0].others()}
    if adapters[0].kind == "full":
        return Adapter(label, {**adapters[0].config, "inference_mode": True}, others)
    names = {module: pair for adapter in adapters for module, pair in adapter.factors().items()}
    factors = {module: _stacked(adapters, shares, module) for module in names}
    return with_factors(label, {**adapters[0].config, **_selection(adapters)}, factors, names, others)


def _mean(tensors: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    if not tensors[0].is_floating_point():
        return tensors[0]  # a counter, such as a normalization's
    total = torch.zeros_like(tensors[0], dtype=torch.float64)
    for tensor, share in zip(tensors, shares, strict=True):
        total += share * tensor.double()
    return kept(total, tensors[0])


def _stacked(adapters: Sequence[Adapter], shares: Sequence[float], module: str) -> tuple[Tensor, Tensor]:
    """Return A [sum of ranks, d_in] and B [d_out, sum of ranks] of a module."""
    a, b = [], []
    for adapter, share in zip(adapters, shares, strict=True):
        pair = adapter.factors().get(module)
        if pair is not None:
            own_a, own_b = (adapter.tensors[name] for name in pair)
            a.append(kept(share * adapter.scaling(module) * own_a.double(), own_a))
            b.append(kept(own_b, own_b))
    return torch.cat(a), torch.cat(b, dim=1)


def _selection(adapters: Sequence[Adapter]) -> dict[str, Any]:
    """Return the settings that select the adapted modules: those of all adapters, or the modules' names."""
    first, *rest = ({name: _plain(adapter.config.get(name)) for name in _SELECTION} for adapter in adapters)
    if all(own == first for own in rest):
        return {name: adapters[0].config.get(name) for name in _SELECTION}
    modules = sorted({module for adapter in adapters for module in adapter.factors()})
    return {**dict.fromkeys(_SELECTION), "target_modules": modules}


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, list) else value
