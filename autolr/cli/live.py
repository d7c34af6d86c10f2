"""How a running search looks: a live table in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from autolr.search.loop import Running, Watcher

BLOCKS = "▁▂▃▄▅▆▇█"


@contextmanager
def watch(plain: bool) -> Iterator[Watcher]:
    """Return a watcher for this terminal: a live table, or plain lines where asked or piped."""
    console = Console()
    if plain or not console.is_terminal or console.is_dumb_terminal:
        yield PlainWatcher()
        return
    with Live(console=console, refresh_per_second=4, transient=True) as live:
        yield LiveWatcher(live)


class Progress(Watcher):
    """Counts: jobs done and pruned, the best score, time left."""

    def __init__(self) -> None:
        self.name, self.total, self.before, self.done = "", 0, 0, 0
        self.outcomes: dict[str, int] = {}
        self.best: Running | None = None
        self.started = time.monotonic()
        self.running: list[Running] = []

    def phase(self, name: str, total: int, done: int) -> None:
        """Start counting anew."""
        self.name, self.total, self.before, self.done = name, total, done, done
        self.outcomes, self.best, self.started = {}, None, time.monotonic()

    def stepped(self, running: list[Running], capacity: int) -> None:
        """Remember who is under way."""
        self.running = list(running)

    def ended(self, running: Running) -> None:
        """Count a job."""
        self.done += 1
        self.running = [one for one in self.running if one is not running]
        self.outcomes[str(running.outcome)] = self.outcomes.get(str(running.outcome), 0) + 1
        is_better = self.best is None or (running.score or 0) < (self.best.score or 0)
        if running.outcome == "finished" and running.score is not None and is_better:
            self.best = running

    def summary(self) -> str:
        """Say how far the phase is."""
        parts = [f"{self.name} {self.done}/{self.total}"]
        parts += [f"{self.outcomes[name]} {name}" for name in ("pruned", "diverged") if self.outcomes.get(name)]
        if self.best is not None:
            parts.append(f"best {self.best.score:.4f} ({self.best.job.candidate.describe()})")
        left = self.time_left()
        if left is not None:
            parts.append(f"{left / 60:.1f} min left" if left >= 60 else f"{left:.0f} s left")
        return ", ".join(parts)

    def time_left(self) -> float | None:
        """Estimate the seconds to the end of the phase from its pace so far."""
        under_way = sum(one.slot.step / one.slot.config.steps for one in self.running)
        progress = self.done - self.before + under_way
        if progress < 0.5:
            return None
        return (time.monotonic() - self.started) / progress * max(0.0, self.total - self.before - progress)


class PlainWatcher(Progress):
    """One line for each job that ends."""

    def phase(self, name: str, total: int, done: int) -> None:
        """Announce a phase."""
        super().phase(name, total, done)
        print(f"{name}: {total} to do" + (f", {done} of them there from before" if done else ""), flush=True)

    def note(self, text: str) -> None:
        """Print a note."""
        print(f"note: {text}", flush=True)

    def ended(self, running: Running) -> None:
        """Print how a job ended."""
        super().ended(running)
        score = "no score" if running.score is None else f"select loss {running.score:.4f}"
        print(
            f"  {running.job.label:<12} {running.job.candidate.describe():<34} {running.outcome} at step "
            f"{running.slot.step}, {score} | {self.summary()}",
            flush=True,
        )


class LiveWatcher(Progress):
    """A table of the slots, drawn a few times a second."""

    def __init__(self, live: Live) -> None:
        super().__init__()
        self.live = live
        self._drawn = 0.0

    def note(self, text: str) -> None:
        """Print a note above the table."""
        self.live.console.print(f"note: {text}", markup=False)

    def stepped(self, running: list[Running], capacity: int) -> None:
        """Draw the slots, at most four times a second."""
        super().stepped(running, capacity)
        if time.monotonic() - self._drawn < 0.25:
            return
        self._drawn = time.monotonic()
        self.live.update(self.view(running, capacity))

    def view(self, running: Sequence[Running], capacity: int) -> Group:
        """Return the table as it stands."""
        utf8 = (sys.stdout.encoding or "").lower().startswith("utf")
        table = Table(box=None, padding=(0, 1), expand=False)
        for column, width in (
            ("trial", 14),
            ("candidate", 32),
            ("step", 9),
            ("loss", 7),
            ("", 12),
            ("score", 7),
        ):
            table.add_column(column, max_width=width, no_wrap=True, overflow="ellipsis")
        for one in running:
            losses = one.slot.losses
            loss = sum(losses[-5:]) / max(1, len(losses[-5:]))
            table.add_row(
                Text(one.job.label),
                Text(one.job.candidate.describe()),
                f"{one.slot.step}/{one.slot.config.steps}",
                f"{loss:.3f}",
                spark(losses, 12) if utf8 else "",
                "" if one.score is None else f"{one.score:.4f}",
            )
        for _ in range(capacity - len(running)):
            table.add_row("-", "", "", "", "", "")
        return Group(Text(self.summary()), table)


def spark(values: Sequence[float], width: int) -> str:
    """Return a line of at most `width` block characters: the means of equal parts of `values`."""
    finite = [value for value in values if value == value and abs(value) != float("inf")]
    if not finite:
        return ""
    width = min(width, len(finite))
    parts = [finite[len(finite) * i // width : len(finite) * (i + 1) // width] for i in range(width)]
    means = [sum(part) / len(part) for part in parts]
    low, span = min(means), (max(means) - min(means)) or 1.0
    return "".join(BLOCKS[min(7, int((mean - low) / span * 8))] for mean in means)
