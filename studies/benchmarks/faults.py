"""What happens to a search when something dies, breaks or goes on for long, and when it grows.

    python studies/benchmarks/faults.py [--quick] [--part kills --part growth ...] [--kept FOLDER]

Each part is a module of its own: `kills` kills processes of a search of four workers on PostgreSQL; `growth` plays
searches of up to 256 workers against PostgreSQL; `fuzz` gives the command line broken files; `soak` runs many short
trials in one worker. `lost`: finished trials that were there before a kill and are not, or not as they were,
afterwards. `duplicated`: trials beyond the total, and candidates and repeats that are there twice. `repeated_rungs`:
the most of a trial that had to be trained again after a kill, in rungs.

With `--kept` each part is kept in a folder when it is through, and not measured again: the whole can be measured in
sittings, and the result is delivered by the one that finds all parts there.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import contract
import torch

from autolr.search import provenance

# What each part is called with, in full and quickly.
PARTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "kills": ({"kills": 50, "trials": 100, "workers": 4}, {"kills": 2, "trials": 6, "workers": 2}),
    "growth": ({}, {"plan": {1: 8, 16: 48}}),
    "fuzz": ({"cases": 200}, {"cases": 10}),
    "soak": ({"trials": 300}, {"trials": 12}),
}


def main() -> None:
    options = contract.parser(__doc__)
    options.add_argument("--part", action="append", choices=PARTS, help="one part alone; may be given again")
    options.add_argument("--kept", type=Path, help="folder of the parts that are through")
    given = options.parse_args()
    result = contract.Result("faults")
    chosen = [name for name in PARTS if not given.part or name in given.part]
    with tempfile.TemporaryDirectory(prefix="faults-") as temporary:
        kept = given.kept or Path(temporary)
        kept.mkdir(parents=True, exist_ok=True)
        for name in chosen:
            if not (kept / f"{name}.json").is_file():
                _measure(name, PARTS[name][1 if given.quick else 0], kept)
        there = [name for name in PARTS if (kept / f"{name}.json").is_file()]
        for name in there:
            found = json.loads((kept / f"{name}.json").read_text())
            result.settings[name] = found["settings"]
            result.rows += [{"kind": name, **row} for row in found["rows"]]
            for figure, value in found["figures"].items():
                result.figure(figure, value)
    whole = not given.quick and len(there) == len(PARTS)
    contract.deliver(result, torch.device("cpu"), keep=whole, out=given.out)


def _measure(name: str, settings: dict[str, Any], kept: Path) -> None:
    """Measure a part, in a process of its own: what one leaves in memory is none of the others' business."""
    start = time.perf_counter()
    code = f"import importlib, json, sys; found = importlib.import_module({name!r}).measure(**{settings!r}); "
    code += "json.dump(found, open(sys.argv[1], 'w'))"
    target = kept / f"{name}.part"
    subprocess.run([sys.executable, "-c", code, str(target.absolute())], check=True, cwd=Path(__file__).parent)
    found = json.loads(target.read_text())
    target.unlink()
    rows = found.pop("rows")
    settings = {**settings, "seconds": round(time.perf_counter() - start), "commit": provenance.commit()}
    (kept / f"{name}.json").write_text(json.dumps({"settings": settings, "figures": found, "rows": rows}))


if __name__ == "__main__":
    main()
