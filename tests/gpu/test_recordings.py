"""Recorded passes: equal to passes, replayed, and without a trace where they cannot be."""

from __future__ import annotations

import gc

import pytest
import torch

from autolr.pack import graphs as recordings
from autolr.pack.graphs import Graphs
from tests.gpu.training import apart, base_on, config, pack_on, result, tolerance, trained

STEPS = 8  # a shape is recorded when it comes for the third time
RECORDED = "bert distilbert deberta-v2 modernbert llama gpt2 opt qwen3 phi3 gpt_neox gemma2 gemma3_text"
# Which experts have tokens is the host's to know, so it waits.
NOT_RECORDED = "qwen3_moe"


@pytest.mark.parametrize("family", RECORDED.split())
def test_recorded_passes_take_the_steps_of_passes(gpu, family):
    expected = trained(family, "cpu", steps=STEPS)
    gpu.forget()
    found = trained(family, "cuda", graphs=True, steps=STEPS)
    # What is free in a recording's memory is NaN between replays, so it reads nothing that it has not written.
    assert apart(expected, found) < max(1e-10, tolerance(family))
    assert gpu.replayed >= STEPS and not gpu.stuck


@pytest.mark.parametrize("family", NOT_RECORDED.split())
def test_a_recording_that_fails_leaves_nothing_behind(gpu, family):
    stream = torch.cuda.current_stream()
    base = base_on(family, "cuda")
    before = gpu.used()
    with pack_on(base, family, graphs=True) as pack:
        pack.admit(config(0))
        with pytest.raises(RuntimeError, match=r"capture|capturing"):
            for _ in range(STEPS):
                pack.step()
    del pack
    gc.collect()
    assert not gpu.stuck and torch.cuda.current_stream() is stream and torch.cuda.current_device() == 0
    torch.cuda.empty_cache()
    assert gpu.used() == gpu.reserved() == before
    expected = trained(family, "cpu")
    assert apart(expected, trained(family, "cuda")) < 1e-12


def test_slots_of_other_ranks_share_a_recording(gpu):
    results = []
    for device in ("cpu", "cuda"):
        with pack_on(base_on("bert", device), "bert", graphs=device == "cuda") as pack:
            slots = [pack.admit(config(seed, rank)) for seed, rank in enumerate((8, 4))]
            for rank in (2, 8, 1):
                for _ in range(4):
                    pack.step()
                pack.evict(slots.pop(0))
                slots.append(pack.admit(config(10 + rank, rank)))
            for _ in range(4):
                pack.step()
            results.append(result(pack, slots))
            if pack.graphs:
                assert pack.graphs.shapes == 1
    assert gpu.replayed == 16 - recordings.WARM + 1
    assert apart(*results) < 1e-12


def test_the_recording_that_was_not_used_for_the_longest_time_makes_room(gpu, monkeypatch):
    monkeypatch.setattr(recordings, "MAX_RECORDINGS", 2)
    graphs, total = Graphs(0), torch.zeros((), device="cuda", dtype=torch.int64)

    def run(rows: int) -> None:
        ids = torch.full((rows, 3), rows, device="cuda")
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        graphs.run("key", batch, lambda given: total.add_((given["input_ids"] * given["attention_mask"]).sum()))

    for rows in (1, 2, 1, 3, 2, 1):
        for _ in range(recordings.WARM + 1):
            run(rows)
        assert graphs.shapes <= 2
    assert total.item() == (recordings.WARM + 1) * 3 * (1 + 4 + 1 + 9 + 4 + 1)
    gpu.forget()
    run(1)
    run(2)
    assert gpu.replayed == 2  # the last two are there
    run(3)
    assert gpu.replayed == 2
