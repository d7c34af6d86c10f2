"""What a search has taken: time, tokens, energy, and the device's memory while it ran."""

from __future__ import annotations

import html
from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from autolr.model.device import GIB
from autolr.report.figures.style import ACCENT, GREY, SCALE, blank
from autolr.search.folder import RunFolder
from autolr.search.result import SearchResult

# Between two sittings nothing runs: a longer pause is drawn as one so long, in seconds.
PAUSE = 30.0
MOST_SAMPLES = 400


class Taken(NamedTuple):
    """What the visits to a phase took together."""

    phase: str
    seconds: float
    trained_tokens: int
    evaluated_tokens: int


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
        """GiB a slot at work; None where none is."""
        return [round(used / count, 5) if count else None for used, count in zip(self.used, self.slots, strict=True)]


class Energy(NamedTuple):
    """What the device drew, where it can be read.

    Attributes:
        share: of the recorded time that was weighed.
    """

    watt_hours: float
    share: float


class Stay(NamedTuple):
    """A training in a slot: when it was seen first and last, in seconds since the search began."""

    slot: int
    label: str
    phase: str
    start: float
    end: float
    tokens: int


def taken(result: SearchResult) -> list[Taken]:
    """Return what each phase took, in the order of their first visits."""
    found: dict[str, list[Any]] = defaultdict(list)
    for phase in result.phases:
        found[phase.phase].append(phase)
    return [
        Taken(
            name,
            sum(visit.seconds for visit in visits),
            sum(visit.trained_tokens for visit in visits),
            sum(visit.evaluated_tokens for visit in visits),
        )
        for name, visits in found.items()
    ]


def cost(result: SearchResult) -> Any:
    """Device-seconds of each phase, with its tokens; None where no phase was recorded."""
    found = taken(result)
    if not found:
        return None
    figure = blank("device-seconds", "", 110 + 46 * len(found))
    figure.add_bar(
        x=[phase.seconds for phase in found],
        y=[html.escape(phase.phase) for phase in found],
        orientation="h",
        marker={"color": ACCENT},
        text=[f"{p.trained_tokens:,} tokens trained<br>{p.evaluated_tokens:,} evaluated" for p in found],
        textposition="none",
        hovertemplate="%{y}: %{x:.0f} s<br>%{text}<extra></extra>",
    )
    figure.update_yaxes(autorange="reversed")
    figure.update_layout(bargap=0.35)
    return figure


def energy(result: SearchResult) -> Energy | None:
    """Return the energy that the run's resources.parquet tells of; None where power could not be read."""
    try:
        frame = pq.read_table(RunFolder(result.folder).resources).to_pandas()
        frame = frame[frame.slot.isna()].sort_values("time", kind="stable")
        if len(frame) < 2:
            return None
        seconds = np.diff(frame.time.to_numpy(dtype=float))
        watts = frame.watts.to_numpy(dtype=float)[1:]
    except (OSError, pa.ArrowException, AttributeError, KeyError, ValueError, TypeError):
        return None
    seconds = np.where(seconds > PAUSE, 0.0, seconds)
    weighed = np.isfinite(watts)
    if not (seconds * weighed).sum():
        return None
    spent = float((seconds * np.where(weighed, watts, 0.0)).sum())
    return Energy(spent / 3600, float((seconds * weighed).sum() / seconds.sum()))


def recorded(result: SearchResult) -> tuple[Memory, list[Stay]] | None:
    """Return the device's memory and who was in its slots, from the run's resources.parquet; None without it."""
    try:
        frame = pq.read_table(RunFolder(result.folder).resources).to_pandas()
        frame = frame.sort_values("time", kind="stable")
        pauses = np.diff(frame.time.to_numpy(dtype=float), prepend=frame.time.iloc[0] if len(frame) else 0.0)
        frame["at"] = np.cumsum(np.minimum(pauses, PAUSE))
        device, slots = frame[frame.slot.isna()], frame[frame.slot.notna()]
        if not len(device):
            return None
        stays = _stays(slots)
        device = device.iloc[:: max(1, -(-len(device) // MOST_SAMPLES))]
        seconds = [round(float(second), 2) for second in device["at"]]
        return (
            Memory(
                seconds=seconds,
                phases=[str(phase) for phase in device.phase],
                used=[round(float(value) / GIB, 4) for value in device.memory_bytes],
                peak=[round(float(value) / GIB, 4) for value in device.peak_bytes],
                slots=[sum(stay.start <= second <= stay.end for stay in stays) for second in seconds],
            ),
            stays,
        )
    except (OSError, pa.ArrowException, AttributeError, KeyError, ValueError, TypeError):
        return None


def memory(result: SearchResult) -> Any:
    """The device's memory over time, that of a slot, and who was in the slots; None where it was not recorded."""
    found = recorded(result)
    if found is None:
        return None
    used, stays = found
    slots = sorted({stay.slot for stay in stays})
    figure = blank("seconds of work", "GiB", 330 + 16 * min(len(slots), 24))
    places = [f"{html.escape(p)}, {count} slots at work" for p, count in zip(used.phases, used.slots, strict=True)]
    for name, values, colour, dash in (
        ("in use", used.used, ACCENT, "solid"),
        ("peak", used.peak, GREY, "dot"),
        ("per slot at work", used.per_slot, SCALE[0][1], "solid"),
    ):
        figure.add_scatter(
            x=used.seconds,
            y=values,
            mode="lines+markers" if len(used.seconds) < 3 else "lines",
            name=name,
            showlegend=True,
            line={"color": colour, "dash": dash, "width": 2},
            text=places,
            hovertemplate="%{text}<br>" + name + " %{y:.3f} GiB<extra></extra>",
        )
    figure.update_yaxes(rangemode="tozero")
    if slots:
        phases = list(dict.fromkeys(stay.phase for stay in stays))
        shades = {phase: SCALE[(1 + place) % len(SCALE)][1] for place, phase in enumerate(phases)}
        for phase in phases:
            own = [stay for stay in stays if stay.phase == phase]
            figure.add_bar(
                x=[max(stay.end - stay.start, 0.2) for stay in own],
                base=[stay.start for stay in own],
                y=[stay.slot for stay in own],
                orientation="h",
                xaxis="x",
                yaxis="y2",
                name=html.escape(phase),
                showlegend=True,
                marker={"color": shades[phase], "line": {"width": 1, "color": "rgba(255,255,255,0.6)"}},
                text=[html.escape(f"slot {stay.slot}: {stay.label}, {stay.tokens:,} tokens") for stay in own],
                textposition="none",
                hovertemplate="%{text}<extra></extra>",
            )
        share = min(0.5, 0.12 + 0.03 * len(slots))
        lower = {**figure.layout.yaxis.to_plotly_json(), "title": {"text": "slot"}, "domain": [0.0, share]}
        lower |= {"autorange": "reversed", "rangemode": "normal", **({"dtick": 1} if len(slots) <= 12 else {})}
        figure.update_layout(
            barmode="overlay", bargap=0.3, yaxis_domain=[share + 0.08, 1.0], yaxis2=lower, xaxis_anchor="y2"
        )
    figure.update_layout(showlegend=True)
    return figure


def headline(result: SearchResult) -> str | None:
    """Say what the search took; None where no phase was recorded."""
    found = taken(result)
    if not found:
        return None
    seconds, trained = sum(p.seconds for p in found), sum(p.trained_tokens for p in found)
    evidence = result.recipe.evidence if result.recipe else None
    full = f" (those of {evidence.cost.full_run_equivalents:g} full runs)" if evidence else ""
    evaluated = sum(phase.evaluated_tokens for phase in found)
    text = f"{seconds:.0f} device-seconds; {trained:,} tokens trained{full}, {evaluated:,} evaluated"
    drawn = energy(result)
    if drawn is None:
        return text + "; energy could not be read."
    weighed = "" if drawn.share > 0.99 else f" in the {drawn.share:.0%} of the time that was weighed"
    return f"{text}; {drawn.watt_hours:.3g} Wh drawn{weighed}."


def _stays(rows: Any) -> list[Stay]:
    """Return the trainings that rows of slots tell of; a new label, or fewer steps than before, is a new one."""
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
