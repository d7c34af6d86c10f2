"""How a running search looks: a live table in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live

from autolr.search.loop import Running, Watcher
from autolr.search.state import Progress, State
from autolr.search.view import View, spell


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


def say(text: str) -> None:
    """Print a line at once, in letters that the output has."""
    print(spell(text, sys.stdout.encoding), flush=True)
