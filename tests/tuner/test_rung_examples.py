"""The examples of a rung: nested, stratified, as many as the differences ask for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from autolr.data.batches import TokenSet
from autolr.tuner.execute import rung_examples
from autolr.tuner.execute.rung_examples import PILOT, PRECISION, Subset, needed, stratified_order

DATA = TokenSet(ids=[[row] for row in range(3000)], labels=[int(row % 10 < 3) for row in range(3000)], pad_id=0)


class Trials:
    """Trials whose loss on an example is the example's own part, the trial's, and noise of both."""

    def __init__(self, spread: float, noise: float, count: int = 8) -> None:
        rng = np.random.default_rng(0)
        self.means = spread * rng.standard_normal((count, 1))
        self.losses = torch.from_numpy(
            1 + self.means + rng.standard_normal(len(DATA)) + noise * rng.standard_normal((count, len(DATA)))
        )
        self.seen: list[int] = []

    def __call__(self, data: TokenSet):
        rows = [ids[0] for ids in data.ids]
        self.seen += rows
        return self.losses[:, rows], torch.zeros(len(self.losses), len(rows))


def test_every_beginning_is_stratified():
    order = stratified_order(DATA.labels, seed=1)
    assert sorted(order) == list(range(len(DATA)))
    for count in (20, 100, 500):
        assert sum(DATA.labels[row] for row in order[:count]) == pytest.approx(0.3 * count, abs=1.5)
    assert order != stratified_order(DATA.labels, seed=2)


@pytest.mark.parametrize(("spread", "noise"), [(0.1, 1.0), (0.2, 0.5), (0.05, 1.0)])
def test_the_number_gives_the_stated_standard_error(spread, noise):
    trials = Trials(spread, noise, count=64)
    count = needed(trials.losses)
    difference = noise * np.sqrt(2 / count)
    better = np.sort(trials.means.ravel())[:32]
    assert difference == pytest.approx(PRECISION * better.std(ddof=1), rel=0.35)


def test_how_bad_the_bad_ones_are_does_not_matter():
    trials = Trials(0.1, 1.0, count=16)
    number = needed(trials.losses)
    trials.losses[trials.means.ravel().argsort()[8:]] += 100
    assert needed(trials.losses) == number > 1000


def test_far_apart_is_told_by_the_pilot_and_near_together_takes_more():
    far, near = Trials(spread=1.0, noise=0.5), Trials(spread=0.1, noise=0.5)
    assert Subset([DATA], 16, 0).score(far, 24, 400)[0].shape == (8, PILOT)
    losses, _, _ = Subset([DATA], 16, 0).score(near, 24, 400)
    assert losses.shape[1] > 2 * PILOT
    assert len(set(near.seen)) == len(near.seen) == losses.shape[1]  # nothing is scored twice


def test_scoring_costs_a_share_of_the_training():
    trials = Trials(spread=1e-6, noise=1.0)
    losses, _, _ = Subset([DATA], 16, 0).score(trials, 24, 24)
    assert losses.shape[1] == int(rung_examples.MAX_COST * rung_examples.FORWARDS_PER_STEP * 24 * 16)


def test_all_trials_of_a_rung_are_scored_on_the_same_examples():
    rung = Subset([DATA], 16, 0)
    first, later, resumed = (Trials(0.1, 0.5) for _ in range(3))
    rung.score(first, 24, 400)
    rung.score(later, 24, 24)
    Subset([DATA], 16, 0, rung.counts).score(resumed, 24, 24)
    assert sorted(first.seen) == sorted(later.seen) == sorted(resumed.seen)


def test_a_trial_without_numbers_does_not_decide():
    trials = Trials(1.0, 0.5)
    clean = needed(trials.losses)
    trials.losses[2] = float("nan")
    assert needed(trials.losses) == pytest.approx(clean, rel=0.5)
    assert needed(trials.losses * float("nan")) == 0
