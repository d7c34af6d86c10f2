"""How a search grows with its workers: a day of up to 256 of them, played in minutes against a real PostgreSQL.

Trials are not trained, they take the time that they would; what the workers ask, report and tell goes through the
code of a search to the database, one after another, and is timed. A simulated clock adds it all up: who waits for the
search's lock waits until all before him are through.
"""

from __future__ import annotations

import heapq
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from autolr.pack.slots import Slot
from autolr.progress.callbacks import Callback
from autolr.progress.jobs import Job, Running
from autolr.rundir.folder import RunFolder
from autolr.tuner.execute.scoring import SubsetScorer
from autolr.tuner.execute.trials import Trials
from autolr.tuner.propose.sampler import CurveSampler
from autolr.tuner.setting import Setting, read_setting
from autolr.tuner.work import Work
from autolr.tuner.workers.leases import Leases
from studies.benchmarks.common import servers
from studies.benchmarks.robustness import kills

# Seconds of a trial: of an 8B model's quarter of a run on one GPU; log-normal around ten minutes.
TRIAL, SPREAD = 600.0, 0.4
# Workers, and the trials of their search.
PLAN = {1: 32, 8: 64, 64: 256, 256: 1056}
# Databases' sessions that the workers share.
SESSIONS = 16
# A study of so many trials is what the latencies are told of.
FAR = 1000


def measure(plan: dict[int, int] | None = None) -> dict[str, Any]:
    """Play searches of several sizes.

    Args:
        plan: workers, and the trials of their search.

    Returns:
        Figures; and a row for each size.
    """
    found: dict[str, Any] = {"rows": []}
    with tempfile.TemporaryDirectory() as name, servers.server() as address:
        os.environ["AUTOLR_STORAGE"] = address
        for workers, trials in (plan or PLAN).items():
            work = Path(name) / str(workers)
            work.mkdir()
            study = kills.small_study(work, trials)
            study = study.model_copy(
                update={"name": f"growth-{workers}", "search": study.search.model_copy(update={"rungs": None})}
            )
            setting = read_setting(study, torch.device("cpu"))
            folder = RunFolder(work / "run")
            folder.path.mkdir()
            folder.open(study, address)
            played = _Play(setting, folder, workers).run()
            found["rows"].append(played)
            print(f"{workers} workers: {played}", flush=True)
            found["idle_share_pct"] = max(found.get("idle_share_pct", 0.0), played["idle_share_pct"])
            if "ask_tell_ms_at_1000" in played:
                found["ask_tell_ms_at_1000"] = played["ask_tell_ms_at_1000"]
                found["sampler_ms_at_1000"] = played["sampler_ms_at_1000"]
    return found


@dataclass
class _Worker:
    """A worker, its clock in seconds, and what of it was not training."""

    trials: Trials
    now: float = 0.0
    idle: float = 0.0
    running: Running | None = None


class _Play:
    """A search in simulated time.

    Args:
        setting: gives the space and the data.
        folder: the run folder; its trials lie in the database.
        workers: how many.
    """

    def __init__(self, setting: Setting, folder: RunFolder, workers: int) -> None:
        self.setting = setting
        self.rng = np.random.default_rng(0)
        pack = SimpleNamespace(evaluate=self._evaluate, task=SimpleNamespace(score=lambda said, labels: 0.0))
        studies = [folder.optuna(setting.study) for _ in range(min(SESSIONS, workers))]
        self.workers = []
        for number in range(workers):
            claims = Leases(folder, studies[number % len(studies)], f"worker-{number}")
            claims._beat(0)
            data: Any = setting.data
            work = Work(setting.study, setting.space, setting.stages, folder, claims, Callback())
            scorer = SubsetScorer(pack, data, setting.study, setting.length, claims)  # type: ignore[arg-type]
            self.workers.append(_Worker(Trials(work, scorer)))
        self.free = 0.0  # when the search's lock is
        self.ended = 0
        self.asks: list[tuple[int, float, float]] = []
        self.tells: list[tuple[int, float]] = []

    def run(self) -> dict[str, Any]:
        """Play until the budget is spent."""
        queue = [(0.0, number) for number in range(len(self.workers))]
        heapq.heapify(queue)
        rung = self.setting.study.search.rung_steps(self.setting.length)[0]
        while queue:
            _, number = heapq.heappop(queue)
            worker = self.workers[number]
            if worker.running is None:
                if not self._ask(worker):
                    continue
                share = rung / self.setting.length
            else:
                share = 1 - rung / self.setting.length
                one = worker.running
                one.slot.step = self.setting.length if one.slot.step == rung else rung
                start = time.perf_counter()
                worker.trials.reached([one])
                self._spend(worker, time.perf_counter() - start, locked=False)
                if one.outcome is not None:
                    self._tell(worker, one)
                    heapq.heappush(queue, (worker.now, number))
                    continue
            worker.now += share * TRIAL * float(np.exp(SPREAD * self.rng.standard_normal()))
            heapq.heappush(queue, (worker.now, number))
        return self._figures()

    def _ask(self, worker: _Worker) -> bool:
        start = time.perf_counter()
        job = worker.trials.next()
        took = time.perf_counter() - start
        self._spend(worker, took, locked=True)
        if job is None:
            return False
        self.asks.append((self.ended, took, _Timed.last))
        worker.running = _started(job)
        return True

    def _tell(self, worker: _Worker, one: Running) -> None:
        start = time.perf_counter()
        worker.trials.ended(one)
        took = time.perf_counter() - start
        self._spend(worker, took, locked=True)
        self.tells.append((self.ended, took))
        self.ended += 1
        worker.running = None

    def _spend(self, worker: _Worker, took: float, *, locked: bool) -> None:
        """Let a worker's clock go on by what it waited and did."""
        begin = max(worker.now, self.free) if locked else worker.now
        if locked:
            self.free = begin + took
        worker.idle += begin + took - worker.now
        worker.now = begin + took

    def _evaluate(self, slots: Sequence[Slot], data: Any, averaged: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Return losses of a bowl around the rule of thumb, as if it had been trained."""
        losses = []
        for slot in slots:
            rates = slot.config.rates
            far = np.log(rates["v"] / 4e-3) ** 2 + 0.3 * np.log(rates["v"] / max(rates["q"], 1e-9) / 3) ** 2
            end = 0.35 + 0.03 * far + 0.005 * self.rng.standard_normal()
            losses.append(end + 0.15 * (1 - slot.step / self.setting.length))
        spread = 0.05 * torch.randn(
            len(slots), len(data), generator=torch.Generator().manual_seed(0), dtype=torch.float64
        )
        return torch.tensor(losses, dtype=torch.float64)[:, None] + spread, torch.zeros_like(spread)

    def _figures(self) -> dict[str, Any]:
        total, idle = sum(worker.now for worker in self.workers), sum(worker.idle for worker in self.workers)
        found: dict[str, Any] = {
            "workers": len(self.workers),
            "trials": self.ended,
            "ask_ms": _ms([took for _, took, _ in self.asks]),
            "ask_ms_worst": round(1000 * max(took for _, took, _ in self.asks), 1),
            "sampler_ms": _ms([took for _, _, took in self.asks]),
            "tell_ms": _ms([took for _, took in self.tells]),
            "idle_share_pct": round(100 * idle / total, 3),
            "idle_share_pct_worst": round(100 * max(w.idle / w.now for w in self.workers if w.now), 3),
            "hours": round(max(worker.now for worker in self.workers) / 3600, 2),
        }
        far = [(took, sampler) for ended, took, sampler in self.asks if ended + len(self.workers) >= FAR]
        tells = [took for ended, took in self.tells if ended >= FAR - len(self.workers)]
        if far and tells:
            asked = statistics.median(took for took, _ in far)
            found["ask_tell_ms_at_1000"] = round(1000 * (asked + statistics.median(tells)), 1)
            found["sampler_ms_at_1000"] = _ms([sampler for _, sampler in far])
        return found


class _Timed:
    """How long the sampler took the last time."""

    last = 0.0


_propose = CurveSampler.sample_relative


def _timed(self: CurveSampler, *arguments: Any) -> dict[str, Any]:
    start = time.perf_counter()
    try:
        return _propose(self, *arguments)
    finally:
        _Timed.last = time.perf_counter() - start


CurveSampler.sample_relative = _timed  # type: ignore[method-assign]


def _started(job: Job) -> Running:
    slot = Slot(job.config, [])
    slot.losses = [0.6]
    return Running(job, slot)


def _ms(seconds: Sequence[float]) -> float:
    return round(1000 * statistics.median(seconds), 2)
