"""The benchmarks keep their contract, and each one's core runs. Nothing is timed here."""

from __future__ import annotations

import importlib
import json
import os
import platform
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from autolr.data.batches import TokenSet
from autolr.study import StageSetting

BENCHMARKS = Path(__file__).resolve().parents[2] / "studies" / "benchmarks"
CPU = torch.device("cpu")


@pytest.fixture
def module(monkeypatch):
    """Imports a benchmark's file as its script does."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv("AUTOLR_CACHE", os.environ["AUTOLR_CACHE"])  # a benchmark sets its own
    yield importlib.import_module
    for name in (
        "contract",
        "tiny",
        "drawing",
        "fuzz",
        "fuzz_tables",
        "fuzz_chats",
        "kinds",
        "soak",
        "shapes",
        "peers",
        "throughput",
        "end_to_end",
        "smollm2",
    ):
        sys.modules.pop(name, None)


@pytest.fixture
def contract(module):
    return module("contract")


# The contract


def measured(contract):
    result = contract.Result("toy", settings={"batch_size": 4})
    result.figure("packing", 1.23456)
    result.figure("not_measured", None)
    result.figure("no_number", float("nan"))
    result.row("rate", contender="pack 1", rates=[1.0, 2.0])
    return result


def test_a_result_is_written_and_its_last_line_is_the_document_without_rows(contract, tmp_path, capsys):
    path = contract.deliver(measured(contract), CPU, keep=False, out=tmp_path)
    document = json.loads(path.read_text())
    assert set(document) == {"name", "figures", "settings", "environment", "rows"}
    assert document["figures"] == {"packing": 1.235}
    assert document["rows"] == [{"kind": "rate", "contender": "pack 1", "rates": [1.0, 2.0]}]
    assert {"versions", "commit", "dirty", "processor", "device"} <= set(document["environment"])
    assert path.name.startswith("toy-") and path.name.endswith(f"-{contract.machine(CPU)}.json")
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last == {key: value for key, value in document.items() if key != "rows"}


def test_a_quick_result_is_not_kept(contract):
    path = contract.deliver(measured(contract), CPU, keep=False)
    assert contract.RESULTS not in path.parents


def test_a_result_says_what_the_machine_is_and_not_whose(contract):
    name = contract.machine(CPU)
    assert name.startswith(f"cpu{contract.cores()}-")
    text = json.dumps(measured(contract).document(CPU))
    assert str(BENCHMARKS.parents[1]) not in text
    assert f'"{platform.node()}"' not in text and platform.node() != name


@pytest.mark.parametrize(
    ("processor", "name"),
    [
        ("AMD EPYC 9V74 80-Core Processor", "epyc"),
        ("Intel(R) Xeon(R) Platinum 8480+", "xeon"),
        ("", "unknown"),
    ],
)
def test_machines_are_named_after_their_processor(contract, monkeypatch, processor, name):
    monkeypatch.setattr(contract, "processor", lambda: processor)
    monkeypatch.setattr(contract, "cores", lambda: 2)
    assert contract.machine(CPU) == f"cpu2-{name}"


def test_a_result_with_a_path_of_this_machine_is_refused(contract):
    result = measured(contract)
    result.settings["work"] = str(BENCHMARKS.parents[1] / "runs")
    with pytest.raises(ValueError, match="path"):
        result.document(CPU)


def test_contenders_take_turns_and_are_compared_by_their_medians(contract):
    order: list[tuple[str, int]] = []

    def contender(name, values):
        return lambda number: order.append((name, number)) or values[number]

    found = contract.alternate({"a": contender("a", [1, 9, 2]), "b": contender("b", [4, 4, 4])}, 3)
    assert order == [("a", 0), ("b", 0), ("b", 1), ("a", 1), ("a", 2), ("b", 2)]
    assert found == {"a": [1, 9, 2], "b": [4, 4, 4]}
    assert contract.ratio(found, "a", "b") == 0.5
    assert contract.ratio(found, "a", "c") is None


# Throughput


def small(module):
    throughput, shapes = module("throughput"), module("shapes")
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


def test_throughput_measures_every_contender(module):
    throughput, contract = module("throughput"), module("contract")
    result = contract.Result("throughput")
    configuration = small(module)
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


def test_the_trainers_examples_are_those_of_their_own_split(module):
    peers = module("peers")
    train, select = TokenSet([[1, 2, 3], [4]], [0, 1], 0), TokenSet([[7, 8], [9]], [1, 1], 0)
    rows = peers.Rows(select)
    batch = peers.Rows(train).collate([rows[0], rows[1]])  # the Trainer has one collator for both
    assert batch["input_ids"].tolist() == [[7, 8], [9, 0]]
    assert batch["labels"].tolist() == [1, 1]


def test_the_trainer_really_trains_in_the_precision_it_is_given(module):
    peers, shapes = module("peers"), module("shapes")
    shape = small(module).shape
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


def test_plans_name_each_figure_once_and_hold_the_issue_s_shapes(module):
    throughput = module("throughput")
    cpu, gpu = throughput.cpu_plan(), throughput.gpu_plan()
    assert [c.figure for c in cpu if c.figure] == ["cpu"]
    assert [c.figure for c in gpu if c.figure] == ["gpu.roberta_b32", "gpu.llama_1b_b4", "gpu.llama_8b_b1"]
    assert {c.length for c in gpu} >= {None, 32, 128, 512, 1024}
    assert {c.batch_size for c in gpu} >= {1, 4, 8, 32} <= {c.batch_size for c in cpu} | {1}
    assert all(c.steps % throughput.CYCLE == 0 for c in [*cpu, *gpu])


def test_operations_of_a_step_are_counted_from_the_frozen_products(module):
    shapes = module("shapes")
    base = shapes.base(small(module).shape, CPU, "fp32")
    per_layer = 4 * 32 * 32 + 2 * 32 * 128
    adapters = 2 * 2 * 4 * (32 + 32)
    assert shapes.flops(base, 8, 4) == 4 * 2 * per_layer + 6 * adapters + 12 * 8 * 2 * 32


# End to end


def trial(end_to_end, number, seconds, select, confirm):
    outcome = "pruned" if confirm is None else "finished"
    return end_to_end.PeerTrial(number, outcome, seconds, 1e-3, 8, select, confirm, None)


def test_the_peer_has_reached_our_loss_when_its_choice_has(module):
    end_to_end = module("end_to_end")
    trials = [
        trial(end_to_end, 0, 10, 0.50, 0.60),
        trial(end_to_end, 1, 5, 0.40, None),  # pruned: it is not chosen
        trial(end_to_end, 2, 10, 0.55, 0.40),  # good on confirm, but not chosen on select
        trial(end_to_end, 3, 10, 0.45, 0.41),
    ]
    assert end_to_end.best_of(trials).number == 3
    assert end_to_end.reached(trials, 1.0, 0.42) == 36
    assert end_to_end.reached(trials, 1.0, 0.39) is None


def test_half_a_comparison_has_no_ratio(module):
    end_to_end, contract = module("end_to_end"), module("contract")
    main, small = ({"seconds": seconds, "confirm_loss": loss} for seconds, loss in ((10.0, 0.4), (5.0, 0.45)))
    trials = [trial(end_to_end, 0, 30, 0.5, 0.46)]
    whole = {"cpu_confirm_loss_main", "cpu_confirm_loss_ours", "cpu_confirm_loss_hf"}
    whole |= {"cpu_time_vs_hf", "cpu_time_vs_hf_main"}
    for given, held, names in (
        ([main], [], {"cpu_confirm_loss_main"}),
        ([], trials, {"cpu_confirm_loss_hf"}),
        ([main], trials, {"cpu_confirm_loss_main", "cpu_confirm_loss_hf"}),
        ([main, small], trials, whole),
    ):
        result = contract.Result("end_to_end")
        complete = end_to_end.compare(result, "cpu", given, held, 0.0, 1)
        assert set(result.figures) == names
        assert complete == (len(given) == 2 and bool(held))
    assert result.figures["cpu_time_vs_hf"] == 6
    assert result.figures["cpu_time_vs_hf_main"] == 3
    assert result.rows[-1]["reached_ours"] is False


def test_a_search_that_is_not_as_good_is_not_compared(module):
    end_to_end, contract = module("end_to_end"), module("contract")
    main, small = ({"seconds": seconds, "confirm_loss": loss} for seconds, loss in ((10.0, 0.4), (5.0, 0.45)))
    for best, expected in ((0.44, 3.0), (0.39, None)):
        result = contract.Result("end_to_end")
        held = [trial(end_to_end, 0, 30, 0.5, best)]
        assert end_to_end.compare(result, "cpu", [main, small], held, 0.0, 1)
        assert result.figures.get("cpu_time_vs_hf") == expected


def test_end_to_end_measures_both_sides_and_goes_on_where_it_stopped(module, small_study, tmp_path):
    end_to_end = module("end_to_end")
    update = {"horizon": small_study.training.horizon.model_copy(update={"steps": 12})}
    study = small_study.model_copy(
        update={
            "training": small_study.training.model_copy(update=update),
            "search": small_study.search.model_copy(update={"stages": [StageSetting(to=8)], "rungs": [4]}),
            "baselines": ["default"],
            "budget": small_study.budget.model_copy(update={"trials": 2}),
        }
    )
    both = ("ours", "peer")
    _, complete = end_to_end.measure(study, CPU, tmp_path, sides=("peer",), peer_trials=1, tuning_steps=2)
    assert not complete
    stopped = end_to_end.Peer(study, CPU, tmp_path, 2, {})
    stopped._study().ask()  # a trial that was running when the script was killed
    result, complete = end_to_end.measure(study, CPU, tmp_path, sides=both, peer_trials=2, tuning_steps=2)
    assert complete
    assert {"cpu_time_vs_hf_main", "cpu_confirm_loss_main", "cpu_confirm_loss_hf"} <= set(result.figures)
    trials = [row for row in result.rows if row["kind"] == "hf trial"]
    assert [row["number"] for row in trials] == [0, 2]
    assert trials[0]["rate"] != trials[1]["rate"]
    again, _ = end_to_end.measure(study, CPU, tmp_path, sides=both, peer_trials=2, tuning_steps=2)
    assert again.figures == result.figures
    json.dumps(result.settings)


def test_the_quick_study_is_a_study(module):
    end_to_end = module("end_to_end")
    study = end_to_end.Study.load(end_to_end.STUDY, end_to_end.QUICK)
    assert study.budget.trials == 2 and study.training.horizon.steps


# SmolLM2, on a tiny model of its kind


@pytest.mark.parametrize("task", ["sft", "classification"])
def test_a_search_on_a_decoder_leaves_its_document(module, model_folders, tmp_path, capsys, task):
    module("smollm2").main(
        ["--quick", "--device", "cpu", "--task", task, "--model", model_folders["lm"], "--out", str(tmp_path)]
    )
    document = json.loads(next(tmp_path.glob("smollm2_*.json")).read_text())
    assert document["name"] == f"smollm2_{task}"
    metric = "exact_match" if task == "sft" else "accuracy"
    labels = " + ".join(row["label"] for row in document["rows"] if row["kind"] == "score").split(" + ")
    assert sorted(labels) == ["default", "finalist 1"]
    assert any(name.startswith(f"confirm_{metric}_") for name in document["figures"])
    assert document["settings"]["study"]["task"] == task
    assert ("untrained_confirm_loss" in document["figures"]) == (task == "sft")


# Fuzz and soak


def test_drawn_chats_are_learned_rightly(module, tmp_path):
    found = module("fuzz_chats").measure(40, tmp_path, 1)["figures"]
    assert found["generated"] == 40 == found["right"] + found["refused"], found
    assert found["right"] > 10


def test_a_wrong_span_would_be_counted(module, tmp_path, monkeypatch):
    fuzz = module("fuzz_chats")
    learn = fuzz.language.learn

    def one_less(*given):
        found = learn(*given)
        return type(found)(found.ids, [[-100, *own[1:-1], -100][: len(own)] for own in found.labels], found.notices)

    monkeypatch.setattr(fuzz.language, "learn", one_less)
    assert fuzz.measure(20, tmp_path, 1)["figures"]["wrong_spans"] > 3


def test_broken_files_are_read_without_traceback_or_hang(module, tmp_path):
    found = module("fuzz").measure(12, tmp_path, 1)
    assert found["fuzzed"] == 12 and found["tracebacks"] == found["hangs"] == 0, found["rows"]
    assert sum(row.get("plan", 0) + row.get("message", 0) for row in found["rows"]) == 12


def test_what_is_not_clear_is_counted(module, tmp_path, monkeypatch):
    fuzz = module("fuzz")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tracebacks").mkdir()
    outcomes = {"plan": lambda words: None, "message": lambda words: sys.exit(2), "traceback": lambda words: 1 / 0}
    outcomes["hang"] = lambda words: time.sleep(10)
    for outcome, run in outcomes.items():
        monkeypatch.setattr(fuzz.cli, "main", run)
        assert fuzz.run([], 0.1)[0] == outcome


def test_tables_of_all_formats_are_the_same_or_refused(module):
    found = module("fuzz_tables").measure(3, 1)
    figures = found["figures"]
    assert (figures["tables"], figures["tracebacks"], figures["differences"], figures["without_remedy"]) == (
        3,
        0,
        0,
        0,
    )
    assert figures["right"] >= 3 * 15 and figures["refused"] >= 3, found["failed"]


def test_tables_that_are_read_wrongly_are_counted(module, monkeypatch):
    fuzz = module("fuzz_tables")
    load = fuzz.sources.load

    def wrong(data, task):
        if data.source.endswith(".tsv"):
            raise ZeroDivisionError
        found = load(data, task)
        return replace(found, texts=found.texts[::-1]) if data.source.endswith("d.jsonl") else found

    monkeypatch.setattr(fuzz.sources, "load", wrong)
    found = fuzz.measure(2, 1)
    assert found["figures"]["differences"] == found["figures"]["tracebacks"] == 2
    assert {row["file"] for row in found["failed"]} == {"d.tsv", "d.jsonl"}


def test_growth_is_the_slope_after_the_warm_up(module):
    soak = module("soak")
    assert soak.growth([50] * 20 + [100] * 200, warm=0.1) == pytest.approx(0, abs=1e-9)
    grown = [1000.0 + 0.1 * n for n in range(100)]
    assert soak.growth(grown, warm=0.0) == pytest.approx(100 * 0.1 * 100 / 1005, rel=1e-3)


def test_a_search_leaves_no_files_open(module, tmp_path):
    found = module("soak").measure(12, tmp_path)
    assert found["soaked"] == 12 and found["handles_left_open"] <= 0 and len(found["rows"][0]["mib"]) == 12
