"""The live view in a notebook: one output that is drawn over and over."""

from __future__ import annotations

import html
import io
import sys
import time
from typing import Any

from rich.console import Console

from autolr.progress.callbacks import Callback
from autolr.progress.jobs import Running
from autolr.progress.state import Progress, State
from autolr.progress.table import View

# Seconds between drawings, and letters of a line.
EVERY, WIDTH = 0.5, 110


def live() -> Callback | None:
    """Return the live view of the notebook this runs in; None elsewhere."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return NotebookCallback() if getattr(shell, "kernel", None) is not None else None


class NotebookCallback(Progress):
    """A table of the slots that is drawn in place, with the notes above it."""

    def __init__(self) -> None:
        super().__init__()
        self._output: Any = None
        self._drawn = 0.0

    def note(self, text: str) -> None:
        """Draw a note."""
        super().note(text)
        self._draw()

    def stepped(self, running: list[Running], capacity: int) -> None:
        """Draw the slots, if it is time."""
        super().stepped(running, capacity)
        if time.monotonic() - self._drawn > EVERY:
            self._draw()

    def ended(self, running: Running) -> None:
        """Draw the table without who has ended."""
        super().ended(running)
        self._draw()

    def looked(self, state: object) -> None:
        """Draw the slots of all workers."""
        assert isinstance(state, State)
        notes = list(dict.fromkeys([*self.state.notes, *state.notes]))
        self.state = state.model_copy(update={"notes": notes})
        self._draw(self.state)

    def _draw(self, state: State | None = None) -> None:
        from IPython.display import HTML, display

        self._drawn = time.monotonic()
        state, text = state or self.now(), io.StringIO()
        # Left to itself rich would see the notebook, and show something of its own.
        console = Console(file=text, width=WIDTH, force_jupyter=False, force_terminal=False, color_system=None)
        console.print(View(state))
        lines = "\n".join([*(f"note: {note}" for note in state.notes), text.getvalue().rstrip()])
        shown = HTML(f"<pre style='line-height: 1.2'>{html.escape(lines)}</pre>")  # type: ignore[no-untyped-call]
        if self._output is None:
            self._output = display(shown, display_id=True)  # type: ignore[no-untyped-call]
        else:
            self._output.update(shown)
