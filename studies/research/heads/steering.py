"""Steering: do heads that learn at rates by their use learn better than at the same rates in another order?

    python -m studies.research.heads.steering [--steps 96] [--seeds 3]

The candidate of `space.guide=heads` against the same rates spread over randomly permuted heads, and against one
rate for all, side by side in a pack on the embedded task. Told are losses on *confirm* of
averaged weights, and where the guided one stands among the permuted.
"""

from __future__ import annotations

import statistics

import numpy as np
import torch
from scipy import stats

from autolr.analysis import guide
from autolr.candidate import Candidate
from autolr.pack.slots import SlotConfig
from studies.benchmarks.common import document
from studies.research.common import look, setting_of, some, train

RATES, RATIO, RANK, PERMUTED = (4e-3,), 2.0, 8, 5


def main() -> None:
    """Look, train, tell, write."""
    options = document.parser(__doc__)
    options.add_argument("--steps", type=int, default=96)
    options.add_argument("--seeds", type=int, default=3)
    given = options.parse_args()
    steps, seeds = (4, 1) if given.quick else (given.steps, given.seeds)
    setting = setting_of([])
    base, task = setting.backbone, setting.task
    judge = some(setting.data.confirm, 40 if given.quick else 300)
    found = look(
        base, task, some(setting.data.train, 32 if given.quick else guide.SAMPLES), None, SlotConfig({}, 1, 0, 1)
    )
    values = guide.factors(found.of())
    arms: dict[str, dict[str, list[float]]] = {"one rate": {}, "heads": guide.spread(base, values, found.layers)}
    arms["heads, the other way"] = guide.spread(base, 1 / values, found.layers)
    for number in range(PERMUTED):
        mixed = np.random.default_rng(number).permutation(values.ravel()).reshape(values.shape)
        arms[f"permuted {number}"] = guide.spread(base, mixed, found.layers)
    result = document.Result(
        "heads_steering",
        settings={"rates": RATES, "ratio": RATIO, "rank": RANK, "steps": steps, "seeds": seeds, "judged": len(judge)},
    )
    result.row("multiples", lowest=float(values.min()), highest=float(values.max()), values=values.round(3).tolist())
    points = [(rate, name, seed) for rate in RATES for name in arms for seed in range(seeds)]
    configs = [
        SlotConfig(
            Candidate(lr_v=rate, ratio=RATIO, rank=RANK).rates(setting.space.lr_head),
            RANK,
            seed,
            steps,
            heads=arms[name],
        )
        for rate, name, seed in points
    ]
    scores = train(base, setting.study.training, task, setting.data.train, configs, (), judge)[2]
    losses: dict[tuple[float, str], list[float]] = {}
    for (rate, name, seed), score in zip(points, scores, strict=True):
        result.row("run", rate=rate, arm=name, seed=seed, loss=score)
        losses.setdefault((rate, name), []).append(score)
    for rate in RATES:
        means = {name: statistics.mean(losses[rate, name]) for name in arms}
        permuted = [means[name] for name in arms if name.startswith("permuted")]
        for name in ("one rate", "heads", "heads, the other way"):
            result.figure(f"{name} at {rate:g}", means[name])
        result.figure(f"permuted at {rate:g}", statistics.mean(permuted))
        result.figure(
            f"permuted that are better than heads at {rate:g}", sum(one < means["heads"] for one in permuted)
        )
        for other in ("one rate", "permuted"):
            rows = [losses[rate, name] for name in arms if name.startswith(other)]
            # Paired by seed: all arms of a seed have the same adapter and batches.
            against = [statistics.mean(own) for own in zip(*rows, strict=True)]
            gains = [b - a for a, b in zip(losses[rate, "heads"], against, strict=True)]
            row = {"gain": round(statistics.mean(gains), 4)}
            if len(gains) > 1:
                error = statistics.stdev(gains) / len(gains) ** 0.5
                row["half_interval"] = round(float(stats.t.ppf(0.95, len(gains) - 1)) * error, 4)
            result.row("difference", rate=rate, better="heads", worse=other, **row)
            result.figure(f"gain of heads over {other} at {rate:g}", row["gain"])
    document.deliver(result, torch.device("cpu"), keep=not given.quick, out=given.out)


if __name__ == "__main__":
    main()
