"""What a run takes of its device: memory, use, time and tokens, sampled between steps without waiting for it."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from autolr.pack.memory import peak_bytes, resident_bytes
from autolr.schema import yaml_io

# Energy counters of the CPU's packages, in Linux; their parts (intel-rapl:0:1) are counted in them.
RAPL = Path("/sys/class/powercap")
# Seconds between samples, and between writes; the first is doubled whenever so many rows have come together.
SAMPLE_INTERVAL_S, WRITE_INTERVAL_S = 1.0, 15.0
MOST_ROWS = 20_000

SCHEMA = pa.schema(
    [
        ("time", pa.float64()),  # seconds since 1970
        ("phase", pa.string()),
        ("slot", pa.int32()),  # null: the row is of the device
        ("label", pa.string()),
        ("step", pa.int64()),
        ("tokens", pa.int64()),  # trained so far by this training, padding not counted
        ("seconds", pa.float64()),  # its share of the device's time so far; of the phase, where slot is null
        ("ended", pa.bool_()),  # the last row of a training
        ("memory_bytes", pa.int64()),  # in use by torch on a GPU, by the process on a CPU
        ("peak_bytes", pa.int64()),
        ("utilisation", pa.float64()),  # share of the device that is at work; null where it does not tell
        ("watts", pa.float64()),  # drawn since the last sample, by the GPU or all of the CPU; null where not readable
    ]
)


class Training(NamedTuple):
    """How far a training in a slot is."""

    slot: int
    label: str
    step: int
    tokens: int
    seconds: float
    ended: bool = False


class Recorder:
    """Samples a device once a second and keeps what it sees in a Parquet file.

    Nothing here makes a GPU wait: torch's own counters are read, and the driver's.

    Args:
        path: the file; rows of earlier sittings in it are kept.
        device: that is sampled.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        self.path = path
        self.device = device
        self.name = ""
        self.every = SAMPLE_INTERVAL_S
        self._before = self._held()
        self._rows: list[dict[str, Any]] = []
        self._sampled = self._started = 0.0
        self._written = time.monotonic()
        self._process = psutil.Process()
        self._process.cpu_percent(None)  # the first answer says nothing
        self._tells = self._weighs = True
        self._joules: tuple[float, dict[Path, int]] | None = None

    def phase(self, name: str) -> None:
        """Begin a phase."""
        self.name, self._started, self._sampled = name, time.monotonic(), 0.0

    @property
    def due(self) -> bool:
        """Whether it is time for the next sample."""
        return time.monotonic() - self._sampled >= self.every

    def sample(self, trainings: Sequence[Training]) -> None:
        """Add a row for the device, and one for each training."""
        self._sampled = now = time.monotonic()
        on_gpu = self.device.type == "cuda"
        self._add(
            seconds=round(now - self._started, 3),
            memory_bytes=torch.cuda.memory_allocated(self.device) if on_gpu else resident_bytes(),
            peak_bytes=peak_bytes(self.device),
            utilisation=self._utilisation(),
            watts=self._watts(),
        )
        for training in trainings:
            self.note(training)
        if len(self._rows) > MOST_ROWS:
            self.every *= 2
            self._before, self._rows = self._table(), []
        if now - self._written > WRITE_INTERVAL_S:
            self.write()

    def note(self, training: Training) -> None:
        """Add a row for one training."""
        self._add(**training._asdict())

    def write(self) -> None:
        """Write all rows to the file, in one step."""
        self._written = time.monotonic()
        table = self._table()
        if not table.num_rows:
            return
        content = pa.BufferOutputStream()
        pq.write_table(table, content)
        yaml_io.write_bytes(self.path, content.getvalue().to_pybytes(), durable=False)

    def _add(self, **values: Any) -> None:
        self._rows.append({"time": round(time.time(), 3), "phase": self.name, **values})

    def _table(self) -> pa.Table:
        return pa.concat_tables([self._before, pa.Table.from_pylist(self._rows, schema=SCHEMA)])

    def _held(self) -> pa.Table:
        try:
            found = pq.read_table(self.path)
            if "watts" not in found.column_names:  # written before power was
                found = found.append_column("watts", pa.nulls(found.num_rows, pa.float64()))
            return found.select(SCHEMA.names).cast(SCHEMA)
        except (OSError, KeyError, ValueError, pa.ArrowException):  # none, or not one of ours
            return SCHEMA.empty_table()

    def _watts(self) -> float | None:
        """Return the power drawn; None where it cannot be read, and at a CPU's first sample."""
        if not self._weighs:
            return None
        try:
            if self.device.type == "cuda":
                return torch.cuda.power_draw(self.device) / 1000
            now = time.monotonic()
            counters = {path: int(path.read_text()) for path in RAPL.glob("*-rapl:?/energy_uj")}
        except Exception:  # the file is root's alone, or whatever the driver's library says
            self._weighs = False
            return None
        before, self._joules = self._joules, (now, counters)
        if before is None or not counters or now <= before[0]:
            return None
        spent = [counters[path] - count for path, count in before[1].items() if path in counters]
        # A counter that has begun again from 0 says nothing about this time.
        return round(sum(spent) / 1e6 / (now - before[0]), 2) if spent and min(spent) >= 0 else None

    def _utilisation(self) -> float | None:
        if self.device.type != "cuda":
            cores = (
                len(self._process.cpu_affinity()) if hasattr(self._process, "cpu_affinity") else os.cpu_count() or 1
            )
            return round(min(1.0, self._process.cpu_percent(None) / 100 / cores), 3)
        if self._tells:
            try:
                return torch.cuda.utilization(self.device) / 100
            except Exception:  # whatever the driver's library says where it is missing or may not be asked
                self._tells = False
        return None


class Usage(NamedTuple):
    """What a phase has taken, over all sittings.

    Attributes:
        tokens: of trainings that ended.
        utilisation: mean over its samples; None where the device does not tell.
    """

    seconds: float
    tokens: int
    peak_bytes: int
    utilisation: float | None


def usage(path: Path) -> dict[str, Usage]:
    """Return what each phase has taken, from a file of `Recorder`; empty where there is none."""
    try:
        frame = pq.read_table(path).to_pandas()
    except (OSError, pa.ArrowException):
        return {}
    found = {}
    for phase, rows in frame.groupby("phase", sort=False):
        device = rows[rows.slot.isna()]
        shares = device.utilisation.dropna()
        # Seconds count up; they begin again with every sitting, whose last one is its total.
        last = device.seconds.shift(-1, fill_value=-1.0) <= device.seconds
        found[str(phase)] = Usage(
            seconds=float(device.seconds[last].sum()),
            tokens=int(rows.tokens[rows.ended == True].sum()),  # noqa: E712 (a column that may hold nothing)
            peak_bytes=int(device.peak_bytes.max()) if len(device) else 0,
            utilisation=float(shares.mean()) if len(shares) else None,
        )
    return found
