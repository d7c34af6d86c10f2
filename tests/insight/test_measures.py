from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from autolr.insight import measures
from autolr.insight.activations import Pattern


def made(samples=200, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    means = rng.gamma(1.0, scale, (3, 4))
    return Pattern(means * rng.normal(1.0, 1.0, (samples, 3, 4)), rng.random(samples), ("a", "b", "c"))


def test_statistics_are_what_their_names_say():
    even = np.full((3, 4), 2.0)
    alone = np.zeros((3, 4))
    alone[1, 2] = 5.0
    assert measures.gini(even) == pytest.approx(0.0)
    assert measures.gini(alone) == pytest.approx(11 / 12)
    assert measures.gini(np.array([[1.0, 3.0]])) == pytest.approx(0.25)
    assert measures.variation(even) == 0.0
    values = np.random.default_rng(0).random((5, 7))
    assert measures.variation(values) == pytest.approx(stats.variation(values, axis=None))
    assert measures.kurtosis(values) == pytest.approx(stats.kurtosis(values, axis=None))
    assert measures.correlation(values, 3 * values + 1) == pytest.approx(1.0)
    assert measures.correlation(even, values) == 0.0
    assert measures.mse(values, values + 2) == pytest.approx(4.0)


def test_gini_is_the_mean_difference():
    values = np.random.default_rng(1).random(40)
    apart = np.abs(values[:, None] - values[None]).mean() / (2 * values.mean())
    assert measures.gini(values) == pytest.approx(apart)


def test_intervals_hold_the_truth_as_often_as_they_say():
    held = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        one = Pattern(rng.normal([1.0, 3.0], 1.0, (60, 1, 2)), np.zeros(60), ("a",))
        found = measures.interval([one], lambda p: float(p[0, 1] - p[0, 0]), "signed", seed=seed)
        held += found.low <= 2.0 <= found.high
    assert 80 <= held <= 97  # of 90 expected


def test_patterns_of_the_same_samples_are_drawn_together():
    before = made()
    after = Pattern(before.activations * 2, before.losses, before.layers)
    found = measures.interval([before, after], measures.correlation)
    assert found.low == pytest.approx(1.0) and found.mean == pytest.approx(1.0)


def test_heads_are_ranked_and_have_bounds():
    one = made()
    order = measures.ranked(one.of())
    assert len(order) == 12 and one.of()[order[0]] == one.of().max() and one.of()[order[-1]] == one.of().min()
    low, high = measures.bounds(one)
    assert ((low <= one.of()) & (one.of() <= high)).all()


def test_like_tasks_are_neighbours_in_the_tree():
    rng = np.random.default_rng(0)
    roots = [rng.random((3, 4)) for _ in range(2)]
    patterns = [roots[i % 2] + 0.01 * rng.random((3, 4)) for i in range(4)]
    apart = measures.distances(patterns)
    assert np.allclose(apart, apart.T) and np.allclose(np.diag(apart), 0)
    leaves = measures.tree(apart, ["a0", "b0", "a1", "b1"])["ivl"]
    assert {leaves[0][0], leaves[1][0]} in ({"a"}, {"b"})
