"""How a running search looks: a live table in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live

from autolr import display
from autolr.cli.output import say
from autolr.display import spell
from autolr.progress.callbacks import Callback
from autolr.progress.jobs import Running
from autolr.progress.state import Progress, State
from autolr.progress.table import View


def is_live(console: Console) -> bool:
    """Return True if the console can redraw a table; a log cannot, even with colours forced on."""
    return console.is_terminal and not console.is_dumb_terminal and sys.stdout.isatty()


@contextmanager
def watch(plain: bool, instead: Callback | None = None) -> Iterator[Callback]:
    """Return a callback for this terminal: a live table, or plain lines if asked or piped; or the one given."""
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
        score = "no score" if running.score is None else f"validation loss {display.loss(running.score)}"
        say(
            f"  {running.job.label:<12} {running.job.candidate.describe():<34} {running.outcome} at step "
            f"{running.slot.step}, {score} | {self.now().summary()}"
        )

    def looked(self, state: object) -> None:
        """Print the workers' progress if a job has ended."""
        assert isinstance(state, State)
        before, self.state = self.state, state
        if (before.phase, before.done) != (state.phase, state.done):
            say(f"  {state.summary()}")


class Screen:
    """A table that is redrawn in place, on a cleared screen after the terminal was resized.

    A resized terminal folds the old lines again, so their number is unknown.
    """

    def __init__(self, live: Live) -> None:
        self.live = live
        self._width = live.console.width

    def draw(self, state: State) -> None:
        """Draw a state."""
        if self.live.console.width != self._width:
            self._width = self.live.console.width
            self.live.console.clear()
            for text in state.notes:
                self.note(text)
        self.live.update(View(state), refresh=True)

    def note(self, text: str) -> None:
        """Print a note above the table."""
        console = self.live.console
        console.print(f"note: {spell(text, console.encoding)}", markup=False, highlight=False)


class LiveWatcher(Progress):
    """A table of the slots, drawn a few times a second."""

    def __init__(self, live: Live) -> None:
        super().__init__()
        self.screen = Screen(live)
        self._drawn = 0.0

    def note(self, text: str) -> None:
        """Print a note above the table."""
        super().note(text)
        self.screen.note(text)
        self.screen.draw(self.now())

    def stepped(self, running: list[Running], capacity: int) -> None:
        """Draw the slots, at most four times a second."""
        super().stepped(running, capacity)
        if time.monotonic() - self._drawn < 0.25:
            return
        self._drawn = time.monotonic()
        self.screen.draw(self.now())

    def looked(self, state: object) -> None:
        """Draw the slots of all workers."""
        assert isinstance(state, State)
        self.screen.draw(state)
