"""Rules of thumb as points of the space."""

from __future__ import annotations

import math

import numpy as np
import pytest

from autolr.candidate import Candidate
from autolr.search import space as spaces
from autolr.search.confirm import finalists
from autolr.search.records import TrialRecord
from autolr.search.space import SearchSpace, drift, rule_rate
from autolr.study import Study
from tests import tiny


def test_the_rule_of_thumb_is_the_published_formula():
    assert rule_rate(2000, "llama") == 5e-4
    assert rule_rate(4096, "llama") == pytest.approx(5e-4 * (2000 / 4096) ** 0.781, rel=5e-3)
    assert rule_rate(4096, "qwen3") == pytest.approx(5e-4 * (2000 / 4096) ** 0.0775, rel=5e-3)


def space(**dimensions) -> SearchSpace:
    return SearchSpace.of(Study(model="m", data="d", space=dimensions), tiny.base("bert"), 100)


def test_rules():
    found = space()
    assert found.rule("rule") == Candidate(lr_v=found.rate, ratio=1, rank=8)
    assert found.rule("paper").lr_q == pytest.approx(1e-4)
    assert found.rule("qkv").rates(1e-3) == {
        **dict.fromkeys("qkv", found.rate),
        "o": 0,
        "mlp": 0,
        "head": 1e-3,
    }
    winner = Candidate(lr_v=3e-3, ratio=6, rank=16)
    assert found.rule("winner_lr", winner) == Candidate(lr_v=3e-3, ratio=1, rank=16)
    assert winner.rates(1e-3)["k"] == 0


def test_finalists_are_ready_for_other_rates_at_the_end(monkeypatch):
    monkeypatch.setattr(spaces, "DRIFT", (far := 0.35))  # further than measured, to be seen on a grid
    found = space(ratio=[1.0], rank=[8], lr_v={"low": 1e-4, "high": 1e-2})
    rates = np.geomspace(1e-4, 1e-2, 25)

    def best(count: int, length: int) -> list[float]:
        trials = [
            TrialRecord(
                number=number,
                candidate=Candidate(lr_v=float(lr_v), ratio=1.0, rank=8),
                outcome="finished",
                score=(score := 0.5 + 0.03 * math.log(lr_v / 1e-3) ** 2),
                rungs={length: score},
            )
            for number, lr_v in enumerate(rates)
        ]
        return sorted(candidate.lr_v for candidate in finalists(trials, count, found))

    assert drift(100, 25) == {"lr_v": far * math.log(4)} and drift(100, 100) == {"lr_v": 0.0}
    assert best(1, 25) == pytest.approx([1e-3])
    assert best(3, 100) == pytest.approx(rates[11:14])  # nothing follows: the neighbours
    low, middle, high = best(3, 25)
    assert middle == pytest.approx(1e-3)
    assert high / middle == pytest.approx(middle / low, rel=0.3) == pytest.approx(4**far, rel=0.25)


def test_which_rules_lie_in_the_space():
    assert space().holds(space().rule("rule"))
    narrow = space(lr_v=[1e-3], ratio={"low": 2, "high": 8}, rank=[4, 6])
    assert not narrow.holds(narrow.rule("rule"))
    assert narrow.rule("rule").rank == 6
    assert narrow.points() is None
    assert len(space(lr_v=[1e-3, 2e-3], ratio=4, rank=[2, 4]).points()) == 4


@pytest.mark.parametrize("targets", ["vo", "qk"])
def test_without_both_rates_there_is_no_ratio(targets):
    found = space(targets=targets, lr_v={"low": 1e-5, "high": 1e-2})
    assert set(found.distributions) == {"lr_v", "rank"}
    assert found.candidate({"lr_v": 2e-3, "rank": 4}) == Candidate(lr_v=2e-3, ratio=1, rank=4, targets=targets)
    paper = found.rule("paper")
    assert found.holds(paper) and paper.rate == pytest.approx(4e-4 if targets == "vo" else 1e-4)
    assert "ratio" in space(targets=["vo", "qv"]).distributions


def test_a_slot_is_the_beginning_of_the_full_run():
    found = space()
    candidate = Candidate(lr_v=1e-3, ratio=2, rank=8)
    slot = found.slot(candidate, seed=3, length=25)
    assert slot.rates == candidate.rates(found.lr_head)
    assert (slot.rank, slot.seed, slot.steps, slot.length) == (8, 3, 100, 25)
