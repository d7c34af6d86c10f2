"""The path of a GPU takes the CPU's steps: in float64 weights, losses and scores agree to the last digits."""

from __future__ import annotations

import pytest

from tests.gpu.training import apart, trained

CASES = {
    "bert": ("lora", "dora"),
    "llama": ("dora",),
    "gpt2": ("lora", "full"),
    "roberta": ("full",),
    "distilbert": ("lora", "rslora", "full"),
    "electra": ("dora", "lora"),
    "modernbert": ("rslora", "full"),
    "deberta-v2": ("lora",),
    "qwen3_moe": ("lora", "full"),
    "gemma2": ("dora",),
    "falcon:mha": ("lora",),
    "llama/lm": ("lora", "dora"),
    "gpt2/lm": ("full",),
    "bloom/lm": ("rslora",),
}


@pytest.mark.parametrize("family", CASES)
def test_weights_losses_and_scores_are_the_cpus(gpu, family):
    expected = trained(family, "cpu", CASES[family])
    found = trained(family, "cuda", CASES[family])
    assert apart(expected, found) < 1e-12
    assert gpu.kernels


def test_layers_that_are_computed_again_in_autograds_thread_see_their_slots(gpu):
    expected = trained("llama", "cpu", ("lora", "dora"), gradient_checkpointing=True)
    assert apart(expected, trained("llama", "cpu", ("lora", "dora"))) < 1e-12
    assert apart(expected, trained("llama", "cuda", ("lora", "dora"), gradient_checkpointing=True)) < 1e-12
    expected = trained("gpt2/lm", "cpu", gradient_checkpointing=True)
    assert apart(expected, trained("gpt2/lm", "cuda", gradient_checkpointing=True)) < 1e-12
