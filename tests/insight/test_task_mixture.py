from __future__ import annotations

import numpy as np
import pytest

from autolr.errors import AutoLRError, DataError
from autolr.insight.activations import Pattern
from autolr.insight.data_selection import nearest
from autolr.insight.task_mixture import Change, combine, least_squares, mixture, non_negative

LAYERS = tuple(f"layer{number}" for number in range(6))


def change(mean, seed, samples=100, noise=0.3):
    """A change whose mean over samples is `mean`, but for noise."""
    rng = np.random.default_rng(seed)
    before = 5 + rng.random((samples, 6, 8))
    after = before + mean + noise * rng.normal(size=before.shape)
    losses = np.zeros(samples)
    return Change(Pattern(before, losses, LAYERS), Pattern(after, losses, LAYERS))


@pytest.fixture
def basics():
    rng = np.random.default_rng(7)
    return {name: rng.normal(size=(6, 8)) for name in ("a", "b", "c")}


def test_a_combination_is_found_and_beats_its_nulls(basics):
    whole = change(0.7 * basics["a"] + 0.3 * basics["b"], 1)
    rng = np.random.default_rng(9)
    strangers = [change(rng.normal(size=(6, 8)), 20 + n) for n in range(4)]
    found = combine(whole, {name: change(mean, n + 2) for n, (name, mean) in enumerate(basics.items())}, strangers)
    assert found.r2.mean > 0.95 and found.p < 0.005
    assert found.null_heads.high < 0.4 and max(found.null_unrelated) < 0.4
    weights = {weight.task: weight for weight in found.weights}
    for name, truth in (("a", 0.7), ("b", 0.3), ("c", 0.0)):
        assert weights[name].ordinary.mean == pytest.approx(truth, abs=0.06)
        assert weights[name].ordinary.low <= weights[name].ordinary.mean <= weights[name].ordinary.high
    shares = {weight.task: weight.share.mean for weight in found.weights}
    assert mixture(shares, 1000)["a"] == pytest.approx(700, abs=60)


def test_nothing_is_found_where_there_is_nothing(basics):
    other = change(np.random.default_rng(3).normal(size=(6, 8)), 1)
    found = combine(other, {name: change(mean, n + 2) for n, (name, mean) in enumerate(basics.items())})
    assert found.p > 0.05 and found.null_unrelated == []


def test_weights_are_those_of_numpy_and_never_negative_where_asked(basics):
    target = basics["a"] - 0.5 * basics["b"]
    parts = list(basics.values())
    matrix = np.stack([part.ravel() for part in parts], 1)
    weights, r2 = least_squares(target, parts)
    np.testing.assert_allclose(weights, np.linalg.pinv(matrix) @ target.ravel(), atol=1e-12)
    np.testing.assert_allclose(weights, [1, -0.5, 0], atol=1e-12)
    assert r2 == pytest.approx(1.0)
    shares, r2_share = non_negative(target, parts)
    assert (shares >= 0).all() and shares[1] == 0.0 and r2_share < r2


def test_patterns_of_other_models_are_refused(basics):
    one = change(basics["a"], 0)
    small = Pattern(one.before.activations[:, :, :4], one.before.losses, LAYERS)
    with pytest.raises(AutoLRError, match="different models"):
        combine(one, {"small": Change(small, small)})
    with pytest.raises(AutoLRError, match="basic tasks"):
        combine(one, {})


def test_mixtures_add_up():
    assert mixture({"a": 0.5, "b": 0.5, "c": 0.0}, 7) in ({"a": 4, "b": 3, "c": 0}, {"a": 3, "b": 4, "c": 0})
    assert sum(mixture({"a": 1.0, "b": 1.0, "c": 1.0}, 100).values()) == 100
    with pytest.raises(AutoLRError, match="positive weight"):
        mixture({"a": 0.0}, 5)


def test_the_nearest_are_those_of_the_target():
    rng = np.random.default_rng(0)
    own, other = rng.random((4, 6)), rng.random((4, 6))
    pool = np.stack(
        [(own if n % 3 == 0 else other) * rng.uniform(0.1, 9) + 0.02 * rng.random((4, 6)) for n in range(60)]
    )
    target = np.stack([own + 0.05 * rng.random((4, 6)) for _ in range(10)])
    chosen = nearest(pool, target, 20)
    assert len(set(chosen)) == 20 and all(row % 3 == 0 for row in chosen)
    with pytest.raises(DataError, match="60 samples"):
        nearest(pool, target, 61)
