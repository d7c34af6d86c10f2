"""Rules of thumb as points of the space."""

from __future__ import annotations

import math

import numpy as np
import pytest

from autolr.rundir.records import TrialRecord
from autolr.schema.candidate import Candidate
from autolr.schema.study import Study
from autolr.tuner.judge.selection import best_of
from autolr.tuner.propose import baselines
from autolr.tuner.propose.baselines import Baseline
from autolr.tuner.propose.space import SearchSpace, rule_rate
from tests import tiny


def test_the_rule_of_thumb_is_the_published_formula():
    assert rule_rate(2000, "llama") == 5e-4
    assert rule_rate(4096, "llama") == pytest.approx(5e-4 * (2000 / 4096) ** 0.781, rel=5e-3)
    assert rule_rate(4096, "qwen3") == pytest.approx(5e-4 * (2000 / 4096) ** 0.0775, rel=5e-3)


def space(**dimensions) -> SearchSpace:
    return SearchSpace.of(Study(model="m", data="d", space=dimensions), tiny.base("bert"), 100)


def test_rules():
    found = space()
    assert baselines.default(found) == Candidate(lr_v=found.rate, ratio=1, rank=8)
    assert Baseline.PAPER.candidate(found).lr_q == pytest.approx(1e-4)
    assert Baseline.WITH_K.candidate(found).rates(1e-3) == {
        **dict.fromkeys("qkv", found.rate),
        "o": 0,
        "mlp": 0,
        "head": 1e-3,
    }
    winner = Candidate(lr_v=3e-3, ratio=6, rank=16)
    assert Baseline.SAME_LR.candidate(found, winner) == Candidate(lr_v=3e-3, ratio=1, rank=16)
    assert winner.rates(1e-3)["k"] == 0


def test_the_best_are_those_of_whom_all_curves_expect_most():
    found = space(ratio=[1.0], rank=[8], lr_v={"low": 1e-4, "high": 1e-2})
    rates = np.geomspace(1e-4, 1e-2, 25)

    def trials(**odd: float) -> list[TrialRecord]:
        made = []
        for number, lr_v in enumerate(map(float, rates)):
            score = 0.5 + 0.03 * math.log(lr_v / 1e-3) ** 2 + odd.get(f"trial_{number}", 0.0)
            candidate = Candidate(lr_v=lr_v, ratio=1.0, rank=8)
            made.append(
                TrialRecord(number=number, candidate=candidate, outcome="finished", score=score, rungs={25: score})
            )
        return made

    chosen = best_of(trials(), 3, found)
    assert chosen[0].lr_v == pytest.approx(1e-3)
    assert sorted(one.lr_v for one in chosen) == pytest.approx(rates[11:14])
    # A lucky score among bad ones is luck.
    assert Candidate(lr_v=float(rates[3]), ratio=1.0, rank=8) not in best_of(trials(trial_3=-0.16), 3, found)
    # One that goes on in any case takes nobody's place, unless it is all there is.
    apart = Candidate(lr_v=float(rates[12]), ratio=1.0, rank=8)
    others = best_of(trials(), 3, found, apart)
    assert len(others) == 3 and apart not in others
    assert best_of([t for t in trials() if t.candidate == apart], 3, found, apart) == [apart]


def test_which_rules_lie_in_the_space():
    assert space().holds(baselines.default(space()))
    narrow = space(lr_v=[1e-3], ratio={"low": 2, "high": 8}, rank=[4, 6])
    assert not narrow.holds(baselines.default(narrow))
    assert baselines.default(narrow).rank == 6
    assert narrow.points() is None
    assert len(space(lr_v=[1e-3, 2e-3], ratio=4, rank=[2, 4]).points()) == 4


@pytest.mark.parametrize("targets", ["vo", "qk"])
def test_without_both_rates_there_is_no_ratio(targets):
    found = space(targets=targets, lr_v={"low": 1e-5, "high": 1e-2})
    assert set(found.distributions) == {"lr_v", "rank"}
    assert found.candidate({"lr_v": 2e-3, "rank": 4}) == Candidate(lr_v=2e-3, ratio=1, rank=4, targets=targets)
    paper = Baseline.PAPER.candidate(found)
    assert found.holds(paper) and paper.rate == pytest.approx(4e-4 if targets == "vo" else 1e-4)
    assert "ratio" in space(targets=["vo", "qv"]).distributions


def test_a_slot_is_the_beginning_of_the_full_run():
    found = space()
    candidate = Candidate(lr_v=1e-3, ratio=2, rank=8)
    slot = found.slot(candidate, seed=3, length=25)
    assert slot.rates == candidate.rates(found.lr_head)
    assert (slot.rank, slot.seed, slot.steps, slot.length) == (8, 3, 100, 25)
