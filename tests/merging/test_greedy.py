"""The greedy choice: the best first, others only if they help, and a record of all."""

from __future__ import annotations

import math

import numpy as np
import pytest

from autolr.merging.greedy import choose


def mean_of(values):
    """A loss with a known optimum: the distance of the mean of the places' values from 0."""
    return lambda places: abs(float(np.mean([values[place] for place in places])))


def test_an_adapter_stays_if_the_average_gets_better():
    values = [0.3, -0.2, 1.0, -0.25]
    found = choose([abs(value) for value in values], mean_of(values))
    # -0.2 first; -0.25 does not help (0.225); 0.3 does (0.05); 1.0 does not.
    assert found.taken == (1, 0) and found.loss == pytest.approx(0.05)
    assert [one.index for one in found.tried] == [1, 3, 0, 2]
    assert [one.taken for one in found.tried] == [True, False, True, False]
    assert found.tried[0].merged is None and found.tried[1].merged == pytest.approx(0.225)
    assert "does not lower" in found.tried[1].reason and "lowers" in found.tried[2].reason


def test_as_the_papers_recipe():
    """Algorithm 1 of "Model soups", written down a second time, over random problems."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        values = rng.normal(size=6)
        loss = mean_of(values)
        soup: list[int] = []
        for place in np.argsort([loss([place]) for place in range(6)], kind="stable"):
            if not soup or loss([*soup, place]) < loss(soup):
                soup.append(int(place))
        found = choose([loss([place]) for place in range(6)], loss)
        assert list(found.taken) == soup and found.loss == loss(soup)


def test_of_equal_ones_the_first_is_taken_and_no_gain_is_none():
    found = choose([0.5, 0.5, 0.5], lambda places: 0.5)
    assert found.taken == (0,) and [one.index for one in found.tried] == [0, 1, 2]


def test_no_number_is_never_taken():
    asked = []

    def loss_of(places):
        asked.append(places)
        return math.nan

    found = choose([math.nan, 0.4, math.inf, 0.3], loss_of)
    assert found.taken == (3,) and found.loss == 0.3 and asked == [(3, 1)]
    left = {one.index: one.reason for one in found.tried if not one.taken}
    assert "diverged" in left[0] and "diverged" in left[2] and "does not lower" in left[1]
    with pytest.raises(ValueError, match="no adapter"):
        choose([math.nan, math.inf], loss_of)
