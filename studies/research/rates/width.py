"""Does the best ratio λ grow with the width, as paper 1's Theorem 2 says? On models of random weights.

    python -m studies.research.rates.width

Two-layer BERTs of widths 32 to 256 (heads of 16), whose matrices are drawn with variance 1 / d_in, embeddings with
variance 1, so that nothing but the width differs. The task: are there more tokens of one half of the vocabulary
than of the other? W_q, W_v and the head are trained on a grid of lr_v and lr_q, and a quadratic in their logarithms
is fitted to the losses near the best. Told are the best rates and their ratio by width, the slopes of their
logarithms with 90 % intervals (bootstraps over seeds), and beside it the λ at which the first steps of W_q and W_v
would change the attention's output alike.

Theorem 2: lr_q falls as 1/n, lr_v stays, so λ grows as n: slopes -1, 0 and 1.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from autolr.data.batches import TokenSet
from autolr.insight import first_steps
from autolr.model import backbone, loading
from autolr.model.backbone import Backbone
from autolr.pack.slots import SlotConfig
from autolr.schema.candidate import Candidate
from autolr.schema.training import Training
from studies.benchmarks.common import document
from studies.research.common import task_of, train

WIDTHS = (32, 64, 128, 256)
LR_V, LR_Q = (1e-3, 4e-3, 1.6e-2, 6.4e-2), (2.5e-4, 1e-3, 4e-3, 1.6e-2, 6.4e-2)
VOCABULARY, TOKENS, RANK, STEPS, SEEDS, LR_HEAD = 16, 11, 8, 120, 6, 1e-3
DRAWS = 200
TRAINING = Training(batch_size=16, lr_scheduler_type="linear", precision="fp32")


def model_of(width: int, seed: int = 0) -> Backbone:
    """Return a random model of a width."""
    config = AutoConfig.for_model(
        "bert",
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=width // 16,
        vocab_size=VOCABULARY + 2,
        max_position_embeddings=TOKENS + 1,
        pad_token_id=0,
        num_labels=2,
    )
    loading.disable_dropout(config)
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.normal_(std=module.in_features**-0.5)
            elif isinstance(module, torch.nn.Embedding):
                module.weight.normal_()
    model.eval().requires_grad_(False)
    head = frozenset(n for n, _ in model.named_parameters() if n.startswith("classifier"))
    return backbone.from_model(model, None, f"bert-{width}", head)


def examples(count: int, seed: int) -> TokenSet:
    """Return sequences of random tokens, and of which half of the vocabulary there are more."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(2, VOCABULARY + 2, (count, TOKENS))
    labels = ((ids >= 2 + VOCABULARY // 2).sum(1) > TOKENS // 2).astype(int)
    return TokenSet(ids.tolist(), labels.tolist(), 0)


def best(points: np.ndarray, losses: np.ndarray) -> tuple[float, float]:
    """Return where a quadratic through the better half of the losses is lowest in the grid: log lr_v, log lr_q."""
    kept = losses <= np.median(losses)
    v, q = points[kept].T
    design = np.column_stack([v * v, q * q, v * q, v, q, np.ones(kept.sum())])
    fit = np.linalg.lstsq(design, losses[kept], rcond=None)[0]
    grid = [np.linspace(points[:, i].min(), points[:, i].max(), 121) for i in (0, 1)]
    a, b = np.meshgrid(*grid, indexing="ij")
    values = fit[0] * a * a + fit[1] * b * b + fit[2] * a * b + fit[3] * a + fit[4] * b
    place = np.unravel_index(values.argmin(), values.shape)
    return float(a[place]), float(b[place])


def slope(widths: list[int], logs: list[float]) -> float:
    """Return the slope of logarithms over that of the width."""
    return float(np.polyfit(np.log(widths), logs, 1)[0])


def main() -> None:
    """Train, fit, tell, write."""
    options = document.parser(__doc__)
    given = options.parse_args()
    widths = list(WIDTHS[:2] if given.quick else WIDTHS)
    length, seeds = (4, 1) if given.quick else (STEPS, SEEDS)
    task = task_of("classification", ["fewer", "more"], None)
    data, judge = examples(2000, 1), examples(400, 2)
    result = document.Result(
        "width",
        settings={"lr_v": LR_V, "lr_q": LR_Q, "steps": length, "seeds": seeds, "rank": RANK, "lr_head": LR_HEAD},
    )
    found: dict[str, list[float]] = {"lr_v": [], "lr_q": [], "ratio": [], "balance": []}
    drawn: list[np.ndarray] = []
    draws = np.random.default_rng(0).integers(0, seeds, (DRAWS, seeds))
    for width in widths:
        base = model_of(width)
        grid = list(itertools.product(LR_V, LR_Q))
        configs = [
            SlotConfig({"q": q, "k": 0.0, "v": v, "head": LR_HEAD}, RANK, seed, length)
            for v, q in grid
            for seed in range(seeds)
        ]
        scores = np.array(train(base, TRAINING, task, data, configs, (), judge)[2]).reshape(len(grid), seeds)
        scores = np.nan_to_num(scores, nan=10.0)
        losses = scores.mean(1)
        for (v, q), own in zip(grid, scores.tolist(), strict=True):
            result.row("cell", width=width, lr_v=v, lr_q=q, losses=own)
        points = np.log(np.array(grid))
        v, q = best(points, losses)
        drawn.append(np.array([best(points, scores[:, draw].mean(1)) for draw in draws]))
        at = grid[int(losses.argmin())]
        balance = [
            np.mean(
                [
                    math.log(s.balance(1.0))
                    for s in first_steps.measure(base, task, data, TRAINING, c, lr_head=LR_HEAD, seed=n)
                ]
            )
            for n, c in enumerate([Candidate(lr_v=math.exp(v), ratio=1.0, rank=RANK)] * seeds)
        ]
        for name, value in (("lr_v", v), ("lr_q", q), ("ratio", v - q), ("balance", float(np.mean(balance)))):
            found[name].append(value)
            result.figure(f"{name} at width {width}", math.exp(value))
        result.row("width", width=width, lowest=float(losses.min()), cell_lr_v=at[0], cell_lr_q=at[1])
    for name, logs in found.items():
        result.figure(f"slope of {name}", slope(widths, logs))
    rates = np.array(drawn)  # [widths, draws, lr_v and lr_q]
    for name, logs in (("lr_v", rates[..., 0]), ("lr_q", rates[..., 1]), ("ratio", rates[..., 0] - rates[..., 1])):
        slopes = [slope(widths, logs[:, draw]) for draw in range(DRAWS)]
        low, high = np.quantile(slopes, [0.05, 0.95])
        result.figure(f"slope of {name}, low", float(low))
        result.figure(f"slope of {name}, high", float(high))
    path = document.deliver(result, torch.device("cpu"), keep=not given.quick, out=given.out)
    path.with_suffix(".svg").write_text(figure(widths, found), encoding="utf-8")


def figure(widths: list[int], found: dict[str, list[float]]) -> str:
    """Return an SVG: λ at the best rates (filled), λ that balances the steps (hollow), and the slope of Theorem 2."""
    left, top, across, down = 60, 40, 420, 260
    lines = {name: [value / math.log(2) for value in found[name]] for name in ("ratio", "balance")}
    theory = [lines["ratio"][0] + math.log2(width / widths[0]) for width in widths]
    values = [*itertools.chain(*lines.values()), *theory]
    low, high = math.floor(min(values)), math.ceil(max(values)) + 1e-9

    def at(width: int, value: float) -> str:
        x = left + across * math.log(width / widths[0]) / math.log(widths[-1] / widths[0])
        return f"{x:.1f},{top + down * (high - value) / (high - low):.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + across + 40} {top + down + 60}" '
        'font-family="system-ui, sans-serif" font-size="13" role="img">',
        "<title>The best ratio by the model's width</title>",
        f'<rect width="{left + across + 40}" height="{top + down + 60}" fill="#ffffff"/>',
        '<text x="16" y="20">λ of the best rates (filled), λ of equal steps (hollow), Theorem 2 (dotted)</text>',
    ]
    for power in range(math.ceil(low), math.floor(high) + 1, max(1, round((high - low) / 8))):
        y = at(widths[0], power).split(",")[1]
        parts.append(f'<line x1="{left}" x2="{left + across}" y1="{y}" y2="{y}" stroke="#d8dee4"/>')
        parts.append(
            f'<text x="{left - 8}" y="{float(y) + 4:.1f}" text-anchor="end" fill="#57606a">{2.0**power:g}</text>'
        )
    for width in widths:
        x = at(width, low).split(",")[0]
        parts.append(f'<text x="{x}" y="{top + down + 22}" text-anchor="middle" fill="#57606a">{width}</text>')
    dotted = " ".join(at(width, value) for width, value in zip(widths, theory, strict=True))
    parts.append(f'<polyline points="{dotted}" fill="none" stroke="#57606a" stroke-dasharray="3 4"/>')
    for name, fill in (("ratio", "#0969da"), ("balance", "#ffffff")):
        points = [at(width, value) for width, value in zip(widths, lines[name], strict=True)]
        parts.append(f'<polyline points="{" ".join(points)}" fill="none" stroke="#0969da"/>')
        for point in points:
            x, y = point.split(",")
            parts.append(f'<circle cx="{x}" cy="{y}" r="4.5" fill="{fill}" stroke="#0969da" stroke-width="1.5"/>')
    parts.append(f'<text x="{left + across / 2}" y="{top + down + 46}" text-anchor="middle">width</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    main()
