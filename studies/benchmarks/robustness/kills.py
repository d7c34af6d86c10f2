"""`kill -9` at random moments over a search of several workers, and what is left of it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch

from autolr.progress.state import read_state
from autolr.rundir.folder import RunFolder
from autolr.rundir.result import SearchResult
from autolr.schema.study import Study
from autolr.tuner.setting import read_setting
from studies.benchmarks.common import servers
from studies.benchmarks.common.document import ROOT

# Steps of slots between two kills, evenly drawn, so that as much gets done on a slow machine as on a fast one; and
# the share of the kills that hit the process that starts the others.
BETWEEN, FIRST = (10, 700), 0.1
# The share of the kills that waits for what follows the trials.
LATE, LATE_PHASES = 0.2, ("100%", "seeds")
# Bytes of a step's line in a trace, about.
LINE = 26
LENGTH, RUNG = 320, 40
# Seconds without an end after which a search counts as hanging.
PATIENCE = 3600.0
RECHECKED = 6
# Runs in every Python process of the search: each step of each trial leaves a line, whatever happens next.
TRACE = """
import os, sys, threading, time

def patch():
    while not hasattr(sys.modules.get("autolr.tuner.run"), "join"):
        time.sleep(0.05)
    loop = sys.modules["autolr.tuner.execute.loop"]
    step, file = loop._step, os.open(f"{os.environ['TRACE']}/{os.getpid()}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    def traced(pack, source, running, keeper):
        at = time.monotonic()
        lines = [f"{at} {one.job.key} {one.slot.step + 1}\\n" for one in running]
        ended = step(pack, source, running, keeper)
        os.write(file, "".join(lines).encode())
        return ended
    loop._step = traced

if os.environ.get("TRACE"):
    threading.Thread(target=patch, daemon=True).start()
"""


def measure(kills: int = 50, trials: int = 100, workers: int = 4, seed: int = 0) -> dict[str, Any]:
    """Kill processes of a search until so many are dead, let it end, and look at what it has.

    Args:
        kills: how many.
        trials: of the search; it must last for all kills.
        workers: of the search.
        seed: of moments and victims.

    Returns:
        Figures; and a row for each kill.
    """
    with tempfile.TemporaryDirectory() as name, servers.server() as address:
        work = Path(name)
        study = small_study(work, trials)
        study.save(work / "study.yaml")
        found = _Assault(work, address, workers, random.Random(seed)).run(kills)
        return {**found, **_judged(RunFolder(work / "run"), study)}


def small_study(work: Path, trials: int) -> Study:
    """Return a study of a tiny model that stands for one that takes hours."""
    from tests import conftest, tiny

    tiny.model("bert").save_pretrained(work / "model")
    conftest.tokenizer_with(cls_token="[CLS]").save_pretrained(work / "model")
    rng = random.Random(0)
    with (work / "data.jsonl").open("w") as file:
        for row in range(480):
            words = [
                *rng.sample(conftest.OTHER, rng.randrange(3, 9)),
                rng.choice((conftest.GOOD, conftest.BAD)[row % 2]),
            ]
            file.write(json.dumps({"text": " ".join(words), "label": ("good", "bad")[row % 2]}) + "\n")
    return Study(
        name="assault",
        model=str(work / "model"),
        data={"source": str(work / "data.jsonl"), "validation": 0.2, "test": 0.2},
        space={"lr_v": {"low": 2e-4, "high": 1e-1}, "ratio": {"low": 0.5, "high": 8}, "rank": [2, 4, 8]},
        training={"batch_size": 8, "horizon": {"steps": 2 * LENGTH}},
        search={
            "stages": [{"to": LENGTH}, {"to": 1.0, "promote": 2}],
            "rungs": list(range(RUNG, LENGTH, RUNG)),
            "slots": 4,
            "seeds": 4,
        },
        budget={"trials": trials},
    )


class _Assault:
    """A search under fire.

    Args:
        work: holds its study and its run folder.
        address: of the database.
        workers: of the search.
        rng: of moments and victims.
    """

    def __init__(self, work: Path, address: str, workers: int, rng: random.Random) -> None:
        self.work = work
        self.folder = RunFolder(work / "run")
        self.rng = rng
        self.command = [
            sys.executable,
            "-m",
            "autolr",
            "search",
            str(work / "study.yaml"),
            "--out",
            str(work / "run"),
        ]
        self.command += ["--workers", str(workers), "--storage", address, "--device", "cpu", "--plain"]
        os.environ["AUTOLR_STORAGE"] = address
        self.trace = work / "trace"
        self.trace.mkdir()
        (work / "hook").mkdir()
        (work / "hook" / "sitecustomize.py").write_text(TRACE)
        path = os.pathsep.join([str(work / "hook"), str(ROOT)])
        self.environment = {**os.environ, "TRACE": str(self.trace), "PYTHONPATH": path}
        self.rows: list[dict[str, Any]] = []
        self.seen: dict[int, tuple[str, float | None]] = {}
        self.changed = self.starts = 0
        self.process: subprocess.Popen[bytes] | None = None

    def run(self, kills: int) -> dict[str, Any]:
        start = time.monotonic()
        due = 0.0
        try:
            while time.monotonic() - start < PATIENCE:
                if self.process is None or self.process.poll() not in (None, 0):
                    self._start()
                elif self.process.poll() == 0:
                    break
                if self.process is not None and self.process.poll() == 2:
                    raise RuntimeError((self.work / "search.log").read_text()[-2000:])
                late = len(self.rows) >= round(kills * (1 - LATE))
                if len(self.rows) < kills and self._steps() > due and self._kill(late):
                    due = self._steps() + self.rng.uniform(*BETWEEN)
                time.sleep(0.02)
            ended = self.process is not None and self.process.poll() == 0
        finally:
            self._stop()
        self._look()
        return {
            "kills": len(self.rows),
            "ended_by_itself": int(ended),
            "starts": self.starts,
            "lost": self.changed,
            **_repeated(self.trace),
            "assault_seconds": round(time.monotonic() - start, 1),
            "rows": self.rows,
        }

    def _start(self) -> None:
        self.starts += 1
        with (self.work / "search.log").open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, cwd=ROOT, env=self.environment)

    def _stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait()

    def _kill(self, late: bool) -> bool:
        """Kill a process of the search; False: none has begun to train yet, or not the phase that is waited for."""
        assert self.process is not None
        states = self._states()
        phases = {state.phase for state in states.values()}
        if not phases or (late and phases.isdisjoint(LATE_PHASES)):
            return False
        is_first = self.rng.random() < FIRST
        pid = self.process.pid if is_first else self.rng.choice(sorted(states))
        self._look()
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return False
        if is_first:
            self.process.wait()
        phase = "/".join(sorted(phases)) if is_first else states[pid].phase
        row = {"victim": "first" if is_first else "worker", "phase": phase, "trials": len(self.seen)}
        self.rows.append(row)
        print(f"kill {len(self.rows)}: {row}", flush=True)
        return True

    def _steps(self) -> float:
        """Return about how many steps all slots have taken."""
        return sum(path.stat().st_size for path in self.trace.iterdir()) / LINE

    def _states(self) -> dict[int, Any]:
        """Return how far the workers are that train, by process."""
        found = {}
        for path in self.folder.workers.glob("*.json"):
            try:
                state = read_state(self.folder, path)
            except Exception:  # it is being written
                continue
            if state.slots and state.is_alive():
                found[state.pid] = state
        return found

    def _look(self) -> None:
        """See what has ended by now, and whether all that had ended before still has, as it was."""
        if not self.folder.database.is_file():
            return
        now = {
            trial.number: (trial.state.name, trial.value)
            for trial in self.folder.trials()
            if trial.state in (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
        }
        self.changed += sum(now.get(number) != ended for number, ended in self.seen.items())
        self.seen = now


def _repeated(trace: Path) -> dict[str, Any]:
    """Return what was trained twice, from the steps that all processes have left behind."""
    lines = [line.split() for path in trace.iterdir() for line in path.read_text().splitlines()]
    last: dict[str, int] = {}
    worst = again = 0
    for _, job, step in sorted((float(at), job, int(step)) for at, job, step in lines):
        if job in last and step <= last[job]:
            worst, again = max(worst, last[job] - step + 1), again + last[job] - step + 1
        last[job] = step
    return {
        "repeated_rungs": round(worst / RUNG, 3),
        "repeated_share_pct": round(100 * again / max(1, len(lines)), 2),
    }


def _judged(folder: RunFolder, study: Study) -> dict[str, Any]:
    """Count what is there more than once or not at all, and train some trials again, undisturbed."""
    result = SearchResult.load(folder.path)
    ended = result.ended()
    trained = Counter(one.id for one in result.trainings)
    searched = Counter(trial.candidate for trial in ended if trial.baseline is None)
    duplicated = max(0, len(ended) - study.budget.trials)
    duplicated += sum(count - 1 for counts in (trained, searched) for count in counts.values())
    return {
        "trials": len(ended),
        "duplicated": duplicated,
        "missing": study.budget.trials - len(ended) + sum(not trial.curve for trial in ended),
        "finals": len(result.finals),
        "repeats": len(result.over_seeds),
        "still_running": sum(trial.outcome == "running" for trial in result.trials),
        "recipe": int(result.recipe is not None),
        "curve_difference": _difference(result, study),
    }


def _difference(result: SearchResult, study: Study) -> float:
    """Return the largest difference of a loss between trials of the search and the same, trained undisturbed."""
    # As the search on a CPU: other threads sum in another order, and a high rate makes much of it.
    torch.set_num_threads(1)
    setting = read_setting(study, torch.device("cpu"))
    trials = [trial for trial in result.ended() if trial.outcome == "finished"]
    chosen = random.Random(1).sample(trials, min(RECHECKED, len(trials)))
    worst = 0.0
    with setting.pack(1) as pack:
        for trial in chosen:
            slot = pack.admit(setting.space.slot(trial.candidate, study.seed, setting.length))
            while not slot.done:
                pack.step()
            worst = max(worst, float(np.abs(np.array(slot.losses) - np.array(trial.curve)).max()))
            pack.evict(slot)
    return worst
