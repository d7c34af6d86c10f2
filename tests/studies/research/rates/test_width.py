"""The study of widths: models that differ in nothing else, and the best rates between cells."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest

from studies.research.rates import width


def test_the_best_rates_are_found_between_the_cells():
    grid = np.log([(v, q) for v in width.LR_V for q in width.LR_Q])
    truth = np.log([7e-3, 2e-3])
    losses = 0.3 + 0.05 * ((grid - truth) ** 2).sum(1)
    assert width.best(grid, losses) == pytest.approx(tuple(truth), abs=0.06)
    assert width.slope([32, 64, 128], [np.log(2.0), np.log(4.0), np.log(8.0)]) == pytest.approx(1.0)
    drawn = ElementTree.fromstring(
        width.figure([32, 64, 128], {"ratio": [0.0, 0.5, 1.0], "balance": [1.0, 0.5, 0.0]})
    )
    assert len(drawn.findall("{*}circle")) == 6


def test_nothing_differs_between_widths_but_the_width():
    for n in (32, 64):
        base = width.model_of(n)
        assert base.model.config.num_attention_heads == n // 16
        query = base.model.bert.encoder.layer[0].attention.self.query.weight
        assert query.std().item() == pytest.approx(n**-0.5, rel=0.1)
    data = width.examples(200, 0)
    assert 0.4 < np.mean(data.labels) < 0.6
