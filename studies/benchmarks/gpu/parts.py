"""One call on a GPU machine: its results written at once, its time, its failures, and its GPU, real or simulated."""

from __future__ import annotations

import gc
import json
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from studies.benchmarks.common import document
from studies.benchmarks.common.document import Result

DEVICE = torch.device("cuda", 0)
GIB = 2**30
# How torch's debug mode names what it counts.
SYNCHRONIZES = "synchronizing CUDA operation"
# Messages of errors after which CUDA answers nothing more in the process.
FATAL = ("device-side assert", "illegal memory access", "illegal instruction", "unspecified launch failure")


@dataclass(frozen=True)
class Part:
    """A part of a call.

    Attributes:
        name: as `--only` gives it.
        least: seconds that must be left for it to begin.
        work: measures, and writes lines.
    """

    name: str
    least: float
    work: Callable[[Run], None]


class Run:
    """A call that writes each result as a line of `results.jsonl`, and keeps within its time.

    Args:
        name: of the document.
        out: folder of the lines.
        budget: seconds the call may take.
        started: when it began, by `time.perf_counter`.
        gpu: the simulated GPU; None: the machine has a real one.
    """

    def __init__(self, name: str, out: Path, budget: float, started: float, gpu: Any = None) -> None:
        self.result = Result(name)
        self.out, self.budget, self.started, self.gpu = out, budget, started, gpu
        out.mkdir(parents=True, exist_ok=True)
        self.lines = out / "results.jsonl"

    @property
    def simulated(self) -> bool:
        """Whether the GPU is a simulated one."""
        return self.gpu is not None

    # Lines and figures

    def row(self, kind: str, **values: Any) -> None:
        """Write a result as a line, at once, and show it."""
        private = {str(document.ROOT), str(Path.home()), tempfile.gettempdir()} - {"/"}
        text = json.dumps({"at": round(self.seconds, 1), **values}, default=str)
        for path in sorted(private, key=len, reverse=True):  # an error's message may hold one
            text = text.replace(path, "...")
        self.result.row(kind, **json.loads(text))
        with self.lines.open("a", encoding="utf-8") as file:
            file.write(json.dumps(self.result.rows[-1]) + "\n")

    def figure(self, name: str, value: float | None) -> None:
        """Add a figure to the document."""
        self.result.figure(name, value)

    # Time

    @property
    def seconds(self) -> float:
        """Seconds since the call began."""
        return time.perf_counter() - self.started

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.budget - self.seconds

    def left_out(self, part: str, reason: str | None = None) -> None:
        """Name something that is not measured, and say why."""
        self.row("left out", part=part, reason=reason or f"{max(0, round(self.left))} s are left")

    def do(self, parts: Sequence[Part]) -> None:
        """Do parts one after another; a part that fails is a line, and the next one begins."""
        broken = ""
        for part in parts:
            if broken:
                self.left_out(part.name, f"CUDA answers nothing after {broken} failed")
            elif self.left < part.least:
                self.left_out(part.name)
            elif self._failed(part):
                broken = part.name
            self.release()

    def _failed(self, part: Part) -> bool:
        """Do a part; return whether CUDA is of no use after it."""
        start = time.perf_counter()
        try:
            part.work(self)
        except Exception as error:
            where = [f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)][-6:]
            said = f"{type(error).__name__}: {str(error)[:400]}"
            self.row("failed", part=part.name, error=said, where=where)
            return any(words in str(error) for words in FATAL)
        self.row("part", part=part.name, seconds=round(time.perf_counter() - start, 1))
        return False

    # The GPU

    def wait(self) -> None:
        """Wait for the GPU."""
        torch.cuda.synchronize()

    def release(self) -> None:
        """Give cached memory back to the GPU."""
        gc.collect()
        torch.cuda.empty_cache()

    def timed(self, work: Callable[[], object], least: float = 0.3) -> float:
        """Return the seconds of a piece of work: the median of five measurements of at least `least` together."""
        for _ in range(3):
            work()
        count = 1
        while (first := self._took(work, count)) < least / 5 and not self.simulated:
            count *= 2
        return sorted([first, *(self._took(work, count) for _ in range(4))])[2] / count

    def _took(self, work: Callable[[], object], count: int) -> float:
        self.wait()
        start = time.perf_counter()
        for _ in range(count):
            work()
        self.wait()
        return time.perf_counter() - start

    @contextmanager
    def limited(self, memory: int) -> Iterator[None]:
        """Let torch take no more than so many bytes of the GPU."""
        if self.simulated:
            before, self.gpu.limit = self.gpu.limit, memory
        else:
            total = torch.cuda.get_device_properties(DEVICE).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, memory / total), DEVICE)
        try:
            yield
        finally:
            if self.simulated:
                self.gpu.limit = before
            else:
                torch.cuda.set_per_process_memory_fraction(1.0, DEVICE)

    @contextmanager
    def waits(self) -> Iterator[Counter[str]]:
        """Count where the host waits for the GPU, by torch's own debug mode; filled when the context closes."""
        found: Counter[str] = Counter()
        if self.simulated:
            self.gpu.waits.clear()
            yield found
            found.update(self.gpu.waits)
            return
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield found
            finally:
                torch.cuda.set_sync_debug_mode("default")
        places = (
            "/".join(Path(w.filename).parts[-2:]) + f":{w.lineno}" for w in caught if SYNCHRONIZES in str(w.message)
        )
        found.update(places)

    @contextmanager
    def side_stream(self) -> Iterator[None]:
        """Work on a stream of its own, as torch asks of what is done before a CUDA graph is captured."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            yield
        torch.cuda.current_stream().wait_stream(side)


def first_line(error: BaseException, length: int = 300) -> str:
    """Return the first line of an error's message, with its type; and of the error that was there before it."""
    lines = str(error).strip().splitlines()
    said = f"{type(error).__name__}: {lines[0] if lines else ''}"[:length]
    # A capture that fails hides why behind an error of its own.
    return f"{said} (after {first_line(error.__context__, length)})" if error.__context__ else said
