"""What earlier searches say before a new one begins.

A winner is carried to another model as rates go by the rule of thumb: by its lr_v in units of the rule's
rate there. Its ratio and rank are taken as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from autolr.candidate import Candidate
from autolr.errors import RunError
from autolr.search import baselines
from autolr.search.baselines import Baseline
from autolr.search.result import SearchResult
from autolr.search.sampler import PRIOR_SD, Prior
from autolr.search.space import SearchSpace
from autolr.study import Earlier

# However well earlier winners agree, the best of a new search may be this factor away.
LEAST_SD = math.log(2.0)


def earlier(run: str | Path) -> Earlier:
    """Return what a finished search has found, as a prior for others.

    Raises:
        RunError: it is no run folder, or the search is not finished.
    """
    result = SearchResult.load(run)
    if result.recipe is None:
        raise RunError(f"--prior {run}: this search is not finished; go on with it: autolr search --out {run}")
    rule = next((trial.candidate for trial in result.trials if trial.rule == Baseline.DEFAULT), None)
    scores = result.recipe.evidence.scores if result.recipe.evidence else []
    rule = rule or next((s.candidate for s in scores if Baseline.DEFAULT.is_in(s.label)), None)
    if rule is None:
        raise RunError(f"--prior {run}: it holds no trial of the rule of thumb, by which rates are carried over")
    winner = result.recipe.candidate
    return Earlier(
        source=Path(run).name, rate=float(f"{winner.lr_v / rule.lr_v:.4g}"), ratio=winner.ratio, rank=winner.rank
    )


def carried(found: Earlier, space: SearchSpace) -> Candidate:
    """Return an earlier winner as a candidate of this space, moved to its bounds where it lies outside."""
    told = {"lr_v": found.rate * space.rate, "ratio": found.ratio, "rank": found.rank, "rho": 1.0}
    point: dict[str, Any] = {
        name: _nearest(space, name, value) for name, value in told.items() if name in space.distributions and value
    }
    rule = {**baselines.default(space).model_dump(), **space.fixed, **point}
    return Candidate(**{**rule, "rank": int(rule["rank"])})


def priors(found: Sequence[Earlier], space: SearchSpace) -> dict[str, Prior]:
    """Return where the best is expected: around the rule of thumb, or around the earlier winners.

    With several winners the spread of their logarithms says how far around.
    """
    if not found:
        return {"lr_v": Prior(space.rate, PRIOR_SD)}
    told = {"lr_v": [one.rate * space.rate for one in found], "ratio": [one.ratio for one in found]}
    result = {}
    for name, values in told.items():
        logs = np.log(values)
        # A single winner says less than two that agree.
        spread = float(logs.std(ddof=1)) if len(logs) > 1 else (LEAST_SD + PRIOR_SD) / 2
        result[name] = Prior(float(np.exp(logs.mean())), max(LEAST_SD, spread))
    return result


def _nearest(space: SearchSpace, name: str, value: float) -> float:
    distribution = space.distributions[name]
    choices = getattr(distribution, "choices", None)
    if choices is not None:
        return float(min(choices, key=lambda choice: (abs(math.log(choice / value)), choice)))
    return float(min(max(value, distribution.low), distribution.high))  # type: ignore[attr-defined]
