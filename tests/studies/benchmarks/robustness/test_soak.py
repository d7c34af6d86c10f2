"""Many trials in one worker: growth of memory, and open files."""

from __future__ import annotations

import pytest

from studies.benchmarks.robustness import soak


def test_growth_is_the_slope_after_the_warm_up():
    assert soak.growth([50] * 20 + [100] * 200, warm=0.1) == pytest.approx(0, abs=1e-9)
    grown = [1000.0 + 0.1 * n for n in range(100)]
    assert soak.growth(grown, warm=0.0) == pytest.approx(100 * 0.1 * 100 / 1005, rel=1e-3)


def test_a_search_leaves_no_files_open(tmp_path):
    found = soak.measure(12, tmp_path)
    assert found["soaked"] == 12 and found["handles_left_open"] <= 0 and len(found["rows"][0]["mib"]) == 12
