"""What happens to a search when something dies, and when it grows.

    python studies/benchmarks/faults.py [--quick] [--part kills --part growth ...]

Each part is a module of its own: `kills` kills processes of a search of four workers on PostgreSQL; `growth` plays
searches of up to 256 workers against PostgreSQL. `fuzz.py` and `soak.py` beside it stand for themselves. `lost`:
finished trials that were there before a kill and are not, or not as they were, afterwards. `duplicated`: trials
beyond the total, and candidates and repeats that are there twice. `repeated_rungs`: the most of a trial that had to
be trained again after a kill, in rungs.
"""

from __future__ import annotations

import importlib
import time
from typing import Any

import contract
import torch

# What each part is called with, in full and quickly.
PARTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "kills": ({}, {"kills": 2, "trials": 12, "workers": 2}),
    "growth": ({}, {"plan": {1: 8, 16: 48}}),
}


def main() -> None:
    options = contract.parser(__doc__)
    options.add_argument("--part", action="append", choices=PARTS, help="one part alone; may be given again")
    given = options.parse_args()
    result = contract.Result("faults")
    for name, settings in PARTS.items():
        if given.part and name not in given.part:
            continue
        start = time.perf_counter()
        settings_of = settings[1 if given.quick else 0]
        found = importlib.import_module(name).measure(**settings_of)
        for row in found.pop("rows", []):
            result.rows.append({"kind": name, **row})
        for figure, value in found.items():
            result.figure(figure, value)
        result.settings[name] = {**settings_of, "seconds": round(time.perf_counter() - start)}
    whole = not given.quick and not given.part
    contract.deliver(result, torch.device("cpu"), keep=whole, out=given.out)


if __name__ == "__main__":
    main()
