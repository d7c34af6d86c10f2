"""The device's memory while a search ran, and who was in its slots."""

from __future__ import annotations

import html
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go

from autolr.model.device import GIB
from autolr.report import data
from autolr.report.figures.registry import figure
from autolr.report.figures.style import ACCENT, GREY, SCALE, blank
from autolr.rundir.result import SearchResult

MOST_SAMPLES = 400


class Memory(NamedTuple):
    """The device's memory over time; all lists are of samples.

    Attributes:
        seconds: since the search began, pauses between sittings left out.
        used, peak: GiB.
        slots: at work.
    """

    seconds: list[float]
    phases: list[str]
    used: list[float]
    peak: list[float]
    slots: list[int]

    @property
    def per_slot(self) -> list[float | None]:
        """GiB for each slot at work; None if none is."""
        return [round(used / count, 5) if count else None for used, count in zip(self.used, self.slots, strict=True)]


class Stay(NamedTuple):
    """A training in a slot: when it was seen first and last, in seconds since the search began."""

    slot: int
    label: str
    phase: str
    start: float
    end: float
    tokens: int


def recorded(result: SearchResult) -> tuple[Memory, list[Stay]] | None:
    """Return the device's memory and who was in its slots, from the run's resources.parquet; None without it."""
    try:
        frame = data.resources(result)
        pauses = np.diff(frame.time.to_numpy(dtype=float), prepend=frame.time.iloc[0] if len(frame) else 0.0)
        frame["at"] = np.cumsum(np.minimum(pauses, data.PAUSE))
        device, slots = frame[frame.slot.isna()], frame[frame.slot.notna()]
        if not len(device):
            return None
        stays = _stays(slots)
        device = device.iloc[:: max(1, -(-len(device) // MOST_SAMPLES))]
        seconds = [round(float(second), 2) for second in device["at"]]
        memory = Memory(
            seconds=seconds,
            phases=[str(phase) for phase in device.phase],
            used=[round(float(value) / GIB, 4) for value in device.memory_bytes],
            peak=[round(float(value) / GIB, 4) for value in device.peak_bytes],
            slots=[sum(stay.start <= second <= stay.end for stay in stays) for second in seconds],
        )
    except data.UNREADABLE:
        return None
    return memory, stays


@figure(
    "memory",
    "Memory of the slots over time",
    110,
    "Sampled once a second; pauses between sittings are left out. Above: memory in use, and its share for each "
    "slot at work; below: which training was in which slot.",
    "This run has no resources.parquet that can be read.",
    look_for="whether more slots would have fitted",
)
def memory(result: SearchResult) -> go.Figure | None:
    """The device's memory over time, that of a slot, and who was in the slots; None if it was not recorded."""
    found = recorded(result)
    if found is None:
        return None
    used, stays = found
    slots = sorted({stay.slot for stay in stays})
    drawn = blank("seconds of work", "GiB", 330 + 16 * min(len(slots), 24))
    places = [f"{html.escape(p)}, {count} slots at work" for p, count in zip(used.phases, used.slots, strict=True)]
    for name, values, colour, dash in (
        ("in use", used.used, ACCENT, "solid"),
        ("peak", used.peak, GREY, "dot"),
        ("per slot at work", used.per_slot, SCALE[0][1], "solid"),
    ):
        drawn.add_scatter(
            x=used.seconds,
            y=values,
            mode="lines+markers" if len(used.seconds) < 3 else "lines",
            name=name,
            showlegend=True,
            line={"color": colour, "dash": dash, "width": 2},
            text=places,
            hovertemplate="%{text}<br>" + name + " %{y:.3f} GiB<extra></extra>",
        )
    drawn.update_yaxes(rangemode="tozero")
    if slots:
        _add_stays(drawn, stays, len(slots))
    drawn.update_layout(showlegend=True)
    return drawn


def _add_stays(drawn: go.Figure, stays: list[Stay], slots: int) -> None:
    """Add a second panel below: a bar for each training, in the row of its slot."""
    for place, phase in enumerate(dict.fromkeys(stay.phase for stay in stays)):
        own = [stay for stay in stays if stay.phase == phase]
        shade = SCALE[(1 + place) % len(SCALE)][1]
        drawn.add_bar(
            x=[max(stay.end - stay.start, 0.2) for stay in own],
            base=[stay.start for stay in own],
            y=[stay.slot for stay in own],
            orientation="h",
            xaxis="x",
            yaxis="y2",
            name=html.escape(phase),
            showlegend=True,
            marker={"color": shade, "line": {"width": 1, "color": "rgba(255,255,255,0.6)"}},
            text=[html.escape(f"slot {stay.slot}: {stay.label}, {stay.tokens:,} tokens") for stay in own],
            textposition="none",
            hovertemplate="%{text}<extra></extra>",
        )
    share = min(0.5, 0.12 + 0.03 * slots)
    lower = {**drawn.layout.yaxis.to_plotly_json(), "title": {"text": "slot"}, "domain": [0.0, share]}
    lower |= {"autorange": "reversed", "rangemode": "normal", **({"dtick": 1} if slots <= 12 else {})}
    drawn.update_layout(
        barmode="overlay", bargap=0.3, yaxis_domain=[share + 0.08, 1.0], yaxis2=lower, xaxis_anchor="y2"
    )


def _stays(rows: Any) -> list[Stay]:
    """Return the trainings in the rows of slots; a new label, or fewer steps than before, is a new one."""
    found = []
    for slot, own in rows.groupby("slot"):
        current: Any = None
        step = -1
        for row in own.itertuples():
            if current is None or row.label != current.label or row.step < step or row.phase != current.phase:
                if current is not None:
                    found.append(current)
                current = Stay(int(slot), str(row.label), str(row.phase), float(row.at), float(row.at), 0)
            current = current._replace(end=float(row.at), tokens=int(row.tokens))
            step = row.step
        found.append(current)
    return found
