"""The studies of heads and theory: their sums, and one training that is looked into."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest

from autolr.data.tasks import Classification
from autolr.pack.slots import SlotConfig
from autolr.study import Training
from tests import tiny

STUDIES = Path(__file__).resolve().parents[2] / "studies"
NAMES = ("training", "early", "width", "combination", "contract", "rungs", "sections")


@pytest.fixture
def script():
    path = list(sys.path)
    sys.path[:0] = [str(STUDIES / "inside")]
    yield importlib.import_module
    sys.path[:] = path
    for name in NAMES:
        sys.modules.pop(name, None)


def test_a_training_is_looked_into_and_the_base_left_as_it_was(script):
    training = script("training")
    base, task = tiny.base("bert"), Classification(("a", "b", "c"))
    before = base.fingerprint()
    configs = [SlotConfig({"q": 1e-2, "k": 0.0, "v": 2e-2, "head": 1e-2}, 2, seed, 6) for seed in (0, 1)]
    settings = Training(batch_size=4)
    kept, losses, scores = training.train(
        base, settings, task, tiny.tokens(), configs, (0, 6), tiny.tokens(9, seed=1)
    )
    assert [sorted(own) for own in kept] == [[0, 6], [0, 6]] and len(losses[0]) == 6 and len(scores) == 2
    start = training.look(base, task, tiny.tokens(8), None, configs[0])
    first = training.look(base, task, tiny.tokens(8), kept[0][0], configs[0])
    np.testing.assert_allclose(first.activations, start.activations, atol=1e-6)  # B is zero: nothing has changed yet
    last = training.look(base, task, tiny.tokens(8), kept[0][6], configs[0])
    assert last.losses.mean() < first.losses.mean()
    assert base.fingerprint() == before


def test_partial_correlation_sees_through_what_is_known(script):
    early = script("early")
    rng = np.random.default_rng(0)
    known = rng.normal(size=4000)
    x, y = known + 0.5 * rng.normal(size=4000), known + 0.5 * rng.normal(size=4000)
    assert abs(early.partial(x, y, known)) < 0.05
    assert early.partial(x, x + 0.01 * rng.normal(size=4000), known) > 0.9


def test_the_best_rates_are_found_between_the_cells(script):
    width = script("width")
    grid = np.log([(v, q) for v in width.LR_V for q in width.LR_Q])
    truth = np.log([7e-3, 2e-3])
    losses = 0.3 + 0.05 * ((grid - truth) ** 2).sum(1)
    assert width.best(grid, losses) == pytest.approx(tuple(truth), abs=0.06)
    assert width.slope([32, 64, 128], [np.log(2.0), np.log(4.0), np.log(8.0)]) == pytest.approx(1.0)
    drawn = ElementTree.fromstring(
        width.figure([32, 64, 128], {"ratio": [0.0, 0.5, 1.0], "balance": [1.0, 0.5, 0.0]})
    )
    assert len(drawn.findall("{*}circle")) == 6


def test_nothing_differs_between_widths_but_the_width(script):
    width = script("width")
    for n in (32, 64):
        base = width.model_of(n)
        assert base.model.config.num_attention_heads == n // 16
        query = base.model.bert.encoder.layer[0].attention.self.query.weight
        assert query.std().item() == pytest.approx(n**-0.5, rel=0.1)
    data = width.examples(200, 0)
    assert 0.4 < np.mean(data.labels) < 0.6


def test_complex_and_basic_tasks_share_no_sentence(script, monkeypatch):
    combination = script("combination")
    lines = []
    for number in range(700):
        section = ("games", "science", "net")[number % 3]
        lines += [f"Package: p{number}", f"Section: {section}", f"Description: a thing of kind number {number}", ""]
    shown = SimpleNamespace(stdout="\n".join(lines))
    monkeypatch.setattr(combination.subprocess, "run", lambda *_, **__: shown)
    found = combination.tasks(50)
    assert set(found) == set(combination.NAMES) and all(len(found[name]) == 50 for name in found)
    sentences = {text for text, _ in found["sentiment"]}
    assert not any(text.startswith(tuple(sentences)) for text, _ in found["both"])
    for name, examples in found.items():
        assert {end for _, end in examples} <= set(combination.NAMES[name])
    for text, end in found["larger"]:
        one, other = (int(word) for word in text.split(" or "))
        assert (end == "second") == (other > one)
