"""Recorded passes: equal to passes, replayed, and without a trace where they cannot be."""

from __future__ import annotations

import pytest

from tests.gpu.training import apart, trained

STEPS = 8  # a shape is recorded when it comes for the third time
RECORDED = (
    ["bert", "distilbert", "deberta-v2", "modernbert", "llama", "gpt2", "opt", "qwen3", "phi3", "gpt_neox", "gemma2", "gemma3_text"]
)  # fmt: skip


@pytest.mark.parametrize("family", RECORDED)
def test_recorded_passes_take_the_steps_of_passes(gpu, family):
    expected = trained(family, "cpu", steps=STEPS)
    gpu.forget()
    found = trained(family, "cuda", graphs=True, steps=STEPS)
    # What is free in a recording's memory is NaN between replays, so it reads nothing that it has not written.
    assert apart(expected, found) < 1e-10
    assert gpu.replayed >= STEPS and not gpu.stuck
