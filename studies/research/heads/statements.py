"""Paper 2's statements on the embedded models: how heads are used before, during and after fine-tuning.

    python -m studies.research.heads.statements                    # all-MiniLM-L6-v2, Rotten Tomatoes, classification
    python -m studies.research.heads.statements --model smollm2    # SmolLM2-135M, the same as completions

One candidate is trained with several seeds, and its pattern taken at steps on the way. Told are: how unevenly heads
are used before and after (Gini, variation, kurtosis; intervals over samples), how fast the pattern changes in each
stretch of the training (root mean squared change a step, by the size of the first pattern), and how alike before
and after are. Of SmolLM2 also: what v alone and k alone come to, each at the better of two rates.
"""

from __future__ import annotations

import itertools
import statistics
from typing import Any

import numpy as np
import torch

from autolr.insight import measures
from autolr.pack.slots import SlotConfig
from autolr.schema.candidate import Candidate
from studies.benchmarks.common import document
from studies.research.common import Setting, look, setting_of, some, train

SETTINGS: dict[str, dict[str, Any]] = {
    "minilm": {
        "study": "sentiment",
        "overrides": [],
        "candidate": Candidate(lr_v=4e-3, ratio=4.0, rank=8),
        "at": (0, 25, 50, 100, 200, 300, 400),
        "samples": 200,
        "seeds": 2,
    },
    "smollm2": {
        "study": "sft",
        "overrides": ["data.max_length=96", "training.batch_size=4", "training.horizon.steps=240"],
        "candidate": Candidate(lr_v=2e-3, ratio=4.0, rank=8),
        "at": (0, 15, 30, 60, 120, 240),
        "samples": 48,
        "seeds": 1,
    },
}
QUICK = {"at": (0, 2, 4), "samples": 8, "seeds": 1}


def statements(setting: Setting, wanted: dict[str, Any], result: document.Result) -> None:
    """Train, look, and tell."""
    base, task, at = setting.backbone, setting.task, wanted["at"]
    samples = some(setting.data.test, wanted["samples"])
    candidate: Candidate = wanted["candidate"]
    rates = candidate.rates(setting.space.lr_head)
    configs = [SlotConfig(rates, candidate.rank, seed, max(at)) for seed in range(wanted["seeds"])]
    kept, losses, _ = train(base, setting.study.training, task, setting.data.train, configs, at)
    speeds: dict[str, list[float]] = {}
    for config, own, curve in zip(configs, kept, losses, strict=True):
        patterns = {step: look(base, task, samples, own[step], config) for step in at}
        first, last = patterns[at[0]], patterns[at[-1]]
        for kind in ("absolute", "signed"):
            size = float(np.sqrt((first.of(kind) ** 2).mean()))
            for step, one in patterns.items():
                found = {n: measures.interval([one], s, kind).model_dump() for n, s in measures.STATISTICS.items()}
                row = {"seed": config.seed, "of": kind, "step": step, "loss": float(one.losses.mean()), **found}
                row["correlation"] = measures.correlation(first.of(kind), one.of(kind))
                result.row("pattern", **row, pattern=one.of(kind).round(8).tolist())
            for before, after in itertools.pairwise(at):
                moved = float(np.sqrt(measures.mse(patterns[before].of(kind), patterns[after].of(kind))))
                # A pattern shrinks with the loss: by its size at the time, what moves is how heads share.
                shares = [patterns[s].of(kind) / np.abs(patterns[s].of(kind)).sum() for s in (before, after)]
                turned = float(np.abs(shares[0] - shares[1]).sum()) / 2
                row = {"of": kind, "from": before, "to": after, "seed": config.seed}
                row |= {"moved": moved / size / (after - before), "turned": turned / (after - before)}
                result.row("speed", **row)
                if kind == "absolute":
                    for name in ("moved", "turned"):
                        speeds.setdefault(f"{name} a step, {before} to {after}", []).append(row[name])
        for name, statistic in measures.STATISTICS.items():
            for moment, one in (("before", first), ("after", last)):
                result.figure(f"{name} {moment}, seed {config.seed}", statistic(one.of()))
            # Both patterns are of the same samples: is the difference beyond them?
            change = measures.interval([first, last], lambda a, b, s=statistic: s(b) - s(a))
            result.row("change", of=name, seed=config.seed, **change.model_dump())
            result.figure(f"{name} change, seed {config.seed}, low", change.low)
            result.figure(f"{name} change, seed {config.seed}, high", change.high)
        result.figure(
            f"correlation of before and after, seed {config.seed}", measures.correlation(first.of(), last.of())
        )
        result.row("training", seed=config.seed, first=statistics.mean(curve[:10]), last=statistics.mean(curve[-10:]))
    for name, values in speeds.items():
        result.figure(name, statistics.mean(values))


def v_and_k(setting: Setting, steps: int, result: document.Result) -> None:
    """Train v alone and k alone, each at two rates, and compare the better ones."""
    points = list(itertools.product(("v", "k"), (3.0, 9.0)))
    configs = [
        SlotConfig(Candidate(lr_v=setting.space.rate * f, ratio=1, rank=8, targets=t).rates(0.0), 8, 0, steps)
        for t, f in points
    ]
    judge = some(setting.data.test, 64)
    scores = train(setting.backbone, setting.study.training, setting.task, setting.data.train, configs, (), judge)[2]
    best: dict[str, float] = {}
    for (targets, factor), score in zip(points, scores, strict=True):
        result.row("matrix", targets=targets, factor=factor, loss=score, steps=steps)
        best[targets] = min(score, best.get(targets, float("inf")))
    for targets, loss in best.items():
        result.figure(f"{targets} alone, loss", loss)


def main() -> None:
    """Train, tell, write."""
    options = document.parser(__doc__)
    options.add_argument("--model", choices=SETTINGS, default="minilm")
    given = options.parse_args()
    wanted = {**SETTINGS[given.model], **(QUICK if given.quick else {})}
    setting = setting_of(wanted["overrides"], wanted["study"])
    shown = {key: value for key, value in wanted.items() if key != "candidate"}
    result = document.Result(
        f"heads_{given.model}",
        settings={**shown, "candidate": wanted["candidate"].model_dump(), "rule": setting.space.rate},
    )
    statements(setting, wanted, result)
    if given.model == "smollm2":
        v_and_k(setting, 2 if given.quick else 24, result)
    document.deliver(result, torch.device("cpu"), keep=not given.quick, out=given.out)


if __name__ == "__main__":
    main()
