"""Surfaces fitted to tables: measured oracles, the public sweep of rates and ranks, the published heat map."""

from __future__ import annotations

import csv
import math
import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.optimize import lsq_linear
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from autolr.rundir import records
from studies import STUDIES
from studies.benchmarks.search_quality.surfaces import (
    DIVERGED,
    FINAL_NOISE,
    Array,
    Bounds,
    CurveFamily,
    Surface,
    crossing,
    with_edge,
)
from studies.research.oracle import DATA

TABLES = STUDIES / "research" / "tables"
# Fewer runs than this make no oracle.
ENOUGH_RUNS = 30
# Fewer candidates than this, with a second seed, do not tell how much is luck.
ENOUGH_REPEATED = 6
# Losses of an oracle's rung above this many times its lowest count as this many: how bad the bad ones are must not
# bend the surface where the good ones lie.
ORACLE_CAP = 1.3
# On these the length of trials and the averaging of their weights were found: they belong to the design.
DESIGN_ORACLES = ("sentiment",)
DESIGN_CROSSING, HELD_BACK_CROSSING = range(4), range(100, 104)

# The one rate that serves all models of the sweep best: a rule made from these very runs, so a strong one.
SWEEP_RULE, SWEEP_STEPS = 3e-4, 780
# The space of a model ends at rates measured for half of its ranks, lest its best lies where nothing was measured; it
# needs so many runs, and rates up to this one. Losses above this many times its best count as diverged.
SWEEP_RUNS, SWEEP_HIGHEST, SWEEP_DIVERGED = 9, 1e-3, 1.5
SWEEP_START = 1.3
# Training diverges at so many times the best rate of the table, and at so many times the rates that did not diverge.
EDGE_ABOVE_BEST, EDGE_ABOVE_MEASURED = 10.0, 2.5

# Llama-3.1-8B: the rule 5e-4 * (2000 / 4096) ** 0.781. Chance of a wrong answer of three is 2/3.
HEATMAP_RULE, HEATMAP_STEPS, HEATMAP_START = 2.86e-4, 800, 2 / 3
HEATMAP_LR_V, HEATMAP_LR_Q = (5e-6, 4e-4), (1e-6, 1e-4)
HEATMAP_RANK = 16
# The error of 9,815 dev examples; paired on the same examples it scatters less than the 3 % of a count.
HEATMAP_NOISE = 0.01


class Smooth:
    """A quadratic plus a Gaussian process for what it leaves; the one sees to extrapolation, the other to the data.

    Args:
        points: [runs, 3], logarithms of lr_v, ratio and rank.
        values: of the runs.
        noise: bounds of the noise's share of the variance that the quadratic leaves.
        luck: standard deviation of the values' noise, where it is known.
    """

    def __init__(
        self,
        points: Array,
        values: Array,
        noise: tuple[float, float] = (1e-3, 1.0),
        luck: float | None = None,
    ) -> None:
        self.middle = points.mean(0)
        self.scale = np.log([10.0, 10.0, 4.0])
        inputs = (points - self.middle) / self.scale
        self.used = np.ptp(inputs, axis=0) > 1e-9
        # Two values of a dimension say nothing of how losses curve between them.
        self.curved = [len(np.unique(column.round(9))) > 2 for column in inputs[:, self.used].T]
        design = self._design(inputs)
        # In the rate of W_v, whose square comes first, losses curve upwards: far from the data they must rise.
        low = np.full(design.shape[1], -np.inf)
        low[0] = 0.05 * float(np.std(values))
        # A little ridge, for tables with hardly more runs than coefficients.
        ridged = np.vstack([design, 1e-3 * np.eye(design.shape[1])])
        targets = np.concatenate([values, np.zeros(design.shape[1])])
        self.quadratic = lsq_linear(ridged, targets, bounds=(low, np.inf)).x
        rest = values - design @ self.quadratic
        self.deviation = max(float(np.std(rest)), 1e-9)
        white = WhiteKernel(0.05, noise)
        if luck is not None:
            white = WhiteKernel(max((luck / self.deviation) ** 2, 1e-6), "fixed")
        kernel = ConstantKernel(1.0, (0.05, 20.0)) * Matern([1.0] * int(self.used.sum()), (0.25, 5.0), nu=2.5) + white
        process = GaussianProcessRegressor(kernel, random_state=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            process.fit(inputs[:, self.used], rest / self.deviation)
        self.kernel = process.kernel_.k1
        self.noise = self.deviation * math.sqrt(process.kernel_.k2.noise_level)
        self.inputs = inputs[:, self.used]
        self.weights = np.ravel(process.alpha_)

    def __call__(self, points: Array) -> Array:
        inputs = (points - self.middle) / self.scale
        parts = [self.kernel(part[:, self.used], self.inputs) @ self.weights for part in np.array_split(inputs, 8)]
        return self._design(inputs) @ self.quadratic + self.deviation * np.concatenate(parts)

    def _design(self, inputs: Array) -> Array:
        used = inputs[:, self.used]
        count = used.shape[1]
        pairs = [(i, j) for i in range(count) for j in range(i, count) if i < j or self.curved[i]]
        products = [used[:, i] * used[:, j] for i, j in pairs]
        return np.column_stack([*products, used, np.ones(len(used))])


class Oracle(Surface):
    """A measured oracle: one fit to the losses of each rung, raw and averaged; between rungs, along log step.

    A second seed tells how much of a loss is luck, and the fit passes the runs by as much. What a seed does to all
    candidates alike is taken from it first: a search has one seed.

    Args:
        name: of the oracle.
        runs: as `studies.research.oracle.measure` keeps them, each with its `rungs`.
    """

    def __init__(self, name: str, runs: list[dict[str, Any]], rule: float) -> None:
        self.rungs = sorted({rung["step"] for run in runs for rung in run["rungs"]})
        rates, ratios = [sorted({run[key] for run in runs}) for key in ("lr_v", "ratio")]
        ranks = sorted({int(run["rank"]) for run in runs})
        between = [r for r in (4, 8, 16, 32, 64) if ranks[0] < r < ranks[-1]]
        bounds = Bounds(
            (rates[0], rates[-1]), (ratios[0], ratios[-1]), tuple(sorted({*ranks, *between})), rule, self.rungs[-1]
        )
        seeds = sorted({run["seed"] for run in runs})
        super().__init__(f"oracle/{name}", bounds, {"runs": len(runs), "seeds": len(seeds)})
        points = np.log([[run["lr_v"], run["ratio"], run["rank"]] for run in runs])
        seed_of = np.array([run["seed"] for run in runs])
        self.fits: dict[tuple[int, bool], Smooth] = {}
        self.noises: dict[tuple[int, bool], float] = {}
        worst = max(_loss(rung) for run in runs for rung in run["rungs"] if math.isfinite(_loss(rung)))
        self.start = max(_loss(rung) for run in runs for rung in run["rungs"] if rung["step"] == self.rungs[0])
        for step in self.rungs:
            for averaged in (False, True):
                found = [
                    [_loss(r) for r in run["rungs"] if r["step"] == step and r["averaged"] is averaged]
                    for run in runs
                ]
                # A run that diverged before the rung has the worst loss there is.
                losses = np.log([min(one[0], worst) if one and math.isfinite(one[0]) else worst for one in found])
                losses = np.minimum(losses, losses.min() + math.log(ORACLE_CAP))
                losses, luck = _aligned(points, seed_of, losses)
                fit = Smooth(points, losses, luck=luck)
                self.fits[step, averaged] = fit
                self.noises[step, averaged] = fit.noise if luck is None else luck
                if not averaged:  # in the end: nothing between the runs is taken to be better than the best of them
                    self.lowest = float(fit(points).min())
        self.about["final_noise_pct"] = round(100 * self.noises[self.rungs[-1], False], 3)
        self.about["residual_pct"] = round(100 * self.fits[self.rungs[-1], False].noise, 3)

    def final_at(self, points: Array) -> Array:
        return np.exp(np.maximum(self.fits[self.rungs[-1], False](points), self.lowest))

    def curve_at(self, point: Array, step: float, length: float, averaged: bool) -> float:
        first, progress = self.rungs[0], self.progress(step, length)
        if progress <= first:
            part = math.log(max(progress, 1.0)) / math.log(first)
            end = float(self.fits[first, averaged](point[None])[0])
            return math.exp(math.log(self.start) * (1 - part) + end * part)
        below, above, part = self._between(progress)
        ends = [float(self.fits[rung, averaged](point[None])[0]) for rung in (below, above)]
        return math.exp(ends[0] * (1 - part) + ends[1] * part)

    def noise_at(self, point: Array, step: float, length: float, averaged: bool) -> float:
        below, above, part = self._between(max(step, self.rungs[0]))
        return self.noises[below, averaged] * (1 - part) + self.noises[above, averaged] * part

    def _between(self, step: float) -> tuple[int, int, float]:
        place = min(max(int(np.searchsorted(self.rungs, step)), 1), len(self.rungs) - 1)
        below, above = self.rungs[place - 1], self.rungs[place]
        return below, above, min(math.log(step / below) / math.log(above / below), 1.0)


def _loss(rung: dict[str, Any]) -> float:
    """Return the loss of a rung on validation and confirm: more examples know better what is true."""
    return float(rung["validation_loss"] + rung["test_loss"]) / 2


def _aligned(points: Array, seeds: Array, values: Array) -> tuple[Array, float | None]:
    """Take from the values what a seed does to all candidates alike.

    Medians tell it, since a few candidates at the edge of divergence differ wildly.

    Returns:
        The values, and the standard deviation that luck gives a single run; None, and the values as they were, where
        too few candidates were repeated.
    """
    first, *others = sorted(set(seeds.tolist()))
    known = {tuple(point): value for point, value in zip(points[seeds == first], values[seeds == first], strict=True)}
    aligned, apart = values.copy(), []
    for seed in others:
        own = zip(points[seeds == seed], values[seeds == seed], strict=True)
        differences = [value - known[tuple(point)] for point, value in own if tuple(point) in known]
        shift = float(np.median(differences)) if differences else 0.0
        aligned[seeds == seed] -= shift
        apart += [abs(difference - shift) / math.sqrt(2) for difference in differences]
    if len(apart) < ENOUGH_REPEATED:
        return values, None
    return aligned, float(np.median(apart)) / 0.6745


def read_oracle(name: str) -> list[dict[str, Any]]:
    """Return the runs measured so far: of the parquet file, or of the lines where they hold more."""
    folder = DATA
    runs: list[dict[str, Any]] = list(records.lines(folder / f"{name}.jsonl"))
    if (folder / f"{name}.parquet").exists():
        import pyarrow.parquet as pq

        table: dict[tuple[Any, ...], dict[str, Any]] = {}
        for row in pq.read_table(folder / f"{name}.parquet").to_pylist():
            key = (row["lr_v"], row["ratio"], row["rank"], row["seed"])
            table.setdefault(key, {**{k: row[k] for k in ("lr_v", "ratio", "rank", "seed")}, "rungs": []})
            if row.get("step") is not None:
                table[key]["rungs"].append(row)
        if len(table) >= len(runs):
            runs = list(table.values())
    return runs


def oracle(name: str) -> Oracle:
    """Return a measured oracle as a surface."""
    # The rule's rate for the width of the embedded model.
    return Oracle(name, read_oracle(name), rule=float(f"{5e-4 * (2000 / 384) ** 0.781:.3g}"))


@lru_cache(1)
def sweep_models() -> dict[str, tuple[Array, Array]]:
    """Return, for each model of the sweep with enough runs, points [runs, 3] and test losses."""
    runs: dict[str, list[tuple[float, float, float]]] = {}
    with (TABLES / "lora_lr_rank_sweep.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            runs.setdefault(row["model"], []).append((float(row["lr"]), float(row["rank"]), float(row["test_nll"])))
    tables = {}
    for model, found in sorted(runs.items()):
        rates, ranks, losses = np.array(found).T
        points = np.column_stack([np.log(rates), np.zeros(len(found)), np.log(ranks)])
        if len(found) >= SWEEP_RUNS and _rates(points, losses)[1] >= SWEEP_HIGHEST:
            tables[model] = points, losses
    return tables


def _rates(points: Array, losses: Array) -> tuple[float, float]:
    """Return the range of rates that were measured for half of the ranks and did not diverge there."""
    kept = points[losses < SWEEP_DIVERGED * losses.min()]
    ranks = len(set(points[:, 2]))
    usual = [rate for rate in set(kept[:, 0]) if 2 * len(set(kept[kept[:, 0] == rate, 2])) >= ranks]
    return float(np.exp(min(usual)).round(9)), float(np.exp(max(usual)).round(9))


def sweep(model: str) -> CurveFamily:
    """Return a model of the sweep as a surface; the ratio does nothing, since it was never varied."""
    points, losses = sweep_models()[model]
    rates = _rates(points, losses)
    # A single rank far outside would bend the quadratic of all.
    kept = (losses < SWEEP_DIVERGED * losses.min()) & (points[:, 0] < math.log(rates[1]) + 0.01)
    fit = Smooth(points[kept], np.log(losses[kept]), noise=(1e-3, 0.2))
    bounds = Bounds(
        rates,
        (0.5, 32.0),
        tuple(sorted({round(math.exp(k)) for k in points[:, 2]})),
        SWEEP_RULE,
        SWEEP_STEPS,
    )
    best = points[losses.argmin(), 0]
    edge = max(best + math.log(EDGE_ABOVE_BEST), points[kept, 0].max() + math.log(EDGE_ABOVE_MEASURED))
    start = SWEEP_START * float(losses.min())
    shape = with_edge(lambda at: np.exp(fit(at)), edge, DIVERGED * start)
    return CurveFamily(f"sweep/{model}", bounds, shape, start, FINAL_NOISE, about={"runs": len(losses)})


def read_heatmap() -> tuple[Array, Array, np.ndarray[Any, np.dtype[np.bool_]]]:
    """Return logarithms of the rates of W_v and W_q, [cells, 2], errors, and which of them are bounds from below."""
    with (TABLES / "heatmap_llama31_mnli.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    rates = np.log([[float(row["eta_V"]), float(row["eta_QK"])] for row in rows])
    errors = np.array([1 - float(row["accuracy"]) / 100 for row in rows])
    return rates, errors, np.array([row["kind"].startswith("clipped") for row in rows])


def heatmap() -> CurveFamily:
    """Return the heat map of Llama-3.1-8B on MNLI as a surface of errors."""
    rates, errors, bounded = read_heatmap()
    cells = np.column_stack([rates, np.zeros(len(rates))])
    values = np.log(errors)
    # A bound stands for what its neighbours promise, where they promise more.
    promised = Smooth(cells[~bounded], values[~bounded])(cells)
    fit = Smooth(cells, np.where(bounded, np.maximum(promised, values), values))
    low, high = np.log(HEATMAP_LR_Q)

    def shape(points: Array) -> Array:
        # Beyond the rates of W_q in the map its edge counts.
        lr_q = np.clip(points[:, 0] - points[:, 1], low, high)
        return np.exp(fit(np.column_stack([points[:, 0], lr_q, np.zeros(len(points))])))

    bounds = Bounds(HEATMAP_LR_V, (0.5, 32.0), (HEATMAP_RANK,), HEATMAP_RULE, HEATMAP_STEPS)
    edge = math.log(HEATMAP_LR_V[1] * EDGE_ABOVE_MEASURED)
    return CurveFamily(
        "heatmap/llama31-mnli",
        bounds,
        with_edge(shape, edge, HEATMAP_START),
        HEATMAP_START,
        HEATMAP_NOISE,
        about={"cells": len(errors), "clipped": int(bounded.sum())},
    )


def names(part: str) -> tuple[list[str], list[str]]:
    """Return the names of the surfaces of a part, and a line for each that is left out.

    Args:
        part: `design`, `held_back`, or `all`.
    """
    by_part: dict[str, list[str]] = {"design": [], "held_back": []}
    notes = []
    found = {file.stem for kind in ("jsonl", "parquet") for file in DATA.glob(f"*.{kind}")}
    found = {name for name in found if not name.endswith(("-cool", "-own"))}  # no full runs
    for name in sorted(found):
        home = "design" if name in DESIGN_ORACLES else "held_back"
        count = len(read_oracle(name))
        if count < ENOUGH_RUNS:
            notes.append(f"oracle/{name} is left out: {count} runs are measured, {ENOUGH_RUNS} are needed")
        else:
            by_part[home].append(f"oracle/{name}")
    by_part["held_back"].append("heatmap/llama31-mnli")
    for part_of, numbers in (("design", DESIGN_CROSSING), ("held_back", HELD_BACK_CROSSING)):
        by_part[part_of] += [f"crossing/{number}" for number in numbers]
    for place, model in enumerate(sweep_models()):
        by_part["held_back" if place % 3 == 2 else "design"].append(f"sweep/{model}")
    return (by_part["design"] + by_part["held_back"] if part == "all" else by_part[part]), notes


@lru_cache(maxsize=64)
def surface(name: str) -> Surface:
    """Return a surface by its name, such as `crossing/3` or `sweep/Qwen/Qwen3-8B`."""
    family, _, rest = name.partition("/")
    makers: dict[str, Callable[[], Surface]] = {
        "oracle": lambda: oracle(rest),
        "sweep": lambda: sweep(rest),
        "heatmap": heatmap,
        "crossing": lambda: crossing(int(rest)),
    }
    return makers[family]()
