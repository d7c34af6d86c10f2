"""Are q, k and v what attention uses as such?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from autolr.conformance.bench import GAP, Bench, ProblemError
from autolr.model.backbone import Backbone
from autolr.model.projections import Site, by_module


def check_projections(bench: Bench) -> str:
    """Count the sites; no two roles may share rows."""
    found = bench.base.projections
    for name, sites in by_module(found.sites).items():
        index = [row for site in sites for row in (site.rows.index() if site.rows else range(site.d_out))]
        if len(set(index)) != sum(site.d_out for site in sites):
            raise ProblemError(f"{name}: its roles share rows, or count wrongly")
    return f"{found.coverage}; " + ", ".join(shapes(bench.base))


def shapes(base: Backbone) -> list[str]:
    """Return for each role how many sites of which shape there are: `12 v 384x384 (value)`."""
    kinds: dict[str, int] = {}
    for site in base.projections.sites:
        where = f"{'some rows of ' if site.rows else ''}{site.module.rpartition('.')[2]}"
        kind = f"{site.role} {site.d_out}x{site.d_in} ({where})"
        kinds[kind] = kinds.get(kind, 0) + 1
    return [f"{count} {kind}" for kind, count in kinds.items()]


def check_roles(bench: Bench) -> str:
    """Tell q, k and v apart by what they do in attention, whatever they are called.

    q at one place acts on the output there and nowhere else; with all values zero, neither q nor
    k acts on anything, and v does.
    """
    sites = [site for site in bench.base.projections.sites if site.role in ("q", "k", "v")]
    attentions: dict[str, list[Site]] = {}
    for site in sites:
        attentions.setdefault(site.module.rpartition(".")[0], []).append(site)
    for values in (True, False):
        grads = _attention_gradients(bench, attentions, values)
        for name, own in attentions.items():
            if name not in grads:
                raise ProblemError(f"{name}: is not called, so adapters on it would learn nothing")
            for site in own:
                near, far = grads[name][site.name]
                expected = {"q": (values, False), "k": (values, values), "v": (True, True)}[site.role]
                for acts, grad, where in ((expected[0], near, "its own"), (expected[1], far, "another")):
                    seen = (grad != 0).any(0)  # [d_out]
                    if acts and not seen.all():
                        raise ProblemError(
                            f"{site.name}: {int((~seen).sum())} rows do not act on {where} place as {site.role}"
                        )
                    if not acts and seen.any():
                        raise ProblemError(
                            f"{site.name}: {int(seen.sum())} rows act on {where} place, which no {site.role} does"
                        )
    return f"q, k and v act as such in {len(attentions)} attention layers"


def _attention_gradients(
    bench: Bench, attentions: dict[str, list[Site]], values: bool
) -> dict[str, dict[str, tuple[Tensor, Tensor]]]:
    """Differentiate each attention's output at one place by its projections there and GAP tokens before.

    Returns:
        For each attention and site, gradients [examples, d_out] at the same place and far from it.
    """
    rows = [number for number, ids in enumerate(bench.data.ids) if len(ids) > GAP + 1]
    batch = bench.batch(rows)
    batch = {
        "input_ids": batch["input_ids"][:, : GAP + 2],
        "attention_mask": batch["attention_mask"][:, : GAP + 2],
    }
    modules = dict(bench.base.model.named_modules())
    leaves: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    handles = []

    def cut(name: str, sites: list[Site]) -> Callable[..., Tensor]:
        def hook(_module: Any, args: Any, output: Tensor) -> Tensor:
            leaf = output.detach().clone()
            for site in sites:
                if site.role == "v" and not values:
                    leaf[..., site.rows.index() if site.rows else slice(None)] = 0
            leaf.requires_grad_()
            if leaf.shape[0] == len(rows):  # not what all examples share
                leaves[name] = leaf
            return leaf

        return hook

    def watch(name: str) -> Callable[..., None]:
        def hook(_module: Any, args: Any, output: Any) -> None:
            outputs[name] = output[0] if isinstance(output, tuple) else output

        return hook

    try:
        for name, sites in attentions.items():
            for module, own in by_module(tuple(sites)).items():
                handles.append(modules[module].register_forward_hook(cut(module, list(own))))
            handles.append(modules[name].register_forward_hook(watch(name)))
        bench.base.model(**batch)
    finally:
        for handle in handles:
            handle.remove()
    found: dict[str, dict[str, tuple[Tensor, Tensor]]] = {}
    for name, sites in attentions.items():
        if name not in outputs or any(site.module not in leaves for site in sites):
            continue
        output = outputs[name][:, GAP]
        weights = torch.linspace(1, 2, output.numel(), device=output.device, dtype=output.dtype).view_as(output)
        wanted = [leaves[site.module] for site in sites]
        grads = torch.autograd.grad((output * weights.cos()).sum(), wanted, allow_unused=True)
        found[name] = {}
        for site, leaf, grad in zip(sites, wanted, grads, strict=True):
            whole = torch.zeros_like(leaf) if grad is None else grad
            part = whole[..., site.rows.index()] if site.rows else whole
            found[name][site.name] = part[:, GAP], part[:, 0]
    return found
