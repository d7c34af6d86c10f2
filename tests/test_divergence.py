"""Divergence is judged on the scale of the task's own losses; nothing is cut."""

from __future__ import annotations

import math

import pytest

from autolr.divergence import diverged, first_without_number, is_number, stand_in

START = [0.7] * 10


def test_divergence_is_no_number_or_far_worse_than_the_start():
    assert diverged([*START, math.nan], chance=0.69)
    assert diverged([*START, math.inf], chance=0.69)
    assert not diverged([*START, *[1.3] * 10], chance=0.69)
    assert diverged([*START, *[1.5] * 10], chance=0.69)
    assert not diverged([0.01] * 10 + [0.5] * 10, chance=0.69)


@pytest.mark.parametrize("unit", [1e-12, 1e-3, 1.0, 1e3, 1e30])
def test_the_unit_of_the_losses_does_not_matter(unit):
    for end, expected in ((1.3, False), (1.5, True), (math.nan, True)):
        losses = [*START, *[end] * 10]
        assert diverged([unit * loss for loss in losses], chance=0.69 * unit) is expected
        assert stand_in([unit * loss for loss in losses], 0.69 * unit) == pytest.approx(
            unit * stand_in(losses, 0.69), rel=1e-12
        )


def test_what_stands_for_no_number_is_where_divergence_begins_or_the_worst_there_was():
    assert stand_in([*START, math.nan], 0.69) == pytest.approx(1.4)
    assert stand_in([*START, 2500.0, math.inf], 0.69) == 2500.0
    assert stand_in([math.nan], 0.69) == pytest.approx(2 * 0.69)


def test_without_a_known_chance_only_no_number_counts():
    assert not diverged([-1.0] * 10 + [1e30] * 10)
    assert diverged([-1.0, math.nan])


def test_numbers_are_those_of_float32():
    assert all(map(is_number, (0.0, -1e38, 1e38, 1e-300)))
    assert not any(map(is_number, (math.nan, math.inf, -math.inf, 1e39)))
    assert first_without_number([1.0, 2.0, math.nan, math.inf]) == 2
    assert first_without_number([1.0, -2.0]) is None
