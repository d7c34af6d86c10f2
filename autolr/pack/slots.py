"""A slot of a pack: what sets it apart from the others, and how far it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from autolr.pack.layout import Block
from autolr.schema.candidate import Candidate
from autolr.schema.space import MethodKind, Role


@dataclass(frozen=True)
class SlotConfig:
    """What sets one slot apart from another.

    Attributes:
        rates: the rate of each role; 0 freezes it.
        rank: of the adapters; 0 where the matrices train themselves.
        seed: of adapter, head and data order.
        steps: the schedule's end.
        stop: steps after which the training ends before that; None: it does not.
        kind: its method.
        rates_b: of roles whose B has a rate of its own.
    """

    rates: dict[Role, float]
    rank: int
    seed: int
    steps: int
    stop: int | None = None
    kind: MethodKind = "lora"
    rates_b: Mapping[Role, float] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        candidate: Candidate,
        rates: dict[Role, float],
        rates_b: Mapping[Role, float],
        seed: int,
        steps: int,
        stop: int | None = None,
    ) -> SlotConfig:
        """Return the slot of a candidate at these rates: of its run of `steps` steps the first `stop`."""
        return cls(rates, candidate.rank, seed, steps, stop, candidate.kind, rates_b)

    @property
    def length(self) -> int:
        """Steps of the training."""
        return self.steps if self.stop is None else min(self.stop, self.steps)

    @property
    def roles(self) -> tuple[Role, ...]:
        """The roles that are trained."""
        return tuple(role for role, rate in self.rates.items() if rate > 0)

    @property
    def place(self) -> tuple[int, str]:
        """What slots are ordered by: rank and method, so that those multiplied together are neighbours."""
        return self.rank, self.kind

    def rate(self, block: Block) -> float:
        """Return the rate of a block before the schedule; below 0 where it is frozen."""
        role, side = block
        rate = self.rates.get(role, 0.0)
        return (self.rates_b.get(role, rate) if side == "B" else rate) if rate > 0 else -1.0


@dataclass(eq=False)
class Slot:
    """A trial inside a pack: its settings, how far it is, and its losses so far.

    Attributes:
        step: optimizer steps done.
        losses: of each step; on a GPU the last ones come with the next `Pack.flush`.
        tokens: trained so far, padding not counted.
        parts: passes in which a batch is trained, one after another; more than one where the memory asks for it.
        unfit: why the training cannot go on, where not even one example at a time fits the memory.
    """

    config: SlotConfig
    order: list[list[int]]
    step: int = 0
    losses: list[float] = field(default_factory=list)
    tokens: int = 0
    parts: int = 1
    unfit: str | None = None

    @property
    def done(self) -> bool:
        """Whether the training is at its end."""
        return self.step >= self.config.length
