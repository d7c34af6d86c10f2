"""What a search spends, what it would recommend at each moment, and how good that is."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from autolr.schema.candidate import Candidate
from studies.benchmarks.search_quality.surfaces import Surface


@dataclass
class Ledger:
    """The account of one search; the unit is a full run's trained tokens.

    Attributes:
        budget: of the search.
        spent: so far.
        incumbents: what it would recommend, from which moment on.
        tried: every candidate whose trial was judged, and whether it was pruned.
    """

    budget: float
    spent: float = 0.0
    incumbents: list[tuple[float, Candidate]] = field(default_factory=list)
    tried: list[tuple[Candidate, bool]] = field(default_factory=list)

    def spend(self, cost: float) -> bool:
        """Take the cost from the budget; False, and nothing is spent, where it is more than is left."""
        if self.spent + cost > self.budget + 1e-9:
            return False
        self.spent += cost
        return True

    def recommend(self, candidate: Candidate) -> None:
        """From now on this is the candidate that the search would hand back."""
        if not self.incumbents or self.incumbents[-1][1] != candidate:
            self.incumbents.append((self.spent, candidate))


@dataclass(frozen=True)
class Curve:
    """Excess of the incumbent over the best, in percent, from each moment on.

    Until a search has an incumbent its user takes the rule.

    Attributes:
        moments: tokens, in full runs, rising.
        excess: from each of these moments on.
        rule: excess of the rule.
        budget: of the benchmark: what is not reached within it is censored.
    """

    moments: tuple[float, ...]
    excess: tuple[float, ...]
    rule: float
    budget: float

    @classmethod
    def of(cls, ledger: Ledger, surface: Surface, budget: float | None = None) -> Curve:
        """Judge a search by the truth."""
        return cls(
            tuple(moment for moment, _ in ledger.incumbents),
            tuple(surface.excess(candidate) for _, candidate in ledger.incumbents),
            surface.excess(surface.bounds.rule_candidate),
            max(ledger.budget, budget or 0.0),
        )

    def at(self, tokens: float) -> float:
        """Return the excess of what is recommended after so many tokens."""
        so_far = [excess for moment, excess in zip(self.moments, self.excess, strict=True) if moment <= tokens + 1e-9]
        return so_far[-1] if so_far else self.rule

    def area(self, tokens: float) -> float:
        """Return the mean excess over the first so many tokens: the area under the curve over its width."""
        total, since, level = 0.0, 0.0, self.rule
        for moment, excess in zip(self.moments, self.excess, strict=True):
            until = min(moment, tokens)
            total, since, level = total + (until - since) * level, until, excess
        return (total + (tokens - since) * level) / tokens

    def tokens_to(self, target: float) -> float:
        """Return the tokens from which on the excess stays within a target; infinite where it does not end there.

        To touch the target by luck and leave it again does not count: nobody would know when to stop.
        """
        reached = math.inf
        for moment, excess in zip(self.moments, self.excess, strict=True):
            if excess > target:
                reached = math.inf
            elif math.isinf(reached):
                reached = moment
        return reached


def pruned_best(ledger: Ledger, surface: Surface) -> tuple[bool, float] | None:
    """Return True if the best candidate of those tried was pruned, and what that cost in percent.

    Returns:
        None where nothing was judged. The cost compares the best that was kept with the best that was tried.
    """
    if not ledger.tried or all(pruned for _, pruned in ledger.tried):
        return None
    finals = [(surface.final(candidate), pruned) for candidate, pruned in ledger.tried]
    best, was_pruned = min(finals)
    kept = min(final for final, pruned in finals if not pruned)
    return was_pruned, 100 * (kept / best - 1)
