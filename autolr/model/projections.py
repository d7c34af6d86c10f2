"""Where a transformer keeps W_q, W_k and W_v."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from torch import nn

from autolr.errors import ModelError
from autolr.study import Targets

# The names transformers gives to separate projections, family by family:
# BERT, RoBERTa, ELECTRA (query); DistilBERT (q_lin); Llama, Mistral, Qwen, Gemma, OPT (q_proj).
NAMES: tuple[dict[str, str], ...] = (
    {"q": "query", "k": "key", "v": "value"},
    {"q": "q_lin", "k": "k_lin", "v": "v_lin"},
    {"q": "q_proj", "k": "k_proj", "v": "v_proj"},
)


@dataclass(frozen=True)
class Site:
    """A matrix an adapter is attached to.

    Attributes:
        name: full name of the module in the model.
        role: what the matrix is for.
        d_in: input features.
        d_out: output features; smaller for k and v where heads share them (grouped queries).
    """

    name: str
    role: Literal["q", "k", "v"]
    d_in: int
    d_out: int


@dataclass(frozen=True)
class Projections:
    """The sites of a model, in the order of its layers, and how many of its layers have them."""

    sites: tuple[Site, ...]
    layers: int

    def of(self, targets: Targets) -> tuple[Site, ...]:
        """Return the sites that `targets` trains."""
        return tuple(site for site in self.sites if site.role in targets)

    @property
    def coverage(self) -> str:
        """Say how many layers can be tuned, such as `q and v in 6 of 6 layers`."""
        found = sum(site.role == "v" for site in self.sites)
        return f"q and v in {found} of {self.layers} layers"

    @property
    def largest_rank(self) -> int:
        """The rank at which an adapter on the smallest matrix would be of full rank."""
        return min(min(site.d_in, site.d_out) for site in self.sites)


def find(model: nn.Module, name: str) -> Projections:
    """Find the attention projections of a model.

    Args:
        model: any transformers model.
        name: the model's name, for messages.

    Raises:
        ModelError: no attention module has separate q, k and v; the message lists what there is.
    """
    sites: list[Site] = []
    for path, module in model.named_modules():
        for names in NAMES:
            found = {role: getattr(module, child, None) for role, child in names.items()}
            if all(isinstance(matrix, nn.Linear) for matrix in found.values()):
                for role, matrix in found.items():
                    assert isinstance(matrix, nn.Linear)
                    full = f"{path}.{names[role]}" if path else names[role]
                    sites.append(Site(full, role, matrix.in_features, matrix.out_features))  # type: ignore[arg-type]
    if not sites:
        raise ModelError(_nothing_found(model, name))
    layers = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    attentions = sum(site.role == "v" for site in sites)
    return Projections(tuple(sites), max(int(layers or attentions), attentions))


def _nothing_found(model: nn.Module, name: str) -> str:
    kinds: dict[str, int] = {}
    for path, module in model.named_modules():
        if not list(module.children()) and list(module.parameters(recurse=False)):
            shape = "x".join(str(size) for size in next(module.parameters(recurse=False)).shape)
            anywhere = re.sub(r"[.]\d+(?=[.]|$)", ".*", path)
            kind = f"{anywhere} ({type(module).__name__} {shape})"
            kinds[kind] = kinds.get(kind, 0) + 1
    listing = "\n".join(f"  {count} x {kind}" for kind, count in list(kinds.items())[:40])
    known = "; ".join("/".join(names.values()) for names in NAMES)
    return (
        f"model {name!r}: no attention layer has separate query, key and value projections "
        f"(known names: {known}); fused projections are not supported yet. Its modules:\n{listing}"
    )
