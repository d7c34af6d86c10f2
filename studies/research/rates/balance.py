"""The ratio at which W_q and W_v change attention alike, beside the ratio that searches find best.

    python -m studies.research.rates.balance

The first steps of the embedded model on Rotten Tomatoes, at the rule of thumb's rate and at the oracle's best, and of
SmolLM2-135M on completions: δ_q, δ_v and δ_qv of each step (paper 1's Theorem 2), updates by weights, and the λ that
would make δ_v as large as δ_q. Beside it the oracle's best ratio (`research/oracle`), at each lr_v and over all.
"""

from __future__ import annotations

import math
import statistics
from typing import Any

import torch

from autolr.insight import first_steps
from autolr.rundir import records
from autolr.schema.candidate import Candidate
from studies.benchmarks.common import document
from studies.research.common import setting_of
from studies.research.oracle import DATA
from studies.research.oracle.rung_correlation import scores

SMOLLM2 = ["data.max_length=96", "training.batch_size=4", "training.horizon.steps=64"]


def oracle(result: document.Result) -> tuple[float, float]:
    """Tell the best ratio at each lr_v; return lr_v and ratio of the best of all."""
    by_rung = scores(list(records.lines(DATA / "sentiment.jsonl")))
    end = by_rung[max(step for step, _ in by_rung), True]
    for lr_v in sorted({point[0] for point in end}):
        own = {point: loss for point, loss in end.items() if point[0] == lr_v}
        best = min(own, key=own.__getitem__)
        result.row("oracle", lr_v=lr_v, ratio=best[1], rank=best[2], loss=own[best], tried=len(own))
    best = min(end, key=end.__getitem__)
    # Ratios that are as good within the noise of a seed, about 1 %.
    alike = sorted({point[1] for point in end if end[point] < 1.01 * end[best]})
    result.row("oracle", lr_v=best[0], ratio=best[1], loss=end[best], alike=alike, ratios=str(alike))
    result.figure("oracle's best ratio", best[1])
    result.figure("oracle's least ratio within 1 %", alike[0])
    result.figure("oracle's largest ratio within 1 %", alike[-1])
    return best[0], best[1]


def terms(name: str, setting: Any, candidate: Candidate, at: tuple[int, ...], result: document.Result) -> None:
    """Measure a candidate's first steps and tell them."""
    found = first_steps.measure(
        setting.backbone,
        setting.task,
        setting.data.train,
        setting.study.training,
        candidate,
        lr_head=setting.space.lr_head,
        at=at,
    )
    for step in found:
        means = {of: statistics.mean(getattr(step, f"layers_{of}")) for of in ("q", "v", "both")}
        row = {"model": name, "lr_v": candidate.lr_v, "ratio": candidate.ratio, "step": step.step, "loss": step.loss}
        updates = {f"update_{role}": value for role, value in step.updates.items()}
        row |= {**{f"delta_{of}": v for of, v in means.items()}, **updates, "balance": step.balance(candidate.ratio)}
        result.row("step", **{k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in row.items()})
    logs = [math.log(step.balance(candidate.ratio)) for step in found]
    label = f"{name}, {candidate.describe()}"
    result.figure(f"λ of equal change: {label}", math.exp(statistics.mean(logs)))
    result.figure(f"λ of equal change at step {at[-1]}: {label}", math.exp(logs[-1]))


def main() -> None:
    """Measure, tell, write."""
    options = document.parser(__doc__)
    given = options.parse_args()
    result = document.Result("balance", settings={"at": first_steps.AT})
    lr_v, ratio = oracle(result)
    at = (1, 2) if given.quick else (*first_steps.AT, 64)
    setting = setting_of([])
    for candidate in (
        Candidate(lr_v=setting.space.rate, ratio=1.0, rank=8),
        Candidate(lr_v=lr_v, ratio=1.0, rank=8),
        Candidate(lr_v=lr_v, ratio=ratio, rank=8),
    ):
        terms("MiniLM", setting, candidate, at, result)
    setting = setting_of(SMOLLM2, "sft")
    terms(
        "SmolLM2",
        setting,
        Candidate(lr_v=setting.space.rate, ratio=1.0, rank=8),
        at[:2] if given.quick else first_steps.AT,
        result,
    )
    document.deliver(result, torch.device("cpu"), keep=not given.quick, out=given.out)


if __name__ == "__main__":
    main()
