"""Does the pattern's change in the first steps say more of a candidate's end than its loss does? On the oracle.

    python -m studies.research.heads.early_signal [--candidates 32]

Candidates of `oracle/data/sentiment.jsonl` are trained to its first rung again, and their patterns taken on the
way. What is told: Spearman's correlation with the loss at the end of the full run (of averaged weights, select and
confirm together), of the losses at the rungs, of the pattern's change, and of the change once the loss of the same
samples at the same step is known (partial correlation); intervals are bootstraps over candidates.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy.stats import rankdata, spearmanr

from autolr.insight import measures
from autolr.pack.slots import SlotConfig
from autolr.rundir import records
from autolr.schema.candidate import Candidate
from studies.benchmarks.common import document
from studies.research.common import look, setting_of, some, train
from studies.research.oracle import DATA
from studies.research.oracle.measure import GRIDS
from studies.research.oracle.rung_correlation import DIVERGED, scores

AT = (8, 24)
DRAWS = 1000


def partial(x: np.ndarray, y: np.ndarray, known: np.ndarray) -> float:
    """Return Spearman's correlation of x and y once `known` is."""
    a, b, c = (float(spearmanr(*pair).statistic) for pair in ((x, y), (x, known), (y, known)))
    return (a - b * c) / max(np.sqrt((1 - b**2) * (1 - c**2)), 1e-9)


def told(result: document.Result, name: str, statistic: Callable[[np.ndarray], float], count: int) -> None:
    """Add a statistic of candidates, and its 90 % interval."""
    rng = np.random.default_rng(0)
    draws = [statistic(rng.integers(0, count, count)) for _ in range(DRAWS)]
    low, high = np.nanquantile(draws, [0.05, 0.95])
    value = statistic(np.arange(count))
    result.row("correlation", of=name, mean=round(value, 3), low=round(float(low), 3), high=round(float(high), 3))
    result.figure(name, value)


def main() -> None:
    """Train the first steps again, look, tell, write."""
    options = document.parser(__doc__)
    options.add_argument("--candidates", type=int, default=32)
    given = options.parse_args()
    runs = [run for run in records.lines(DATA / "sentiment.jsonl") if run["seed"] == 0]
    by_rung = scores(runs)
    last = max(step for step, _ in by_rung)
    end = by_rung[last, True]
    best = min(end.values())
    points = [p for p in end if end[p] < DIVERGED * best][: 4 if given.quick else given.candidates]
    setting = setting_of(GRIDS["sentiment"]["overrides"])
    base, task = setting.backbone, setting.task
    samples = some(setting.data.validation, 16 if given.quick else 128)
    configs = [
        SlotConfig(
            Candidate(lr_v=v, ratio=ratio, rank=rank).rates(setting.space.lr_head), rank, 0, setting.steps, max(AT)
        )
        for v, ratio, rank in points
    ]
    kept, losses, _ = train(base, setting.study.training, task, setting.data.train, configs, AT)
    start = look(base, task, samples, None, configs[0])
    size = float(np.sqrt((start.of() ** 2).mean()))
    found: dict[str, list[float]] = {}
    for point, config, own, curve in zip(points, configs, kept, losses, strict=True):
        row: dict[str, float] = {}
        for step in AT:
            one = look(base, task, samples, own[step], config)
            row[f"pattern's change at {step}"] = float(np.sqrt(measures.mse(start.of(), one.of()))) / size
            row[f"pattern's turn at {step}"] = 1 - measures.correlation(start.of(), one.of())
            row[f"gini at {step}"] = measures.gini(one.of())
            row[f"loss of these samples at {step}"] = float(one.losses.mean())
            row[f"training loss up to {step}"] = float(np.mean(curve[max(0, step - 10) : step]))
        for (step, averaged), rung in sorted(by_rung.items()):
            if step < last:
                row[f"{'averaged' if averaged else 'raw'} loss at rung {step}"] = rung[point]
        result_row = {"lr_v": point[0], "ratio": point[1], "rank": point[2], "end": end[point], **row}
        found.setdefault("row", []).append(result_row)  # type: ignore[arg-type]
        for name, value in row.items():
            found.setdefault(name, []).append(value)
    rows = found.pop("row")
    ends = np.array([end[point] for point in points])
    result = document.Result("heads_early", settings={"candidates": len(points), "samples": len(samples), "at": AT})
    for row in rows:
        result.row("candidate", **row)  # type: ignore[arg-type]
    count = len(points)
    for name, values in found.items():
        x = np.array(values)
        told(result, name, lambda rows, x=x: float(spearmanr(x[rows], ends[rows]).statistic), count)
    known = np.array(found[f"loss of these samples at {AT[-1]}"])
    for name in (f"pattern's change at {AT[-1]}", f"pattern's turn at {AT[-1]}"):
        x = np.array(found[name])
        told(result, f"{name}, the loss known", lambda rows, x=x: partial(x[rows], ends[rows], known[rows]), count)
        # Too much change is as bad as too little: how far from the middle rank is it?
        apart = np.abs(rankdata(x) - np.median(rankdata(x)))
        told(
            result,
            f"{name}, from the middle",
            lambda rows, x=apart: float(spearmanr(x[rows], ends[rows]).statistic),
            count,
        )
    document.deliver(result, torch.device("cpu"), keep=not given.quick, out=given.out)


if __name__ == "__main__":
    main()
