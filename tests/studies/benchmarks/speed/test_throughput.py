"""The throughput benchmark measures every contender, in the precision it names. Nothing is timed here."""

from __future__ import annotations

import json

import torch

from autolr.data.batches import TokenSet
from studies.benchmarks.common import document, peers, shapes
from studies.benchmarks.speed import throughput

CPU = torch.device("cpu")


def small():
    sizes = shapes._encoder(32, 2, 4, 100)
    return throughput.Configuration(
        shapes.Shape("toy", "roberta", sizes),
        2,
        length=8,
        slots=(1, 2),
        rounds=1,
        steps=2,
        peer_steps=2,
        tuning_steps=2,
        examples=64,
        slices=1,
        figure="cpu",
    )


def test_throughput_measures_every_contender():
    result = document.Result("throughput")
    configuration = small()
    throughput.measure(result, configuration, CPU)
    throughput.profiled(result, configuration, CPU, 2)
    throughput.memory_error(result, CPU, quick=True)
    kinds = {row["kind"] for row in result.rows}
    assert {"tuning", "rate", "padding", "utilisation", "profile"} <= kinds
    contenders = [row["contender"] for row in result.rows if row["kind"] == "rate"]
    assert contenders == ["pack 1", "pack 2", "trainer", "time slicing"]
    assert {"cpu_packing", "cpu_vs_trainer", "cpu_vs_time_slicing"} <= set(result.figures)
    assert not any(name.startswith("gpu") for name in result.figures)
    assert result.figures["peak_memory_error_pct"] < 100
    assert all(value > 0 for value in result.figures.values())
    profile = next(row["profile"] for row in result.rows if row["kind"] == "profile")
    assert len(profile) == 15 and profile[0]["share"] >= profile[-1]["share"]
    assert any("mm" in entry["operation"] for entry in profile)  # the products of the passes themselves
    json.dumps(result.document(CPU))


def test_the_trainers_examples_are_those_of_their_own_split():
    train, validation = TokenSet([[1, 2, 3], [4]], [0, 1], 0), TokenSet([[7, 8], [9]], [1, 1], 0)
    rows = peers.Rows(validation)
    batch = peers.Rows(train).collate([rows[0], rows[1]])  # the Trainer has one collator for both
    assert batch["input_ids"].tolist() == [[7, 8], [9, 0]]
    assert batch["labels"].tolist() == [1, 1]


def test_the_trainer_really_trains_in_the_precision_it_is_given():
    shape = small().shape
    model = peers.peft_model(shapes.base(shape, CPU, "fp32"), 2)
    seen = []
    layer = model.base_model.model.roberta.encoder.layer[0].intermediate.dense
    layer.register_forward_hook(lambda _module, _args, output: seen.append(output.dtype))
    for options, dtype in (({}, torch.float32), ({"bf16": True}, torch.bfloat16), ({}, torch.float32)):
        trial = peers.Sequential(model, shapes.tokens(shape, 8, 16), 2, CPU, options)
        for _ in range(2):
            trial.rate(2, 0)
        assert set(seen) == {dtype}
        seen.clear()
        peers.unwrap(model)


def test_plans_name_each_figure_once_and_hold_the_issue_s_shapes():
    cpu, gpu = throughput.cpu_plan(), throughput.gpu_plan()
    assert [c.figure for c in cpu if c.figure] == ["cpu"]
    assert [c.figure for c in gpu if c.figure] == ["gpu.roberta_b32", "gpu.llama_1b_b4", "gpu.llama_8b_b1"]
    assert {c.length for c in gpu} >= {None, 32, 128, 512, 1024}
    assert {c.batch_size for c in gpu} >= {1, 4, 8, 32} <= {c.batch_size for c in cpu} | {1}
    assert all(c.steps % throughput.CYCLE == 0 for c in [*cpu, *gpu])


def test_operations_of_a_step_are_counted_from_the_frozen_products():
    base = shapes.base(small().shape, CPU, "fp32")
    per_layer = 4 * 32 * 32 + 2 * 32 * 128
    adapters = 2 * 2 * 4 * (32 + 32)
    assert shapes.flops(base, 8, 4) == 4 * 2 * per_layer + 6 * adapters + 12 * 8 * 2 * 32
