"""What a new search takes over from earlier ones.

A winner's lr_v is carried to another model in units of the rule of thumb's rate. Its ratio and rank stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from autolr.errors import RunError
from autolr.rundir.result import SearchResult
from autolr.schema.candidate import Candidate
from autolr.schema.study import WarmStart
from autolr.tuner.propose import baselines
from autolr.tuner.propose.baselines import Baseline
from autolr.tuner.propose.encoding import PRIOR_SD, Prior
from autolr.tuner.propose.space import SearchSpace

# However well earlier winners agree, the best of a new search may be this factor away.
MIN_SD = math.log(2.0)


def earlier(run: str | Path) -> WarmStart:
    """Return the winner of a finished search, as a prior for others.

    Raises:
        RunError: the folder is no run folder, or the search is not finished.
    """
    result = SearchResult.load(run)
    if result.recipe is None:
        raise RunError(f"--warm-start {run}: this search is not finished. Resume it with: autolr search --out {run}")
    default = next((trial.candidate for trial in result.trials if trial.baseline == Baseline.DEFAULT), None)
    scores = result.recipe.evidence.scores if result.recipe.evidence else []
    default = default or next((s.candidate for s in scores if Baseline.DEFAULT.is_in(s.label)), None)
    if default is None:
        raise RunError(
            f"--warm-start {run}: it has no trial of the default, which scales its rates. Choose another run."
        )
    winner = result.recipe.candidate
    return WarmStart(
        source=Path(run).name, rate=float(f"{winner.lr_v / default.lr_v:.4g}"), ratio=winner.ratio, rank=winner.rank
    )


def carried(winner: WarmStart, space: SearchSpace) -> Candidate:
    """Return an earlier winner as a candidate of this space, moved to the bounds if it is outside."""
    values = {"lr_v": winner.rate * space.rate, "ratio": winner.ratio, "rank": winner.rank, "loraplus_lr_ratio": 1.0}
    point: dict[str, Any] = {
        name: _nearest(space, name, value) for name, value in values.items() if name in space.distributions and value
    }
    default = {**baselines.default(space).model_dump(), **space.fixed, **point}
    return Candidate(**{**default, "rank": int(default["rank"])})


def priors(winners: Sequence[WarmStart], space: SearchSpace) -> dict[str, Prior]:
    """Return where the best is expected: around the rule of thumb, or around earlier winners.

    The standard deviation is that of several winners' logarithms.
    """
    if not winners:
        return {"lr_v": Prior(space.rate, PRIOR_SD)}
    values_of = {"lr_v": [w.rate * space.rate for w in winners], "ratio": [w.ratio for w in winners]}
    result = {}
    for name, values in values_of.items():
        logs = np.log(values)
        # A single winner says less than two that agree.
        spread = float(logs.std(ddof=1)) if len(logs) > 1 else (MIN_SD + PRIOR_SD) / 2
        result[name] = Prior(float(np.exp(logs.mean())), max(MIN_SD, spread))
    return result


def _nearest(space: SearchSpace, name: str, value: float) -> float:
    distribution = space.distributions[name]
    choices = getattr(distribution, "choices", None)
    if choices is not None:
        return float(min(choices, key=lambda choice: (abs(math.log(choice / value)), choice)))
    return float(min(max(value, distribution.low), distribution.high))  # type: ignore[attr-defined]
