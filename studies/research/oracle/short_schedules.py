"""What does it cost to carry a short run's best rates to the full run? On the measured grid `horizon`.

    python -m studies.research.oracle.short_schedules

Ways to choose from trials of a quarter of the steps, each by its loss on *validation*: copied blindly from runs with
a
schedule of their own; the same with lr_v and lr_q moved down by the power of the lengths that fits best here, to the
nearest candidate; the first quarter of full runs, averaged weights, as `autolr search` ranks its trials; and the
best two of these trained to the end, the better of which it takes. Each is charged what its choice ends at, on
*test*, above the best.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from autolr.rundir import records
from studies.research.oracle import DATA

POWERS = [power / 20 for power in range(17)]


def chosen(scores: Mapping[tuple[float, float], float]) -> tuple[float, float]:
    """Return the rates (lr_v, lr_q) of the lowest score."""
    return min(scores, key=lambda rates: (scores[rates], rates))


def carried(rates: tuple[float, float], factor: float, there: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the candidate nearest to rates that were divided by a factor, in logarithms."""
    return min(
        there, key=lambda c: sum(math.log(one * factor / other) ** 2 for one, other in zip(c, rates, strict=True))
    )


def losses(
    runs: Sequence[Mapping[str, Any]], step: int, averaged: bool, part: str
) -> dict[tuple[float, float], float]:
    """Return the losses of a rung by (lr_v, lr_q), the mean over seeds."""
    found: dict[tuple[float, float], list[float]] = {}
    for run in runs:
        rates = (run["lr_v"], float(f"{run['lr_v'] / run['ratio']:.3g}"))
        for rung in run["rungs"]:
            if rung["step"] == step and rung["averaged"] is averaged:
                found.setdefault(rates, []).append(rung[f"{part}_loss"])
    return {rates: sum(values) / len(values) for rates, values in found.items()}


def table(runs: Sequence[Mapping[str, Any]], own: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each way of choosing: its choice, where that ends, and percent above the best."""
    end, short = (max(rung["step"] for run in some for rung in run["rungs"]) for some in (runs, own))
    truth = losses(runs, end, False, "test")
    best = min(truth.values())
    of_own = chosen(losses(own, short, False, "validation"))
    power = min(POWERS, key=lambda p: truth[carried(of_own, (end / short) ** p, list(truth))])
    quarter, ended = losses(runs, short, True, "validation"), losses(runs, end, True, "validation")
    two = sorted(quarter, key=lambda rates: (quarter[rates], rates))[:2]
    ways = {
        f"a schedule of {short} steps, copied blindly": of_own,
        f"the same, rates times ({short}/{end})^{power:g}": carried(of_own, (end / short) ** power, list(truth)),
        f"the first {short} of {end} steps, averaged": chosen(quarter),
        "the best two of these, trained to the end": chosen({rates: ended[rates] for rates in two}),
        f"the first {short} of {end} steps, as they are": chosen(losses(runs, short, False, "validation")),
    }
    return [
        {"way": way, "lr_v": v, "lr_q": q, "ends_at": truth[v, q], "excess_pct": 100 * (truth[v, q] / best - 1)}
        for way, (v, q) in ways.items()
    ]


def main() -> None:
    for row in table(*(list(records.lines(DATA / f"horizon{kind}.jsonl")) for kind in ("", "-own"))):
        rates = f"lr_v={row['lr_v']:g} lr_q={row['lr_q']:g}"
        print(f"{row['way']:48} {rates}: {row['ends_at']:.4f} (+{row['excess_pct']:.1f} %)")


if __name__ == "__main__":
    main()
