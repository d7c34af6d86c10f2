"""Steering: rates of each head by how much the task uses it (paper 2, section 6, leaves it open)."""

from __future__ import annotations

import numpy as np
import torch

from autolr.analysis import pattern
from autolr.analysis.pattern import Array, Pattern
from autolr.data.batches import TokenSet
from autolr.data.tasks import Task
from autolr.model.backbone import Backbone, fresh_head
from autolr.model.projections import Site

# Samples of *train* that are looked at before a search.
SAMPLES = 256
# A head's rate grows as the root of its activation, and stays within this factor of its role's.
EXPONENT, MOST = 0.5, 4.0


def of_task(backbone: Backbone, task: Task, data: TokenSet, seed: int) -> dict[str, list[float]]:
    """Measure a task's pattern before training and return the multiples it asks for, see `multiples`.

    Args:
        backbone: the base; its head gets the first values of a training, and stays so.
        task: gives the losses.
        data: *train*.
        seed: of the head and of which samples are looked at.

    Raises:
        ModelError: its heads cannot be looked at.
    """
    with torch.no_grad():
        own = backbone.head_parameters()
        for name, value in fresh_head(backbone, seed).items():
            own[name].copy_(value)
    rows = np.random.default_rng([seed, 17]).permutation(len(data))[:SAMPLES]
    return multiples(backbone, pattern.measure(backbone, task, data.take(rows.tolist())))


def multiples(backbone: Backbone, found: Pattern) -> dict[str, list[float]]:
    """Return for each site of W_q, W_k and W_v at how many times its rate each of its heads learns.

    The geometric mean over all heads is 1, so that what differs from an ordinary candidate is how the rate is spread.
    Key and value heads that several queries share take the geometric mean of theirs.
    """
    return spread(backbone, factors(found.of("absolute")), found.layers)


def factors(values: Array) -> Array:
    """Return the multiple of each head, [layers, heads], of a pattern of absolute values."""
    logs = EXPONENT * np.log(np.maximum(values, 1e-6 * values.max()))
    bounded = np.clip(logs - logs.mean(), -np.log(MOST), np.log(MOST))
    return np.exp(bounded - bounded.mean())  # type: ignore[no-any-return]


def spread(backbone: Backbone, values: Array, layers: tuple[str, ...]) -> dict[str, list[float]]:
    """Return multiples of heads, [layers, heads], by the names of the matrices that make them."""
    found: dict[str, list[float]] = {}
    layer: list[Site] = []
    for site in backbone.projections.sites:  # W_o comes after the others of its layer
        if site.role in ("q", "k", "v"):
            layer.append(site)
        elif site.role == "o":
            logs = np.log(values[layers.index(site.module)])
            for own in layer:
                heads = max(1, own.d_out * len(logs) // site.d_in)  # of keys and values there may be fewer
                found[own.name] = [float(f"{m:.3g}") for m in np.exp(logs.reshape(heads, -1).mean(1))]
            layer = []
    return found
