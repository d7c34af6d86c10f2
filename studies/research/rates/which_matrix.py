"""Which of W_q, W_k and W_v is worth training? Paper 1's claim, on the embedded task, in one pack.

    python -m studies.research.rates.which_matrix [--quick] [--steps 32] [--seeds 3] [--device cuda:0]

q, k, v, qk, qv, kv and qkv are trained side by side for the same number of steps, at one rate for all their matrices:
untuned, the rule of thumb's; and tuned, the best on *validation* of `FACTORS` times the rule's, chosen for each set
by itself. What is told is the loss and accuracy on *test*, as means over seeds with their standard error.

Writes a result beside those of the benchmarks, and its figure as an SVG of the same name.
"""

from __future__ import annotations

import html
import itertools
import math
import statistics
import time
from typing import Any

from scipy import stats

from autolr.data.batches import TokenSet
from autolr.model import adapters
from autolr.pack.pack import Pack
from autolr.pack.slots import SlotConfig
from autolr.schema.candidate import Candidate
from autolr.schema.study import Study
from autolr.tuner.setting import Setting, choose_device, read_setting
from studies import SENTIMENT
from studies.benchmarks.common import document
from studies.benchmarks.common.document import Result

TARGETS = ("q", "k", "v", "qk", "qv", "kv", "qkv")
FACTORS = (1.0, 3.0, 9.0)
RANK = 8
# What the paper says: the loss of the first is below that of the second.
CLAIMS = (("v", "k"), ("v", "q"), ("qv", "qk"), ("qv", "qkv"), ("v", "qk"), ("kv", "qk"))


def train(setting: Setting, steps: int, seeds: int, factors: tuple[float, ...]) -> list[dict[str, Any]]:
    """Train every set at every rate with every seed in one pack, and score them at the end."""
    points = list(itertools.product(TARGETS, factors, range(seeds)))
    rows = []
    validation, test = setting.data.validation, setting.data.test
    data = TokenSet(validation.ids + test.ids, validation.labels + test.labels, validation.pad_id)
    parts = {"validation": slice(0, len(validation)), "test": slice(len(validation), None)}
    with Pack(
        setting.backbone,
        setting.study.training,
        setting.task,
        setting.data.train,
        capacity=len(points),
        max_rank=RANK,
        lora_alpha=setting.study.method.lora_alpha,
    ) as pack:
        slots = []
        for targets, factor, seed in points:
            candidate = Candidate(lr_v=setting.space.rate * factor, ratio=1, rank=RANK, targets=targets)
            slots.append(pack.admit(SlotConfig(candidate.rates(setting.space.lr_head), RANK, seed, steps)))
        for step in range(steps):
            pack.step()
            if step % 16 == 15:
                print(f"step {step + 1} of {steps} of {len(slots)} slots", flush=True)
        losses, said = pack.evaluate(slots, data, averaged=True)
        for place, (targets, factor, seed) in enumerate(points):
            row: dict[str, Any] = {"targets": targets, "factor": factor, "seed": seed}
            row["parameters"] = adapters.parameters(setting.backbone, targets, RANK)["adapter"]
            for part, where in parts.items():
                row[f"{part}_loss"] = float(losses[place, where].mean())
                row[f"{part}_{setting.task.metric}"] = setting.task.score(said[place, where], data.labels[where])
            rows.append(row)
    return rows


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return mean and standard error over seeds of each set, untuned and tuned."""
    found = []
    for targets in TARGETS:
        own = [row for row in rows if row["targets"] == targets]
        factors = sorted({row["factor"] for row in own})
        best = min(factors, key=lambda f: statistics.mean(r["validation_loss"] for r in own if r["factor"] == f))
        for tuned, factor in ((False, factors[0]), (True, best)):
            runs = sorted((row for row in own if row["factor"] == factor), key=lambda row: row["seed"])
            losses = [row["test_loss"] for row in runs]
            found.append(
                {
                    "targets": targets,
                    "tuned": tuned,
                    "factor": factor,
                    "parameters": runs[0]["parameters"],
                    "losses": losses,
                    "loss": statistics.mean(losses),
                    "error": statistics.stdev(losses) / len(losses) ** 0.5 if len(losses) > 1 else 0.0,
                    "accuracy": statistics.mean(row["confirm_accuracy"] for row in runs),
                }
            )
    return found


def claim(found: list[dict[str, Any]], better: str, worse: str, tuned: bool) -> tuple[float, float]:
    """Return how much lower the loss of the first set is, and half its 90 % interval over seeds."""
    first, second = (
        next(row["losses"] for row in found if row["targets"] == name and row["tuned"] == tuned)
        for name in (better, worse)
    )
    differences = [b - a for a, b in zip(first, second, strict=True)]
    count = len(differences)
    if count < 2:
        return differences[0], math.inf
    half = float(stats.t.ppf(0.95, count - 1)) * statistics.stdev(differences) / count**0.5
    return statistics.mean(differences), half


def figure(found: list[dict[str, Any]]) -> str:
    """Return an SVG: a row for each set, its loss untuned (hollow) and tuned (filled), with two standard errors."""
    left, width, row_height, top = 60, 460, 34, 46
    low = min(row["loss"] - 2 * row["error"] for row in found)
    high = max(row["loss"] + 2 * row["error"] for row in found)
    margin = 0.05 * (high - low or 1.0)
    low, high = low - margin, high + margin

    def x(loss: float) -> float:
        return round(left + width * (loss - low) / (high - low), 1)

    height = top + row_height * len(TARGETS) + 46
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 20} {height}" '
        'font-family="system-ui, sans-serif" font-size="13" role="img">',
        "<title>Confirm loss of each set of trained matrices</title>",
        f'<rect width="{left + width + 20}" height="{height}" fill="#ffffff"/>',
        f'<text x="{left}" y="20">Confirm loss after the same steps; hollow: rule of thumb, filled: tuned</text>',
    ]
    for number in range(5):
        loss = low + (high - low) * number / 4
        lines.append(
            f'<line x1="{x(loss)}" x2="{x(loss)}" y1="{top - 12}" y2="{height - 36}" stroke="#d8dee4"/>'
            f'<text x="{x(loss)}" y="{height - 16}" text-anchor="middle" fill="#57606a">{loss:.3f}</text>'
        )
    for place, targets in enumerate(TARGETS):
        y = top + row_height * place + 6
        lines.append(f'<text x="{left - 14}" y="{y + 5}" text-anchor="end">{html.escape(targets)}</text>')
        for row in (row for row in found if row["targets"] == targets):
            at, fill = y + (6 if row["tuned"] else -6), "#0969da" if row["tuned"] else "#ffffff"
            ends = x(row["loss"] - 2 * row["error"]), x(row["loss"] + 2 * row["error"])
            lines.append(
                f'<line x1="{ends[0]}" x2="{ends[1]}" y1="{at}" y2="{at}" stroke="#0969da" stroke-width="1.5"/>'
                f'<circle cx="{x(row["loss"])}" cy="{at}" r="4.5" fill="{fill}" stroke="#0969da" stroke-width="1.5"/>'
            )
    return "\n".join([*lines, "</svg>"]) + "\n"


def main() -> None:
    """Train, tell, write."""
    options = document.parser(__doc__)
    options.add_argument("--steps", type=int, default=32)
    options.add_argument("--seeds", type=int, default=3)
    arguments = options.parse_args()
    steps, seeds = (2, 1) if arguments.quick else (arguments.steps, arguments.seeds)
    factors = FACTORS[:1] if arguments.quick else FACTORS
    device = choose_device(arguments.device)
    few = ["data.max_eval_samples=40"] if arguments.quick else ["data.max_eval_samples=400"]
    setting = read_setting(Study.load(SENTIMENT, few), device)
    start = time.perf_counter()
    rows = train(setting, steps, seeds, factors)
    seconds = time.perf_counter() - start
    found = summary(rows)
    result = Result(
        "phenomenon",
        settings={
            "steps": steps,
            "seeds": seeds,
            "factors": list(factors),
            "rule": setting.space.rate,
            "rank": RANK,
            "lr_head": setting.space.lr_head,
            "precision": setting.backbone.precision,
            "examples": {"validation": len(setting.data.validation), "test": len(setting.data.test)},
            "seconds": round(seconds, 1),
        },
    )
    result.rows += [{"kind": "run", **row} for row in rows]
    for row in found:
        shown = {key: value for key, value in row.items() if key != "losses"}
        result.row("set", **{k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in shown.items()})
        result.figure(f"{row['targets']} {'tuned' if row['tuned'] else 'untuned'} test loss", row["loss"])
    for (better, worse), tuned in itertools.product(CLAIMS, (False, True)):
        gain, half = claim(found, better, worse, tuned)
        name = f"{better} below {worse}, {'tuned' if tuned else 'untuned'}"
        holds = "holds" if gain > half else "does not hold" if gain < -half else "is not shown"
        row = {"gain": round(gain, 4), **({"half_interval": round(half, 4)} if math.isfinite(half) else {})}
        result.row("claim", claim=name, **row, verdict=holds)
        result.figure(f"gain of {name}", gain)
    path = document.deliver(result, device, keep=not arguments.quick, out=arguments.out)
    path.with_suffix(".svg").write_text(figure(found), encoding="utf-8")


if __name__ == "__main__":
    main()
