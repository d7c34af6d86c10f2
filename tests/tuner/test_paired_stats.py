"""Power and the numbers that settle a comparison are what simulation finds."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from autolr.tuner.judge.paired_stats import PairedDifference, p_value


def crossed(rng, seeds, examples, seed_sd, example_sd, rest_sd, mean=0.0):
    return (
        mean
        + rng.normal(0, seed_sd, (seeds, 1))
        + rng.normal(0, example_sd, (1, examples))
        + rng.normal(0, rest_sd, (seeds, examples))
    )


def shows(differences) -> bool:
    interval = PairedDifference.of(differences).interval()
    return interval.low > 0 or interval.high < 0


@pytest.mark.parametrize(("seed_sd", "example_sd"), [(0.02, 0.1), (0.02, 0.3), (0.002, 0.3)])
def test_the_power_is_the_share_of_comparisons_that_show_the_difference(seed_sd, example_sd):
    rng = np.random.default_rng(0)
    truth = PairedDifference(0.0, 5, 200, seed_sd**2 + 0.1**2 / 200, example_sd**2, 0.1**2)
    size = truth.detectable()
    assert truth.power(size) == pytest.approx(0.8, abs=1e-3)
    found = np.mean([shows(crossed(rng, 5, 200, seed_sd, example_sd, 0.1, size)) for _ in range(800)])
    assert found == pytest.approx(0.8, abs=0.06)
    assert truth.power(0.0) < 0.15


def test_as_many_seeds_or_examples_as_are_said_to_be_needed_settle_it():
    rng = np.random.default_rng(1)
    now = PairedDifference(0.0, 3, 200, 0.02**2 + 0.1**2 / 200, 0.05**2, 0.1**2)
    assert now.power(0.02) < 0.5
    seeds = now.seeds_needed(0.02)
    assert seeds is not None and seeds > 3
    shown = [shows(crossed(rng, seeds, 200, 0.02, 0.05, 0.1, 0.02)) for _ in range(600)]
    assert np.mean(shown) == pytest.approx(0.8, abs=0.08)
    assert now.examples_needed(0.02) is None  # the seeds alone are too different
    noisy = PairedDifference(0.0, 8, 100, 0.001**2 + 0.1**2 / 100, 0.4**2, 0.1**2)
    examples = noisy.examples_needed(0.03)
    assert examples is not None and examples > 100 and noisy.seeds_needed(0.03) is None
    shown = [shows(crossed(rng, 8, examples, 0.001, 0.4, 0.1, 0.03)) for _ in range(300)]
    assert np.mean(shown) == pytest.approx(0.8, abs=0.08)


def test_the_parts_of_the_variance_are_found():
    rng = np.random.default_rng(2)
    found = [PairedDifference.of(crossed(rng, 6, 100, 0.03, 0.2, 0.1)) for _ in range(200)]
    assert np.mean([one.by_example for one in found]) == pytest.approx(0.2**2, rel=0.1)
    assert np.mean([one.by_seed for one in found]) == pytest.approx(0.03**2 + 0.1**2 / 100, rel=0.15)
    assert np.mean([one.rest for one in found]) == pytest.approx(0.1**2, rel=0.05)


def test_means_over_examples_are_the_t_interval_over_seeds():
    means = np.random.default_rng(3).normal(0.1, 0.05, (5, 1))
    interval = PairedDifference.of(means).interval(0.9)
    low, high = stats.t.interval(0.9, 4, loc=means.mean(), scale=stats.sem(means[:, 0]))
    assert (interval.low, interval.high) == pytest.approx((low, high))


def test_one_training_of_each_is_the_paired_t_test_over_examples():
    d = np.random.default_rng(3).normal(0.1, 1, (1, 300))
    low, high = stats.t.interval(0.9, 299, loc=d.mean(), scale=stats.sem(d[0]))
    spread = PairedDifference.of(d)
    assert (spread.interval().low, spread.interval().high) == pytest.approx((low, high))
    assert spread.seeds_needed(0.1) is None and spread.examples_needed(0.1) > 300
    assert p_value(d[0]) == pytest.approx(stats.ttest_1samp(d[0], 0).pvalue)


def test_the_power_rises_to_one_and_is_always_a_number():
    spread = PairedDifference(0.0, 4, 200, 1e-6, 1e-9, 1e-4)
    powers = [spread.power(size) for size in np.geomspace(1e-5, 1.0, 60)]
    assert all(0 <= power <= 1 + 1e-9 for power in powers) and powers[-1] == pytest.approx(1)
    assert all(later >= earlier - 1e-6 for earlier, later in pairwise(powers))


def test_what_does_not_differ_at_all():
    spread = PairedDifference.of(np.zeros((3, 50)))
    assert (spread.interval().low, spread.interval().high) == (0, 0)
    assert spread.power(0.01) == 1 and spread.seeds_needed(0.01) == 2
    assert p_value(np.zeros(5)) == 1
