"""A job of a search, and a job under way: what the loop trains and callbacks see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from autolr.rundir.records import Outcome
from autolr.schema.candidate import Candidate

if TYPE_CHECKING:
    from autolr.pack.slots import Slot, SlotConfig


@dataclass(frozen=True)
class Job:
    """Something to train in a slot.

    Attributes:
        key: names it in the run folder, in every sitting of a search.
        begun_as: keys of jobs that were the beginning of this very training, the longest first.
    """

    label: str
    candidate: Candidate
    config: SlotConfig
    number: int
    key: str = ""
    begun_as: tuple[str, ...] = ()


@dataclass(eq=False)
class Running:
    """A job in its slot. Setting `outcome` ends it.

    Attributes:
        score: the last validation loss measured.
        seconds: its share of the device's time.
        begun: the step at which it went on with what another job had begun.
        begun_tokens: tokens that were trained by then.
    """

    job: Job
    slot: Slot
    outcome: Outcome | None = None
    score: float | None = None
    seconds: float = 0.0
    begun: int = 0
    begun_tokens: int = 0

    @property
    def trained_tokens(self) -> int:
        """Tokens that this job has trained itself."""
        return self.slot.tokens - self.begun_tokens
