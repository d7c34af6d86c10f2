"""A search is charged for what it trains, and judged by what it would recommend."""

from __future__ import annotations

import math

import pytest

from autolr.schema.candidate import Candidate
from studies.benchmarks.search_quality import ledger


def test_a_curve_by_hand(monkeypatch):
    excesses = {1: 2.0, 2: 0.2, 3: 0.9, 4: 0.25}
    surface = ToySurface(excesses)
    account = ledger.Ledger(budget=10.0)
    for cost, ratio in ((1.0, 1), (1.0, 2), (2.0, 3), (1.0, 3), (1.0, 4)):
        assert account.spend(cost)
        account.recommend(Candidate(lr_v=1e-3, ratio=ratio, rank=8))
    assert not account.spend(4.5)
    assert account.spent == 6.0
    assert len(account.incumbents) == 4
    curve = ledger.Curve.of(account, surface)
    assert [curve.at(tokens) for tokens in (0.5, 1, 1.9, 2, 4, 5.9, 6, 10)] == [5, 2, 2, 0.2, 0.9, 0.9, 0.25, 0.25]
    # Within 1 % from the second moment on; it left 0.3 % again, and came back at the sixth.
    assert curve.tokens_to(1.0) == 2.0
    assert curve.tokens_to(0.3) == 6.0
    assert curve.tokens_to(0.1) == math.inf
    assert curve.area(10.0) == pytest.approx((5 + 2 + 2 * 0.2 + 2 * 0.9 + 4 * 0.25) / 10)
    assert curve.area(3.0) == pytest.approx((5 + 2 + 0.2) / 3)


def test_the_best_that_was_pruned():
    surface = ToySurface({1: 2.0, 2: 0.2, 3: 0.9})
    one, two, three = (Candidate(lr_v=1e-3, ratio=ratio, rank=8) for ratio in (1, 2, 3))
    account = ledger.Ledger(1.0, tried=[(one, False), (two, True), (three, False)])
    was_pruned, cost = ledger.pruned_best(account, surface)
    assert was_pruned
    assert cost == pytest.approx(100 * (1.009 / 1.002 - 1))
    account.tried[1] = (two, False)
    assert ledger.pruned_best(account, surface) == (False, 0.0)
    assert ledger.pruned_best(ledger.Ledger(1.0), surface) is None


class ToySurface:
    """Excess by ratio, in percent; the rule's is 5."""

    def __init__(self, excesses: dict[int, float]) -> None:
        self.excesses = {**excesses, 99: 5.0}
        self.bounds = self
        self.rule_candidate = Candidate(lr_v=1e-3, ratio=99, rank=8)

    def excess(self, candidate: Candidate) -> float:
        return self.excesses[int(candidate.ratio)]

    def final(self, candidate: Candidate) -> float:
        return 1 + self.excess(candidate) / 100
