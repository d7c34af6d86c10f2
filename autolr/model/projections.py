"""Where a transformer keeps W_q, W_k and W_v, W_o and the matrices of its MLP."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import compress, groupby
from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from autolr.errors import ModelError
from autolr.model import families
from autolr.model.families import Rows
from autolr.schema.space import Role, Targets, roles_of

# The names transformers gives to separate projections, family by family:
# BERT, RoBERTa, ELECTRA (query); DistilBERT (q_lin); DeBERTa-v2 and v3 (query_proj); Llama, Mistral, Qwen, Gemma,
# OPT and most others (q_proj).
NAMES: tuple[dict[str, str], ...] = (
    {"q": "query", "k": "key", "v": "value"},
    {"q": "q_lin", "k": "k_lin", "v": "v_lin"},
    {"q": "query_proj", "k": "key_proj", "v": "value_proj"},
    {"q": "q_proj", "k": "k_proj", "v": "v_proj"},
)
# DeepSeek's latent attention: one matrix makes keys and values from a shared low-rank code.
LATENT = "kv_b_proj"


@dataclass(frozen=True)
class Site:
    """A matrix an adapter is attached to: a module of the model, or some rows of a fused one.

    Attributes:
        name: of the site: the module's full name, and for rows of a fused one the role behind it.
        role: what the matrix is for.
        d_in: input features.
        d_out: output features; smaller for k and v where heads share them (grouped queries).
        rows: which rows of the module's output it makes; None: all.
    """

    name: str
    role: Role
    d_in: int
    d_out: int
    rows: Rows | None = None

    @property
    def module(self) -> str:
        """Full name of the module in the model."""
        return self.name.rpartition(".")[0] if self.rows else self.name


@dataclass(frozen=True)
class Projections:
    """The sites of a model, in the order of its layers, and how many of its layers have them.

    Attributes:
        sites: q, k, v and o of one layer are neighbours; those of the MLPs come last.
        layers: of the model.
        shared_input: some projection also reads what all rows of a batch share (DeBERTa's relative
            positions), so slots with different adapters cannot go through it in one pass.
        left_out: what no targets train though all-linear might mean it: experts that are one parameter of three
            dimensions.
        uncalled: matrices that the task never calls, such as those of a vision tower, kind by kind.
    """

    sites: tuple[Site, ...]
    layers: int
    shared_input: bool = False
    left_out: tuple[str, ...] = ()
    uncalled: tuple[str, ...] = ()

    def of(self, targets: Targets) -> tuple[Site, ...]:
        """Return the sites that `targets` trains; all-linear means those there are.

        Raises:
            ModelError: the model has no matrix of one of its roles.
        """
        has = {site.role for site in self.sites}
        wanted = roles_of(targets)
        missing = [role for role in wanted if role not in has and targets != "all-linear"]
        if missing:
            raise ModelError(f"targets {targets}: the model has no W_{missing[0]} of its own; it has {sorted(has)}")
        return tuple(site for site in self.sites if site.role in wanted)

    @property
    def covered(self) -> int:
        """Layers with q and v."""
        return sum(site.role == "v" for site in self.sites)

    @property
    def coverage(self) -> str:
        """Which matrices can be tuned in how many layers, such as `q and v in 6 of 6 layers`."""
        return f"q and v in {self.covered} of {self.layers} layers"

    @property
    def warning(self) -> str | None:
        """What a user should know before training: None where every layer has q and v."""
        if self.covered >= self.layers:
            return None
        return f"{self.coverage}; the other {self.layers - self.covered} are not tuned"

    @property
    def largest_rank(self) -> int:
        """The rank at which an adapter on the smallest matrix would be of full rank."""
        return min(min(site.d_in, site.d_out) for site in self.sites)


def by_module(sites: Sequence[Site]) -> dict[str, tuple[Site, ...]]:
    """Return the sites of each module, in the model's order."""
    return {name: tuple(group) for name, group in groupby(sites, key=lambda site: site.module)}


def find(model: nn.Module, name: str, called: Collection[str] | None = None) -> Projections:
    """Find the attention projections of a model.

    Args:
        model: any transformers model.
        name: the model's name, for messages.
        called: names of the modules that the task runs; adapters on others would learn nothing. None: not known.

    Raises:
        ModelError: no attention module has a W_q and a W_v of its own, or the model mixes W_k and
            W_v in one matrix; the message says which, and lists what there is.
    """
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    sites: list[Site] = []
    shared = False
    for path, module in model.named_modules():
        if isinstance(getattr(module, LATENT, None), nn.Module):
            raise ModelError(
                f"model {name!r}: its latent attention ({path}.{LATENT}) makes keys and values from one low-rank "
                "code, so there is no W_v whose rate could be told from that of W_k; choose a model with separate "
                "or fused q, k and v projections"
            )
        own = _separate(module, path, text) or _fused(module, path, text, name)
        sites += own + (_output(model, path) if own else [])
        shared = shared or bool(getattr(module, "share_att_key", False) and getattr(module, "relative_attention", 0))
    sites, unused = _split(sites, called)
    if not sites:
        raise ModelError(_nothing_found(model, name))
    layers = getattr(text, "num_hidden_layers", None)
    covered = sum(site.role == "v" for site in sites)
    taken = {site.module for site in sites}
    taken |= {site.module for site in unused}
    mlps = [
        Site(path, "mlp", *_shape(module))
        for path, module in model.named_modules()
        if _is_matrix(module) and path not in taken and families.is_mlp(path)
    ]
    run, rest = _split(mlps, None if called is None else {_layer(path) for path in called}, _layer)
    left = _kinds(site.module for site in (*unused, *rest))
    return Projections((*sites, *run), max(int(layers or covered), covered), shared, _experts(model), tuple(left))


def _split(
    sites: Sequence[Site], called: Collection[str] | None, key: Callable[[str], str] = str
) -> tuple[list[Site], list[Site]]:
    """Return the sites that run, and those that do not."""
    runs = [called is None or key(site.module) in called for site in sites]
    return list(compress(sites, runs)), [site for site, does in zip(sites, runs, strict=True) if not does]


def _layer(path: str) -> str:
    """Return the layer of a module: an expert runs for some tokens only, so its whole layer tells whether it does."""
    found = re.match(r"(.*?[.]\d+)([.]|$)", path)
    return found[1] if found else path


def _kinds(names: Iterable[str]) -> list[str]:
    """Return names kind by kind, such as `2 x encoder.layers.*.fc1`."""
    kinds: dict[str, int] = {}
    for name in names:
        kind = re.sub(r"[.]\d+(?=[.]|$)", ".*", name)
        kinds[kind] = kinds.get(kind, 0) + 1
    return [f"{count} x {kind}" for kind, count in kinds.items()]


def _separate(module: nn.Module, path: str, config: Any) -> list[Site]:
    for names in NAMES:
        found = {role: getattr(module, child, None) for role, child in names.items()}
        if not (_is_matrix(found["q"]) and _is_matrix(found["v"])):
            continue
        sites = []
        for role, matrix in found.items():
            if not _is_matrix(matrix):  # no W_k of its own: nothing to freeze
                continue
            d_in, d_out = _shape(matrix)
            rows = families.gated(module, config, d_out) if role == "q" else None
            full = ".".join(part for part in (path, names[role], "q" if rows else "") if part)
            sites.append(Site(full, role, d_in, rows.count if rows else d_out, rows))  # type: ignore[arg-type]
        return sites
    return []


def _fused(module: nn.Module, path: str, config: Any, name: str) -> list[Site]:
    child = families.CHILDREN.get(str(getattr(config, "model_type", "")))
    matrix = getattr(module, child, None) if child else None
    # GPT-2's cross-attention reads its queries elsewhere.
    if not _is_matrix(matrix) or getattr(module, "is_cross_attention", False):
        return []
    d_in, total = _shape(matrix)
    try:
        parts = families.fused(config, total)
    except ValueError as error:
        raise ModelError(f"model {name!r}: {path}.{child}: {error}") from None
    return [Site(f"{path}.{child}.{role}", role, d_in, rows.count, rows) for role, rows in parts.items()]  # type: ignore[arg-type]


def _output(model: nn.Module, path: str) -> list[Site]:
    """Return W_o of the attention module at `path`: a child of its own, or a sibling's as in BERT."""
    parent = path.rpartition(".")[0]
    for full in (*(f"{path}.{child}" for child in families.OUTPUTS), f"{parent}.output.dense"):
        try:
            matrix = model.get_submodule(full)
        except AttributeError:
            continue
        if _is_matrix(matrix) and families.is_output(full):
            return [Site(full, "o", *_shape(matrix))]
    return []


def _experts(model: nn.Module) -> tuple[str, ...]:
    """Return what layers keep as one parameter for many matrices, kind by kind: `2 x mlp.experts.up_proj 4x32x16`."""
    kinds: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        if parameter.dim() == 3 and families.is_mlp(name):
            kind = f"{re.split(r'[.][0-9]+[.]', name)[-1]} {'x'.join(str(size) for size in parameter.shape)}"
            kinds[kind] = kinds.get(kind, 0) + 1
    return tuple(f"{count} x {kind}" for kind, count in kinds.items())


def _is_matrix(module: Any) -> bool:
    return isinstance(module, (nn.Linear, Conv1D))


def _shape(matrix: Any) -> tuple[int, int]:
    if isinstance(matrix, nn.Linear):
        return matrix.in_features, matrix.out_features
    weight: Tensor = matrix.weight  # Conv1D keeps [d_in, d_out]
    return weight.shape[0], weight.shape[1]


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
    family = getattr(getattr(model, "config", None), "model_type", "unknown")
    return (
        f"model {name!r}: no attention layer has query and value projections that AutoLR knows (separate: {known}; "
        f"fused, of the families {', '.join(sorted(families.CHILDREN))}). It is of the family {family!r}; choose a "
        f"model with W_q and W_v. Its modules:\n{listing}"
    )
