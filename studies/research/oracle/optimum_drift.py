"""Does the best rate move between the first part of a full run and its end? On all that the oracles have measured.

    python -m studies.research.oracle.optimum_drift [sentiment sections horizon]

Of each line of a grid, so of one λ (or one η_Q), rank and seed: the rate of W_v with the lowest averaged loss, on
*validation* and *test* together, at the rung next to a quarter of the run and at its end, from a parabola through the
best rate and its neighbours in the logarithms. Told is the power of the lengths' ratio by which it has moved: 0 says
that it stays, -1 that it falls as the run gets longer. Lines whose best is at an end of the grid tell nothing.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from autolr.rundir import records
from studies.research.oracle import DATA

NAMES = ("sentiment", "sections", "horizon")
QUARTER, ENOUGH = 0.25, 4


class Move(NamedTuple):
    """How the best rate of W_v of one line of a grid moves."""

    seed: int
    rank: int
    other: str
    early: float
    late: float
    power: float


def lowest(losses: Mapping[float, float]) -> float | None:
    """Return the rate of the lowest loss; None where it is not between others."""
    rates = sorted(losses)
    place = min(range(len(rates)), key=lambda at: losses[rates[at]])
    if not 0 < place < len(rates) - 1:
        return None
    three = rates[place - 1 : place + 2]
    square, slope, _ = np.polyfit(np.log(three), np.log([losses[rate] for rate in three]), 2)
    return math.exp(-slope / (2 * square))


def moves(runs: Sequence[Mapping[str, Any]], by_lr_q: bool = False) -> list[Move]:
    """Return how the best rate moves on each line of a grid that tells it.

    Args:
        runs: as `measure.py` keeps them.
        by_lr_q: lines of the same lr_q, else of the same ratio.
    """
    lines: dict[tuple[int, int, str], dict[int, dict[float, float]]] = {}
    for run in runs:
        other = f"lr_q={run['lr_v'] / run['ratio']:.1e}" if by_lr_q else f"ratio={run['ratio']:g}"
        line = lines.setdefault((run["seed"], run["rank"], other), {})
        for rung in run["rungs"]:
            if rung["averaged"]:
                loss = (rung["validation_loss"] + rung["test_loss"]) / 2
                line.setdefault(rung["step"], {})[run["lr_v"]] = loss
    found = []
    for key, line in sorted(lines.items()):
        last = max(line, default=0)
        first = min(line, key=lambda step: abs(step - QUARTER * last), default=0)
        there = set(line.get(first, {})) & set(line.get(last, {}))
        if len(there) < ENOUGH or first == last:
            continue
        early, late = (lowest({rate: line[step][rate] for rate in there}) for step in (first, last))
        if early and late:
            found.append(Move(*key, early, late, math.log(late / early) / math.log(last / first)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=NAMES)
    every = []
    for name in parser.parse_args().names:
        found = moves(list(records.lines(DATA / f"{name}.jsonl")), by_lr_q=name == "horizon")
        for one in found:
            print(
                f"{name} seed {one.seed} rank {one.rank} {one.other}: {one.early:.2e} -> {one.late:.2e}, "
                f"power {one.power:+.2f}"
            )
        powers = [one.power for one in found]
        if powers:
            print(f"{name}: {len(powers)} lines, mean {np.mean(powers):+.3f}, rms {rms(powers):.3f}")
        every += powers
    print(f"all: {len(every)} lines, mean {np.mean(every):+.3f}, rms {rms(every):.3f}")


def rms(values: Sequence[float]) -> float:
    """Return the root of the mean square."""
    return float(np.sqrt(np.mean(np.square(values))))


if __name__ == "__main__":
    main()
