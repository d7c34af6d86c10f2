"""What all benchmarks share: their options, and the document each of them leaves.

A full measurement is written to `results/NAME-<date>-<machine>.json`; a quick one is not kept. The last line on
standard output is the same document without its rows.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from autolr.rundir import provenance
from studies import STUDIES

ROOT = STUDIES.parent
RESULTS = STUDIES / "benchmarks" / "results"
# What a quick search of the embedded study judges by.
FEW = ["data.validation=0.02", "data.test=0.02"]


@dataclass
class Result:
    """What a benchmark has measured.

    Attributes:
        figures: the numbers that are quoted; one that was not measured is not here.
        settings: what decided the measurement.
        rows: the measurements behind the figures, each with its `kind`.
    """

    name: str
    figures: dict[str, float] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)

    def figure(self, name: str, value: float | None) -> None:
        """Add a figure; None and what is not a finite number are left out."""
        if value is not None and math.isfinite(value):
            self.figures[name] = float(f"{value:.4g}")

    def row(self, kind: str, **values: Any) -> None:
        """Add a measurement and show it on standard output."""
        self.rows.append({"kind": kind, **values})
        shown = {key: value for key, value in values.items() if not isinstance(value, list | dict)}
        print(f"{kind}: " + ", ".join(f"{key} {value}" for key, value in shown.items()), flush=True)

    def document(self, device: torch.device) -> dict[str, Any]:
        """Return the whole document.

        Raises:
            ValueError: it holds a path of this machine.
        """
        document = {
            "name": self.name,
            "figures": self.figures,
            "settings": self.settings,
            "environment": environment(device),
            "rows": self.rows,
        }
        text = json.dumps(document)
        for private in {str(ROOT), str(Path.home()), tempfile.gettempdir()}:
            if len(private) > 1 and re.search(re.escape(private) + r"(?![\w-])", text):
                raise ValueError(f"the result of {self.name} holds a path of this machine")
        return document


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return the options all benchmarks have."""
    options = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    options.add_argument("--quick", action="store_true", help="a small measurement, under a minute; it is not kept")
    options.add_argument("--device", help="such as cpu or cuda:0; none given: the GPU where there is one")
    options.add_argument("--out", type=Path, help="folder of the result, instead of studies/benchmarks/results")
    return options


def deliver(result: Result, device: torch.device, *, keep: bool, out: Path | None = None) -> Path:
    """Write the document and print its last line.

    Args:
        result: what was measured.
        device: on what.
        keep: whether it is a full measurement, which belongs into the results.
        out: a folder to write to instead.
    """
    document = result.document(device)
    folder = out or (RESULTS if keep else Path(tempfile.mkdtemp(prefix="benchmark-")))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result.name}-{time.strftime('%Y-%m-%d', time.gmtime())}-{machine(device)}.json"
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(f"written: {path}")
    print(json.dumps({key: value for key, value in document.items() if key != "rows"}), flush=True)
    return path


def environment(device: torch.device) -> dict[str, Any]:
    """Return versions, commit, processor and device."""
    commit = provenance.commit()
    found: dict[str, Any] = {
        "versions": provenance.versions(),
        "commit": commit and commit.removesuffix(" (changed)"),
        "dirty": commit is not None and commit.endswith("(changed)"),
        "processor": processor(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    }
    return found


def machine(device: torch.device) -> str:
    """Return what the machine is, such as `cpu2-epyc` or `gpu-h200`: never whose."""
    if device.type == "cuda":
        words = re.findall(r"[a-z0-9]+", torch.cuda.get_device_name(device).lower())
        return "gpu-" + next((word for word in words if re.search(r"\d", word)), words[-1])
    words = re.findall(r"[a-z0-9]+", re.sub(r"\((r|tm)\)", " ", processor().lower()))
    vendors = {"amd", "intel", "cpu", "genuine"}
    return f"cpu{cores()}-" + next((word for word in words if word not in vendors), "unknown")


def processor() -> str:
    """Return the processor's model name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def cores() -> int:
    """Return the number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def alternate(contenders: Mapping[str, Callable[[int], float]], rounds: int) -> dict[str, list[float]]:
    """Measure contenders in turns, so that a slow minute of the machine hits all of them.

    Args:
        contenders: each is called with the number of the round and returns what it measured.
        rounds: how often each is called; every second round goes backwards.
    """
    measured: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name in list(contenders)[:: -1 if number % 2 else 1]:
            measured[name].append(contenders[name](number))
    return measured


def ratio(measured: Mapping[str, list[float]], above: str, below: str) -> float | None:
    """Return the ratio of two contenders' medians; None where one of them was not measured."""
    if not measured.get(above) or not measured.get(below):
        return None
    return statistics.median(measured[above]) / statistics.median(measured[below])
