"""Attention probabilities, layer by layer, of a model that computes them in plain steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from autolr.data.batches import TokenSet, by_length
from autolr.errors import ModelError
from autolr.model.backbone import Backbone

_SOFTMAX = (functional.softmax, torch.softmax, Tensor.softmax)


class _Softmax(TorchFunctionMode):
    """Shows each attention's probabilities, [samples, heads, tokens, keys], to whoever asked."""

    def __init__(self, see: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.see = see

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if func in _SOFTMAX and made.dim() == 4:  # those of experts' routers have two dimensions
            self.see(made)
        return made


@contextmanager
def probabilities(backbone: Backbone, see: Callable[[Tensor], None], model: Any = None) -> Iterator[None]:
    """Call `see` with the probabilities of each layer, in the order of the pass, while inside."""
    config = (backbone.model if model is None else model).config
    before = config._attn_implementation
    try:
        # Not set_attn_implementation, which refuses families that look at their configuration in every pass.
        config._attn_implementation = "eager"
        with _Softmax(see):
            yield
    finally:
        config._attn_implementation = before


@torch.no_grad()
def entropies(
    backbone: Backbone, data: TokenSet, model: Any = None, *, batch_size: int = 16
) -> tuple[Tensor, Tensor]:
    """Return how widely each head spreads its attention.

    Each layer's probabilities are gone before the next layer's are computed.

    Args:
        backbone: the model's base.
        data: the samples.
        model: the model itself; None: the backbone's.
        batch_size: samples of a pass.

    Returns:
        The mean entropy over queries in nats, and its share of the most it could be, log(visible keys); both float64
        [samples, layers, heads], of queries that see at least two keys.

    Raises:
        ModelError: the family does not compute attention as a softmax of scores.
    """
    model = backbone.model if model is None else model
    device = next(model.parameters()).device
    nats, shares, rows = [], [], []
    for picked in by_length(data.lengths(), batch_size):
        batch = {key: value.to(device) for key, value in data.collate(picked).items()}
        mask = batch["attention_mask"].bool()
        found: list[tuple[Tensor, Tensor]] = []

        def see(made: Tensor, mask: Tensor = mask, found: list[tuple[Tensor, Tensor]] = found) -> None:
            p = made.double()
            entropy = -torch.special.xlogy(p, p).sum(3)  # [samples, heads, queries]
            most = (p > 0).sum(3).clamp_min(1).double().log()
            counts = mask[:, None] & (most > 0)
            total = counts.sum(2).clamp_min(1)
            share = torch.where(counts, entropy / most.clamp_min(1e-12), 0.0)
            found.append((torch.where(counts, entropy, 0.0).sum(2) / total, share.sum(2) / total))

        with probabilities(backbone, see, model):
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        if len(found) != backbone.projections.covered:
            raise ModelError(
                f"model {backbone.source!r}: the attention of {len(found)} layers can be seen as a softmax, of "
                f"{backbone.projections.covered} with a W_v; its entropy is not known"
            )
        nats.append(torch.stack([one for one, _ in found], 1).cpu())
        shares.append(torch.stack([one for _, one in found], 1).cpu())
        rows += picked
    back = torch.tensor(rows).argsort()
    return torch.cat(nats)[back], torch.cat(shares)[back]
