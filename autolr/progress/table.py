"""How a search that is under way looks: a table of its slots, for terminals and notebooks."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from autolr import display
from autolr.display import spell
from autolr.progress.state import SlotState, State

BLOCKS = "▁▂▃▄▅▆▇█"
# Widths of the table's columns; the candidate gives way first, and what is left goes to the curve.
LABEL, CANDIDATE, STEP, LOSS, SCORE, GAP = 32, (18, 40), 9, 7, 7, 2
LEAST_CURVE, MOST_CURVE = 6, 60


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
        if self.state.capacity == 0 or (self.state.ended and not self.state.slots):
            return
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
            "" if slot.score is None else f"{display.loss(slot.score)}",
        ]
        return [Text(cell) for cell in cells]


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 2]}.."


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
