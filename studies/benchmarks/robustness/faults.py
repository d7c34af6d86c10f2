"""What happens to a search when processes die, files are broken, or it runs long and wide.

    python -m studies.benchmarks.robustness.faults [--quick] [--part kills --part soak ...] [--kept FOLDER]

Each part is a module of its own:

- `kills` kills processes of a search of four workers on PostgreSQL.
- `many_workers` plays searches of up to 256 workers against PostgreSQL.
- `fuzz_files` gives broken files to the command line.
- `soak` runs many short trials in one worker.

Figures: `lost` counts finished trials that a kill removed or changed. `duplicated` counts trials beyond the total,
and candidates and repeats that are there twice. `repeated_rungs` is the most of one trial, in rungs, that a kill
made another process train again.

`--kept` keeps each finished part in a folder and does not measure it again. So the whole can be measured in sittings;
the call that finds all parts there delivers the result.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from autolr.rundir import provenance
from studies.benchmarks.common import document

# Holds the parts' modules.
ROOM = "studies.benchmarks.robustness"
# What each part is called with, in full and quickly.
PARTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "kills": ({"kills": 50, "trials": 100, "workers": 4}, {"kills": 2, "trials": 6, "workers": 2}),
    "many_workers": ({}, {"plan": {1: 8, 16: 48}}),
    "fuzz_files": ({"cases": 200}, {"cases": 10}),
    "soak": ({"trials": 300}, {"trials": 12}),
}


def main() -> None:
    options = document.parser(__doc__)
    options.add_argument("--part", action="append", choices=PARTS, help="one part alone; may be given again")
    options.add_argument("--kept", type=Path, help="folder of the parts that are through")
    given = options.parse_args()
    result = document.Result("faults")
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
    document.deliver(result, torch.device("cpu"), keep=whole, out=given.out)


def _measure(name: str, settings: dict[str, Any], kept: Path) -> None:
    """Measure a part, in a process of its own: what one leaves in memory is none of the others' business."""
    start = time.perf_counter()
    code = f"import json, sys; from {ROOM} import {name} as part; "
    code += f"json.dump(part.measure(**{settings!r}), open(sys.argv[1], 'w'))"
    target = kept / f"{name}.part"
    subprocess.run([sys.executable, "-c", code, str(target.absolute())], check=True, cwd=document.ROOT)
    found = json.loads(target.read_text())
    target.unlink()
    rows = found.pop("rows")
    settings = {**settings, "seconds": round(time.perf_counter() - start), "commit": provenance.commit()}
    (kept / f"{name}.json").write_text(json.dumps({"settings": settings, "figures": found, "rows": rows}))


if __name__ == "__main__":
    main()
