"""Many short trials in one worker: does its memory grow, and does it leave files open?"""

from __future__ import annotations

import gc
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from autolr.pack.memory import give_back, resident_bytes
from autolr.progress.callbacks import Callback
from autolr.progress.jobs import Running
from autolr.schema.study import Study
from autolr.tuner.run import search
from studies.benchmarks.common import tiny_model

TRIALS = 300
# Of the trials, the share after which memory is looked at: caches fill and libraries load before.
WARM = 1 / 3


class Samples(Callback):
    """Notes memory and open files whenever a trial has ended."""

    def __init__(self) -> None:
        self.bytes: list[int] = []
        self.handles: list[int] = []
        self.name = ""

    def phase(self, name: str, total: int, done: int) -> None:
        """Remember which phase it is."""
        self.name = name

    def ended(self, running: Running) -> None:
        """Sample, after what nobody needs any more was given back."""
        if self.name == "trials":
            gc.collect()
            give_back()
            self.bytes.append(resident_bytes())
            self.handles.append(handles())


def handles() -> int:
    """Return the files, pipes and sockets that this process has open."""
    return psutil.Process().num_fds()


def growth(samples: list[int], warm: float = WARM) -> float:
    """Return the growth per 100 trials in percent: the slope of the line through the samples after the warm-up."""
    kept = np.array(samples[int(len(samples) * warm) :], dtype=float)
    slope = float(np.polyfit(np.arange(len(kept)), kept, 1)[0])
    return 100 * 100 * slope / float(np.median(kept))


def measure(trials: int = TRIALS, folder: Path | None = None) -> dict[str, Any]:
    """Search a tiny study with so many trials.

    Args:
        trials: of the search.
        folder: to work in; None: a temporary one.

    Returns:
        `memory_growth_pct_per_100_trials`; `handles_left_open` by the search; `handles_at_most`: more than before it;
        `soaked`: trials that ended; a row with the memory in use after each trial.
    """
    folder = folder or Path(tempfile.mkdtemp(prefix="soak-"))
    content, _ = tiny_model.world(folder)
    content["budget"] = {"trials": trials}
    content["space"]["ratio"] = {"low": 0.5, "high": 8}
    content["search"] |= {"slots": 4}
    samples = Samples()
    # What is loaded once belongs to no trial.
    search(Study.model_validate({**content, "budget": {"trials": 4}}), folder / "warm", device="cpu")
    gc.collect()
    before = handles()
    result = search(Study.model_validate(content), folder / "run", device="cpu", callback=samples)
    gc.collect()
    return {
        "memory_growth_pct_per_100_trials": round(growth(samples.bytes), 3),
        "handles_left_open": handles() - before,
        "handles_at_most": max(samples.handles) - before,
        "soaked": len(result.ended()),
        "rows": [{"mib": [round(sample / 2**20, 2) for sample in samples.bytes]}],
    }
