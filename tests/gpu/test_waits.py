"""How often the host waits for the GPU in a training step. These numbers only go down.

A wait empties the queue of kernels, after which the GPU idles while the host fills it again.
"""

from __future__ import annotations

import pytest
import torch

from tests.gpu.training import base_on, config, pack_on

MOST = {
    "bert": 1,  # transformers asks whether a mask has holes
    "roberta": 1,
    "llama": 2,
    "gpt2": 2,
    "qwen3_moe": 44,  # which experts have tokens
    "llama/lm": 2,
}


@pytest.mark.parametrize("family", MOST)
def test_a_step_waits_no_more_often_than_it_did(gpu, family):
    base = base_on(family, "cuda", torch.bfloat16)
    with pack_on(base, family) as pack:
        for seed in range(4):
            pack.admit(config(seed))
        pack.step()
        gpu.forget()
        for _ in range(4):
            pack.step()
        waits = dict(gpu.waits)
        pack.flush()
    mean = sum(waits.values()) / 4
    assert mean <= MOST[family], waits
    assert mean > MOST[family] - 1, f"lower MOST[{family!r}] to {mean}"


def test_recorded_steps_do_not_wait(gpu):
    with pack_on(base_on("bert", "cuda", torch.bfloat16), "bert", graphs=True) as pack:
        pack.admit(config(0))
        for _ in range(4):
            pack.step()
        gpu.forget()
        for _ in range(4):
            pack.step()
        assert gpu.replayed == 4 and not gpu.waits
        lag = pack.lag
        pack.flush()
        assert 1 <= sum(gpu.waits.values()) <= lag
