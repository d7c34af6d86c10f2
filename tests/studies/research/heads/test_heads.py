"""The studies of heads: their sums and their tasks."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from studies.research.heads import combination, early_signal


def test_partial_correlation_sees_through_what_is_known():
    rng = np.random.default_rng(0)
    known = rng.normal(size=4000)
    x, y = known + 0.5 * rng.normal(size=4000), known + 0.5 * rng.normal(size=4000)
    assert abs(early_signal.partial(x, y, known)) < 0.05
    assert early_signal.partial(x, x + 0.01 * rng.normal(size=4000), known) > 0.9


def test_complex_and_basic_tasks_share_no_sentence(monkeypatch):
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
