"""One training that is looked into."""

from __future__ import annotations

import numpy as np

from autolr.data.tasks import Classification
from autolr.pack.slots import SlotConfig
from autolr.schema.training import Training
from studies.research import common
from tests import tiny


def test_a_training_is_looked_into_and_the_base_left_as_it_was():
    base, task = tiny.base("bert"), Classification(("a", "b", "c"))
    before = base.fingerprint()
    configs = [SlotConfig({"q": 1e-2, "k": 0.0, "v": 2e-2, "head": 1e-2}, 2, seed, 6) for seed in (0, 1)]
    settings = Training(batch_size=4)
    kept, losses, scores = common.train(base, settings, task, tiny.tokens(), configs, (0, 6), tiny.tokens(9, seed=1))
    assert [sorted(own) for own in kept] == [[0, 6], [0, 6]] and len(losses[0]) == 6 and len(scores) == 2
    start = common.look(base, task, tiny.tokens(8), None, configs[0])
    first = common.look(base, task, tiny.tokens(8), kept[0][0], configs[0])
    np.testing.assert_allclose(first.activations, start.activations, atol=1e-6)  # B is zero: nothing has changed yet
    last = common.look(base, task, tiny.tokens(8), kept[0][6], configs[0])
    assert last.losses.mean() < first.losses.mean()
    assert base.fingerprint() == before
