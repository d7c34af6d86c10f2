"""Which matrix matters: what is called tuned, what a claim is worth, and its figure."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest

from studies.research.rates import which_matrix


def rows(seeds: int = 3):
    """Runs in which v is better than k by 0.1, and three times the rule's rate better than it by 0.05 for all."""
    return [
        {
            "targets": targets,
            "factor": factor,
            "seed": seed,
            "parameters": len(targets),
            "validation_loss": 0.6 + 0.01 * seed - 0.1 * ("v" in targets) + 0.05 * (factor != 3),
            "test_loss": 0.7 + 0.01 * seed - 0.1 * ("v" in targets) + 0.05 * (factor != 3),
            "confirm_accuracy": 0.5,
        }
        for targets in which_matrix.TARGETS
        for factor in which_matrix.FACTORS
        for seed in range(seeds)
    ]


def test_tuned_is_the_best_on_select_and_claims_are_paired_by_seed():
    found = which_matrix.summary(rows())
    assert {(row["tuned"], row["factor"]) for row in found} == {(False, 1.0), (True, 3.0)}
    assert {row["targets"] for row in found} == set(which_matrix.TARGETS)
    gain, half = which_matrix.claim(found, "v", "k", True)
    assert gain == pytest.approx(0.1) and half == pytest.approx(0, abs=1e-9)  # seeds shift both alike
    assert which_matrix.claim(found, "qv", "qkv", False)[0] == pytest.approx(0)
    assert math.isinf(which_matrix.claim(which_matrix.summary(rows(seeds=1)), "v", "k", True)[1])


def test_the_figure_has_a_mark_for_every_set_untuned_and_tuned():
    drawn = ElementTree.fromstring(which_matrix.figure(which_matrix.summary(rows())))
    circles = drawn.findall("{*}circle")
    assert len(circles) == 2 * len(which_matrix.TARGETS)
    assert all(60 <= float(circle.get("cx")) <= 520 for circle in circles)
