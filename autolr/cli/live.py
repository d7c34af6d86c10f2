"""How a running search looks: a live table in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.table import Table
from rich.text import Text

from autolr.search.loop import Running, Watcher
from autolr.search.state import Progress, SlotState, State

BLOCKS = "▁▂▃▄▅▆▇█"
# Widths of the table's columns; the candidate gives way first, and what is left goes to the curve.
LABEL, CANDIDATE, STEP, LOSS, SCORE, GAP = 32, (18, 40), 9, 7, 7, 2
LEAST_CURVE, MOST_CURVE = 6, 60


def is_live(console: Console) -> bool:
    """Tell whether a table that is drawn over and over can be shown.

    A log is none, also where the environment forces colours on.
    """
    return console.is_terminal and not console.is_dumb_terminal and sys.stdout.isatty()


@contextmanager
def watch(plain: bool, instead: Watcher | None = None) -> Iterator[Watcher]:
    """Return a watcher for this terminal: a live table, or plain lines where asked or piped; or the one given."""
    console = Console()
    if instead is not None:
        yield instead
        return
    if plain or not is_live(console):
        yield PlainWatcher()
        return
    with Live(console=console, refresh_per_second=4, transient=True) as live:
        yield LiveWatcher(live)


class PlainWatcher(Progress):
    """One line for each job that ends."""

    def phase(self, name: str, total: int, done: int) -> None:
        """Announce a phase."""
        super().phase(name, total, done)
        say(f"{name}: {total} to do" + (f", {done} of them there from before" if done else ""))

    def note(self, text: str) -> None:
        """Print a note."""
        say(f"note: {text}")

    def ended(self, running: Running) -> None:
        """Print how a job ended."""
        super().ended(running)
        score = "no score" if running.score is None else f"select loss {running.score:.4f}"
        say(
            f"  {running.job.label:<12} {running.job.candidate.describe():<34} {running.outcome} at step "
            f"{running.slot.step}, {score} | {self.now().summary()}"
        )

    def looked(self, state: object) -> None:
        """Print how far the workers are, when something has ended."""
        assert isinstance(state, State)
        said, self.state = self.state, state
        if (said.phase, said.done) != (state.phase, state.done):
            say(f"  {state.summary()}")


class LiveWatcher(Progress):
    """A table of the slots, drawn a few times a second."""

    def __init__(self, live: Live) -> None:
        super().__init__()
        self.live = live
        self._drawn = 0.0

    def note(self, text: str) -> None:
        """Print a note above the table."""
        self.live.console.print(f"note: {spell(text, self.live.console.encoding)}", markup=False)

    def stepped(self, running: list[Running], capacity: int) -> None:
        """Draw the slots, at most four times a second."""
        super().stepped(running, capacity)
        if time.monotonic() - self._drawn < 0.25:
            return
        self._drawn = time.monotonic()
        self.live.update(View(self.now()))

    def looked(self, state: object) -> None:
        """Draw the slots of all workers."""
        assert isinstance(state, State)
        self.live.update(View(state))


class View:
    """A state as a table that fits the terminal, whatever its size is by now."""

    def __init__(self, state: State) -> None:
        self.state = state

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the table for the width and height of this moment."""
        encoding = console.encoding
        width = options.max_width
        candidate = max((len(spell(slot.candidate, encoding)) for slot in self.state.slots), default=CANDIDATE[0])
        longest = max((len(slot.label) for slot in self.state.slots), default=0)
        label = min(max(longest, len("trial")), LABEL, max(12, width // 4))
        step = max((len(f"{slot.step}/{slot.steps}") for slot in self.state.slots), default=STEP)
        fixed = label + step + LOSS + SCORE + 5 * GAP
        candidate = max(CANDIDATE[0], min(candidate, CANDIDATE[1], width - fixed))
        curve = min(MOST_CURVE, width - fixed - candidate - GAP) if encoding.startswith("utf") else 0
        table = Table(box=None, padding=(0, GAP, 0, 0), expand=False)
        names = ["trial", "candidate", "step", "loss", *([""] if curve >= LEAST_CURVE else []), "score"]
        for name in names:
            table.add_column(name, no_wrap=True, overflow="crop")
        # Two lines are the summary's, one the heading's, and one is left for the cursor.
        room = max(1, console.height - 5) if console.is_terminal else len(self.state.slots)
        for slot in self.state.slots[:room]:
            table.add_row(*self._row(slot, (label, candidate, curve), encoding))
        for _ in range(min(self.state.capacity, room) - len(self.state.slots)):
            table.add_row("-", *[""] * (len(names) - 1))
        yield Text(spell(self.state.summary(), encoding))
        yield table
        if len(self.state.slots) > room:
            yield Text(f"and {len(self.state.slots) - room} more")

    def _row(self, slot: SlotState, widths: tuple[int, int, int], encoding: str) -> list[Text]:
        label, candidate, curve = widths
        loss = sum(slot.losses[-5:]) / max(1, len(slot.losses[-5:]))
        cells = [
            _cut(spell(slot.label, encoding), label),
            _cut(spell(slot.candidate, encoding), candidate),
            f"{slot.step}/{slot.steps}",
            f"{loss:.3f}" if slot.losses else "",
            *([spark(slot.losses, curve)] if curve >= LEAST_CURVE else []),
            "" if slot.score is None else f"{slot.score:.4f}",
        ]
        return [Text(cell) for cell in cells]


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 2]}.."


def spell(text: str, encoding: str | None) -> str:
    """Return a text in letters that an output's encoding has."""
    if (encoding or "").lower().startswith("utf"):
        return text
    return text.replace("λ=", "ratio=").replace("λ", "ratio").replace("η", "lr").encode("ascii", "replace").decode()


def say(text: str) -> None:
    """Print a line at once, in letters that the output has."""
    print(spell(text, sys.stdout.encoding), flush=True)


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
