"""Which score of a rung predicts the end best? Rank correlations on what the oracles have measured.

    python -m studies.research.oracle.rung_correlation sentiment

For each rung: Spearman's correlation, over candidates, of the weights as they are, of their running average, and of
a short cool-down (where it was measured), with the loss of the averaged weights at the end of the full run. Each loss
is that on *validation* and *test* together. Candidates that diverged are left out: any score shows it.

And what does it cost to go on with the best of a rung? Of 16 candidates drawn from the grid the best one, or the best
three, by the averaged loss on *validation* alone or on both splits: percent that the best of them ends above the
best of the 16, the mean over draws.

And at the end, where a search's finals are decided: how the loss on *validation*, and that on all that is held out,
the last training batches too, agree with the loss on *test*, which neither has seen; over the better half of the
candidates. Oracles that were measured before these losses were kept have none.

A search has one seed, and so has each of these figures: they are the means over the seeds with candidates enough.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from autolr.rundir import records
from studies.research.oracle import DATA

# Final losses above this many times the best are of candidates that have diverged.
DIVERGED = 1.5
# A search's trials, and how often they are drawn.
TRIALS, DRAWS = 16, 500
Point = tuple[float, float, int]
Run = Mapping[str, Any]


def scores(
    runs: Sequence[Run], parts: Sequence[str] = ("validation", "test")
) -> dict[tuple[int, bool], dict[Point, float]]:
    """Return the losses of a seed's runs by (step, averaged), each by candidate, the mean over splits."""
    found: dict[tuple[int, bool], dict[Point, float]] = {}
    for run in runs:
        point = (run["lr_v"], run["ratio"], run["rank"])
        for rung in run["rungs"]:
            loss = float(np.mean([rung[f"{part}_loss"] for part in parts]))
            found.setdefault((rung["step"], rung["averaged"]), {})[point] = loss
    return found


def correlation(early: Mapping[Point, float], end: Mapping[Point, float]) -> tuple[float, int]:
    """Return Spearman's correlation over the candidates that both have, and how many they are."""
    best = min(end.values())
    common = [p for p in early if p in end and end[p] < DIVERGED * best and np.isfinite(early[p])]
    if len(common) < 4:
        return float("nan"), len(common)
    return float(spearmanr([early[p] for p in common], [end[p] for p in common]).statistic), len(common)


def table(runs: Sequence[Run], cooled: Sequence[Run]) -> list[dict[str, Any]]:
    """Return a row for each rung: its share of the run, and the correlations.

    All scores of a row are compared on the same candidates where cool-downs were measured: `*_same`.
    """
    by_rung = scores(runs)
    last = max(step for step, _ in by_rung)
    end = by_rung[last, True]
    cool: dict[int, dict[Point, float]] = {}
    for run in cooled:
        if run["rungs"]:
            loss = [(r["validation_loss"] + r["test_loss"]) / 2 for r in run["rungs"] if not r["averaged"]]
            cool.setdefault(run["rung"], {})[run["lr_v"], run["ratio"], run["rank"]] = loss[-1]
    rows = []
    for step in sorted({step for step, _ in by_rung} - {last}):
        row: dict[str, Any] = {"step": step, "share": step / last}
        for name, averaged in (("raw", False), ("averaged", True)):
            row[name], row["candidates"] = correlation(by_rung[step, averaged], end)
        if step in cool:
            row["cool"], row["cooled"] = correlation(cool[step], end)
            same = {point: by_rung[step, True][point] for point in cool[step] if point in by_rung[step, True]}
            row["averaged_same"], _ = correlation(same, end)
        rows.append(row)
    return rows


def costs(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return a row for each rung: percent that the best of its first, or of its first three, ends above the best."""
    everywhere, on_validation = scores(runs), scores(runs, ["validation"])
    last = max(step for step, _ in everywhere)
    end = everywhere[last, True]
    points = sorted(end)
    truth = np.array([end[point] for point in points])
    rng = np.random.default_rng(0)
    draws = [rng.choice(len(points), min(TRIALS, len(points)), replace=False) for _ in range(DRAWS)]
    rows = []
    for step in sorted({step for step, _ in everywhere} - {last}):
        row: dict[str, Any] = {"step": step}
        for name, by_rung in (("validation", on_validation), ("both", everywhere)):
            seen = np.array([by_rung[step, True].get(point, np.inf) for point in points])
            for first in (1, 3):
                taken = [truth[drawn[seen[drawn].argsort()[:first]]].min() / truth[drawn].min() for drawn in draws]
                row[f"best of {first} by {name}"] = 100 * (float(np.mean(taken)) - 1)
        rows.append(row)
    return rows


def ends(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return how well a seed's ends on *validation*, and on all that is held out, rank the better half by *test*."""
    found = []
    for run in runs:
        if run.get("unseen_loss") is not None:
            end = max((rung for rung in run["rungs"] if rung["averaged"]), key=lambda rung: rung["step"])
            seen, unseen = run["validation_examples"], run["unseen_examples"]
            pooled = (seen * end["validation_loss"] + unseen * run["unseen_loss"]) / (seen + unseen)
            found.append((end["validation_loss"], pooled, end["test_loss"]))
    if len(found) < TRIALS:
        return []
    better = np.array(sorted(found, key=lambda losses: sum(losses))[: len(found) // 2])
    validation, held_out = (float(spearmanr(better[:, column], better[:, 2]).statistic) for column in (0, 1))
    return [{"validation to test": validation, "held out to test": held_out, "candidates": len(better)}]


def over_seeds(runs: Sequence[Run], rows: Callable[[list[Run]], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return the means of what `rows` says of the runs of each seed that has candidates enough for a search."""
    by_seed: dict[int, list[Run]] = {}
    for run in runs:
        by_seed.setdefault(run["seed"], []).append(run)
    found = [told for own in by_seed.values() if len(own) >= TRIALS and (told := rows(own))]
    return [
        {key: float(np.nanmean([row[key] for row in same])) for key in same[0]} for same in zip(*found, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name")
    name = parser.parse_args().name
    runs, cooled = (list(records.lines(DATA / f"{name}{kind}.jsonl")) for kind in ("", "-cool"))
    # Cool-downs are of the first seed.
    first = [run for run in runs if run["seed"] == 0]
    rows = table(first, cooled) if cooled else over_seeds(runs, lambda own: table(own, []))
    for row in [*rows, *over_seeds(runs, costs), *over_seeds(runs, ends)]:
        print("  ".join(f"{k} {v:.2f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))


if __name__ == "__main__":
    main()
