"""WarmStart searches: their winners are carried by the rule of thumb, tried first, and searched around."""

from __future__ import annotations

import math

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution

from autolr.errors import RunError
from autolr.schema.study import WarmStart
from autolr.tuner.propose import warm_start
from autolr.tuner.propose.encoding import PRIOR_SD
from autolr.tuner.propose.space import SearchSpace

SPACE = SearchSpace(
    {
        "lr_v": FloatDistribution(1e-4, 1e-2, log=True),
        "ratio": FloatDistribution(0.5, 32, log=True),
        "rank": CategoricalDistribution([4, 8]),
    },
    fixed={"targets": "qv", "kind": "lora", "loraplus_lr_ratio": 1.0},
    usual={"targets": "qv", "kind": "lora"},
    rate=1e-3,
    max_lr_b=1e-2,
    lr_head=1e-2,
    steps=100,
)
ONE = WarmStart(source="one", rate=2.0, ratio=8.0, rank=32)
OTHER = WarmStart(source="other", rate=0.5, ratio=2.0, rank=4)


def test_a_winner_is_carried_in_units_of_the_rule():
    candidate = warm_start.carried(ONE, SPACE)
    assert (candidate.lr_v, candidate.ratio, candidate.rank) == (pytest.approx(2e-3), 8.0, 8)
    outside = warm_start.carried(WarmStart(source="x", rate=50.0, ratio=0.1, rank=1), SPACE)
    assert (outside.lr_v, outside.ratio, outside.rank) == (1e-2, 0.5, 4)
    assert SPACE.holds(outside)


def test_where_the_best_is_expected():
    assert warm_start.priors([], SPACE) == {"lr_v": (1e-3, PRIOR_SD)}
    alone = warm_start.priors([ONE], SPACE)
    assert alone["lr_v"].centre == pytest.approx(2e-3)
    assert warm_start.MIN_SD < alone["ratio"].sd < PRIOR_SD
    both = warm_start.priors([ONE, OTHER], SPACE)
    assert both["ratio"].centre == pytest.approx(4.0)
    assert both["lr_v"].centre == pytest.approx(1e-3)
    assert both["lr_v"].sd == pytest.approx(math.log(4) / math.sqrt(2))
    agreeing = warm_start.priors([ONE, ONE], SPACE)
    assert agreeing["ratio"].sd == pytest.approx(warm_start.MIN_SD)


def test_a_folder_that_is_no_search_is_refused(tmp_path):
    with pytest.raises(RunError, match="is not a run folder"):
        warm_start.earlier(tmp_path)
