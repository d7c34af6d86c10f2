"""What a search's curves say about candidates that were not tried."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from autolr import display
from autolr.candidate import Candidate
from autolr.errors import RunError
from autolr.search.folder import RunFolder
from autolr.search.result import SearchResult
from autolr.search.sampler import Encoding, observations
from autolr.search.surrogate import ENOUGH, Surrogate

LEVEL = 0.90
# Above this share of what was unknown before the search, a guess is no prediction.
FAR = 0.8


@dataclass(frozen=True)
class Prediction:
    """The select loss that a trial of a candidate would end at.

    Attributes:
        step: where trials end; the loss is that of the averaged weights there.
        loss: the median expected.
        low, high: an interval that holds a new trial's loss with 90 % chance.
        nearest: the candidate tried that is most like it.
    """

    candidate: Candidate
    step: int
    loss: float
    low: float
    high: float
    nearest: Candidate

    def describe(self) -> str:
        """Return the prediction in one line."""
        return (
            f"{self.candidate.describe()}: select loss {display.loss(self.loss)} at step {self.step} of a trial, "
            f"90% interval {display.loss(self.low)} to {display.loss(self.high)}"
        )


def predict(result: SearchResult, candidate: Candidate) -> Prediction:
    """Predict what a trial of a candidate would score, from all curves of a search.

    Raises:
        RunError: too few trials, W_k would be trained, or the candidate is far from all that was tried.
    """
    space, kinds = result.study.space, result.study.method.kind
    if candidate.targets not in space.targets or candidate.kind not in kinds:
        searched = ", ".join([*space.targets, *kinds])
        raise RunError(f"{result.folder}: {candidate.describe()} is not what was searched, which is {searched}")
    folder = RunFolder(result.folder)
    trials = [t for t in folder.trials() if t.intermediate_values]
    if len(trials) < ENOUGH:
        raise RunError(f"{result.folder}: {len(trials)} trials have a score, a prediction needs {ENOUGH}; search on")
    encoding = Encoding(trials[-1].distributions, {})
    params = candidate.model_dump(include=set(encoding.space))
    for name in (name for name in ("lr_v", "ratio", "rank", "rho") if name in encoding.space):
        distribution = encoding.space[name]
        choices: Any = getattr(distribution, "choices", None)
        low = float(min(choices) if choices else distribution.low)  # type: ignore[attr-defined]
        high = float(max(choices) if choices else distribution.high)  # type: ignore[attr-defined]
        if not low <= params[name] <= high:
            raise RunError(
                f"{result.folder}: {name} {params[name]:g} lies outside what was searched, {low:g} to {high:g}; "
                "search a wider space to know"
            )
    known = [trial for trial in trials if encoding.holds(trial)]
    surrogate = Surrogate.fit(*observations(known, encoding, 1.0))
    point = encoding.encode(params)[None]
    tried = np.array([encoding.encode(trial.params) for trial in known])
    nearest = candidate.model_copy(update=known[int(np.linalg.norm(tried - point, axis=1).argmin())].params)
    unknown = float(surrogate.unknown(point)[0])
    if unknown > FAR:
        raise RunError(
            f"{result.folder}: {candidate.describe()} is far from all that was tried (the nearest is "
            f"{nearest.describe()}), and the curves say nothing about it; search on with more --trials"
        )
    levels = np.array([0.5, (1 - LEVEL) / 2, (1 + LEVEL) / 2])
    loss, low, high = surrogate.quantiles(point, levels)[:, 0].tolist()
    return Prediction(candidate, int(surrogate.last), loss, low, high, nearest)
