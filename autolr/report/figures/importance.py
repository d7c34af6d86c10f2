"""What decides a score."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go
from scipy.stats import sobol_indices, uniform

from autolr.report import data
from autolr.report.figures.registry import figure
from autolr.report.figures.style import ACCENT, FAINT, TITLES, blank
from autolr.rundir.result import SearchResult

SAMPLES = 1024


class Importance(NamedTuple):
    """Share of the expected losses' variance that a dimension decides.

    Attributes:
        alone: by itself, whatever the others are (first-order Sobol index).
        total: what would be left undecided without it, so with all it does together with others (total index).
    """

    name: str
    alone: float
    total: float


def importances(result: SearchResult) -> list[Importance] | None:
    """Return the importance of each dimension, the most important first; None if too few trials have a score.

    Sobol indices of the loss that the surrogate of all curves expects at the last rung, over the whole space that was
    searched, each dimension drawn evenly on its own scale. Pruned trials count as much as finished ones, for the
    surrogate has seen them.
    """
    fitted = data.fit(result)
    if fitted is None:
        return None
    surrogate, encoding = fitted.surrogate, fitted.encoding
    names = list(encoding.columns)

    def expected(drawn: np.ndarray) -> np.ndarray:
        """Return expected losses, [samples], at even draws of all dimensions, [dimensions, samples]."""
        points = np.zeros((drawn.shape[1], len(encoding)))
        for share, columns in zip(drawn, encoding.columns.values(), strict=True):
            choices = columns.stop - columns.start
            points[:, columns] = np.eye(choices)[(share * choices).astype(int)] if choices > 1 else share[:, None]
        return surrogate.predict(encoding.snap(points))[0]

    if np.var(expected(np.random.default_rng(0).random((len(names), 64)))) < 1e-16:
        return None
    indices = sobol_indices(func=expected, n=SAMPLES, dists=[uniform()] * len(names), rng=0)
    total = np.clip(indices.total_order, 0.0, 1.0)
    alone = np.clip(indices.first_order, 0.0, total)
    found = [Importance(*one) for one in zip(names, alone.tolist(), total.tolist(), strict=True)]
    return sorted(found, key=lambda one: -one.total)


@figure(
    "importance",
    "Importance of each dimension",
    80,
    "Share of the variance of expected losses over the space searched that a dimension decides: Sobol indices of a "
    "Gaussian process like the one that proposes candidates, fitted to the rungs of all trials. It learns from "
    "pruned trials as from finished ones; losses far above the middle count by their logarithm.",
    "Too few trials have a score yet.",
    look_for="which of rate, ratio and rank decides the loss over the space searched",
)
def importance(result: SearchResult) -> go.Figure | None:
    """Share of the loss's variance that each dimension decides, by the surrogate; None with too few trials."""
    found = importances(result)
    if not found:
        return None
    names = [TITLES.get(one.name, one.name) for one in found]
    drawn = blank("share of the variance of expected losses", "", 110 + 46 * len(found))
    for title, shares, colour in (
        ("by itself", [one.alone for one in found], ACCENT),
        ("together with others", [one.total - one.alone for one in found], FAINT),
    ):
        drawn.add_bar(
            x=shares,
            y=names,
            orientation="h",
            name=title,
            marker={"color": colour},
            hovertemplate=f"%{{y}} {title}: %{{x:.0%}}<extra></extra>",
        )
    drawn.update_layout(barmode="stack", showlegend=True, bargap=0.35)
    drawn.update_xaxes(tickformat=".0%", rangemode="tozero")
    drawn.update_yaxes(autorange="reversed")
    return drawn
