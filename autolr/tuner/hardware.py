"""What a search runs on, and what was chosen for it: device, precision, threads, slots."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch
from pydantic import ValidationError

from autolr.data.pipeline import Prepared
from autolr.errors import RunError
from autolr.model.device import GIB, devices_of
from autolr.model.projections import Site
from autolr.pack import memory, slot_count
from autolr.pack.pack import Pack
from autolr.pack.slot_count import Capacity
from autolr.pack.slots import SlotConfig
from autolr.rundir.folder import RunFolder
from autolr.schema import yaml_io
from autolr.schema.yaml_io import Document
from autolr.tuner.setting import Setting


class Machine(Document):
    """Kept in the run folder as `machine.json`; a resumed search keeps its slots.

    Attributes:
        peak_bytes: the most that was in use during the search, of the device that held most; not of its probes.
        reserved_bytes: the most that torch's allocator held of a GPU, recorded passes' memory included.
        per_rank: numbers that an adapter of rank 1 trains in all matrices of a role: a row of A and a column of B.
    """

    device: str
    precision: str
    threads: int
    slots: int
    reason: str
    predicted_bytes: int
    slot_bytes: int
    free_bytes: int
    rates: dict[int, float] = {}
    peak_bytes: int | None = None
    reserved_bytes: int | None = None
    passes: int = 1
    graphs: bool = False
    graphs_reason: str | None = None
    per_rank: dict[str, int] = {}

    def describe(self) -> str:
        """Return the choices in one line."""
        side_by_side = f", {self.passes} slots at a time" if self.passes > 1 else ""
        threads = f", {self.threads} threads{side_by_side}" if self.device.startswith("cpu") else ""
        graphs = (
            f", CUDA graphs {'on' if self.graphs else 'off'} ({self.graphs_reason})" if self.graphs_reason else ""
        )
        gib = GIB
        return (
            f"{self.device}{threads}, {self.precision} products{graphs}; {self.slots} slots ({self.reason}), about "
            f"{self.predicted_bytes / gib:.1f} GiB at the peak, {self.free_bytes / gib:.1f} GiB free"
        )


def fit(setting: Setting, folder: RunFolder | None = None) -> Machine:
    """Choose the slots for the device, or take those the folder's search began with.

    Raises:
        RunError: not even one slot fits the device.
    """
    study = setting.study
    devices = devices_of(setting.backbone.model)
    device = device_name(devices[0])
    held = _held(folder) if folder else None
    wanted = study.search.slots if isinstance(study.search.slots, int) else None
    if wanted is None and held and held.device == device:
        return held
    told = (study.budget.trials, wanted, setting.data, study.training.batch_size)
    try:
        found = measured(setting.pack, setting.largest, *told)
    except RunError:
        found = measured(setting.pack, setting.smallest, *told)
        found = replace(found, reason=f"{found.reason}; the largest candidates do not fit, and will end at once")
    machine = Machine(
        device=device,
        precision=setting.backbone.precision,
        threads=torch.get_num_threads(),
        slots=found.slots,
        reason=found.reason,
        predicted_bytes=found.peak_bytes,
        slot_bytes=found.slot_bytes,
        free_bytes=found.free_bytes,
        rates=found.rates,
        passes=found.passes,
        graphs=found.graphs,
        graphs_reason=found.graphs_reason,
        per_rank=_per_rank(setting.backbone.projections.sites),
    )
    if folder:
        keep(machine, folder)
    return machine


def measured(
    make_pack: Callable[..., Pack], largest: SlotConfig, most: int, wanted: int | None, data: Prepared, batch: int
) -> Capacity:
    """Choose the number of slots; see `autolr.pack.slot_count.measure`.

    Raises:
        RunError: not even one slot fits the device.
    """
    try:
        return slot_count.measure(make_pack, largest, most, wanted)
    except torch.OutOfMemoryError:
        raise RunError(
            f"a text of {max(data.train.lengths())} tokens does not fit the device's memory, not even in one slot, "
            f"without the other {batch - 1} of its batch; lower data.max_length or the rank, or use another --device"
        ) from None


def keep(machine: Machine, folder: RunFolder) -> None:
    """Write the machine's page of the run folder."""
    yaml_io.write_text(folder.machine, json.dumps(machine.model_dump(mode="json"), indent=1) + "\n")


def used(machine: Machine, devices: Sequence[torch.device]) -> Machine:
    """Return the machine's page with the memory that a search has taken by now."""
    reserved = [torch.cuda.max_memory_reserved(device) for device in devices if device.type == "cuda"]
    peak = max(memory.peak_bytes(device) for device in devices)
    return machine.model_copy(update={"peak_bytes": peak, "reserved_bytes": max(reserved, default=None)})


def device_name(device: torch.device) -> str:
    """Return what a device is called, such as `cpu` or `cuda (NVIDIA H200)`."""
    return f"{device.type} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type


def _per_rank(sites: Iterable[Site]) -> dict[str, int]:
    found: dict[str, int] = defaultdict(int)
    for site in sites:
        found[site.role] += site.d_in + site.d_out
    return dict(found)


def _held(folder: RunFolder) -> Machine | None:
    try:
        return Machine.model_validate_json(folder.machine.read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        return None
