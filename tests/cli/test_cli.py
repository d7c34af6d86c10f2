"""The command line as a user meets it."""

from __future__ import annotations

import errno
import importlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from autolr import cli
from autolr.cli import resolve
from autolr.progress import table
from autolr.rundir.result import SearchResult
from autolr.schema.study import Study

ROOT = Path(__file__).resolve().parents[2]


def apart(*arguments: object, **options) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own."""
    command = [sys.executable, "-m", "autolr", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)


def autolr(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command in this process, which has imported what it needs."""
    words = [str(argument) for argument in arguments]
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as stop:
        cli.main(words)
    said = [stream.buffer.getvalue().decode() for stream in (out, err)]  # type: ignore[attr-defined]
    return subprocess.CompletedProcess(words, int(stop.value.code or 0), *said)


@pytest.fixture
def study_file(small_study, tmp_path) -> Path:
    small_study.save(tmp_path / "study.yaml")
    return tmp_path / "study.yaml"


def test_help_is_instant_because_nothing_heavy_is_imported():
    check = (
        "import sys, autolr, autolr.cli\n"
        "heavy = {'torch', 'transformers', 'optuna', 'peft', 'datasets', 'plotly', 'pandas', 'numpy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    text = autolr("search", "--help").stdout
    for option in (
        "--model",
        "--data",
        "--trials",
        "--budget",
        "--out",
        "--seed",
        "--device",
        "--dry-run",
        "--plain",
    ):
        assert option in text


def test_search_train_report(study_file, in_folder):
    out = in_folder / "run"
    done = apart("search", study_file, "--out", out, "--train", "budget.trials=6", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "verdict " in done.stdout and "test     accuracy" in done.stdout
    result = SearchResult.load(out)
    assert len(result.ended()) == 6 and result.recipe is not None
    assert (out / "train" / "adapter" / "adapter_model.safetensors").is_file()
    page = (out / "report.html").read_text()
    assert "test accuracy of the full run" in page
    again = autolr("train", out)
    assert again.returncode == 0 and "test     accuracy" in again.stdout
    compared = autolr("compare", out, "--vary", "ratio=1", "--seeds", 2, "--steps", 8, "--json", "--out", "ab")
    assert compared.returncode == 0, compared.stderr
    found = json.loads(compared.stdout)
    assert [arm["label"] for arm in found["arms"]] == ["run", "run with ratio=1"]
    assert (in_folder / "ab" / "comparison.html").is_file()
    listed = autolr("runs", in_folder)
    assert listed.returncode == 0 and result.recipe.evidence.verdict in listed.stdout
    assert autolr("runs", in_folder, "--recommend").stdout.count("next: autolr search") == 1
    assert autolr("report", out, "--out", in_folder / "page.html").returncode == 0
    assert (in_folder / "page.html").stat().st_size > 1_000_000


def test_a_dry_run_says_what_would_run_and_writes_nothing(study_file, in_folder):
    before = sorted(in_folder.iterdir())
    done = autolr("search", study_file, "--dry-run", "space.rank=[4]", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "q and v in 2 of 2 layers" in done.stdout
    assert "r=4: 1,024 adapter + 66 head" in done.stdout and "r=8" not in done.stdout
    assert sorted(in_folder.iterdir()) == before


BAD = {
    "no such study": ["search", "none.yaml"],
    "unknown key": ["search", "FILE", "colour=blue"],
    "bad override": ["search", "FILE", "space.lr_v={low: 1, high: 0.1}"],
    "no such model": ["search", "FILE", "--model", "./none"],
    "no such data": ["search", "FILE", "--data", "none.csv"],
    "no such column": ["search", "FILE", "data.text_column=body"],
    "no such device": ["search", "FILE", "--device", "cuda:7"],
    "trials": ["search", "FILE", "--trials", "0"],
    "budget": ["search", "FILE", "--budget", "soon"],
    "rank": ["search", "FILE", "space.rank=[64]"],
    "two studies": ["search", "FILE", "FILE"],
    "no recipe": ["train", "none.yaml"],
    "study for a recipe": ["train", "FILE"],
    "no run": ["report", "none"],
    "nothing to compare": ["compare", "none", "none"],
    "study to compare": ["compare", "FILE", "FILE"],
    "no runs": ["runs", "none"],
    "nothing to watch": ["watch", "none"],
    "no run for the dashboard": ["dashboard", "none"],
    "no such tracker": ["search", "FILE", "--report-to", "paper"],
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_one_clear_message_and_code_2(name, study_file, in_folder, monkeypatch, capsys):
    before = sorted(in_folder.iterdir())
    with pytest.raises(SystemExit) as stop:
        cli.main([word if word != "FILE" else str(study_file) for word in BAD[name]])
    captured = capsys.readouterr()
    assert stop.value.code == 2, captured.err
    assert captured.err.startswith("error: ") and "Traceback" not in captured.err
    assert sorted(in_folder.iterdir()) == before


def test_ctrl_c_keeps_what_there_is_and_the_same_folder_goes_on(study_file, in_folder):
    out = in_folder / "run"
    command = [sys.executable, "-m", "autolr", "search", str(study_file), "--out", str(out), "--plain"]
    command += [
        "budget.trials=40",
        "search.stages=[{to: 40}, {to: 1.0, promote: 2}]",
        "training.horizon={steps: 60}",
        "search.rungs=[8,16]",
    ]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A test run in the background ignores Ctrl-C, and its children would, too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    for line in process.stdout:
        if "pruned at step" in line:
            break
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert f"resume with: autolr search --out {out}".lower() in errors.lower() and "Traceback" not in errors
    before = len(SearchResult.load(out).ended())
    assert 0 < before < 40
    total = before + 6  # the four that were under way go on, and count
    done = autolr("search", "--out", out, "--trials", total, "--plain")
    assert done.returncode == 0, done.stderr
    assert f"trials: {total} to do, {before} of them there from before" in done.stdout
    assert len(SearchResult.load(out).ended()) == total


def test_verbs_that_only_read_do_not_wait_for_torch(in_folder):
    code = """
import contextlib, sys
from autolr import cli
point = "--lr-v 1e-3 --ratio 4 --rank 8".split()
for words in (["ls"], ["runs", "none"], ["watch", "none"], ["report", "none"], ["predict", "none", *point]):
    with contextlib.suppress(SystemExit):
        cli.main(words)
    assert sys.modules.keys() >= {"autolr.rundir.folder"} or words == ["ls"], words  # it has begun to work
    assert "torch" not in sys.modules, words
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("pressed", [True, False])
def test_what_fails_because_of_ctrl_c_is_ctrl_c(pressed, study_file, in_folder, monkeypatch, capsys):
    def broken(*_, **__) -> None:
        try:
            if pressed:
                raise KeyboardInterrupt
        finally:
            raise RuntimeError("the lock was not held")

    monkeypatch.setattr(importlib.import_module("autolr.tuner.run"), "search", broken)
    with pytest.raises(SystemExit) as stop:
        cli.main(["search", str(study_file), "--out", str(in_folder / "run"), "--plain"])
    said = capsys.readouterr().err
    if pressed:
        assert stop.value.code == 130 and said.strip() == "stopped; nothing had begun"
    else:  # what fails by itself is a fault
        assert stop.value.code == 1 and "the lock was not held" in said


def test_two_searches_in_one_folder(study_file, in_folder):
    out = in_folder / "run"
    command = [sys.executable, "-m", "autolr", "search", str(study_file), "--out", str(out), "budget.trials=500"]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            if (out / "journal.log").exists():
                break
            time.sleep(0.1)
        second = autolr("search", study_file, "--out", out)
        assert second.returncode == 2 and "another search is at work" in second.stderr
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    assert autolr("search", "--out", out, "--trials", 4).returncode == 0  # what kill -9 left is gone on with


def test_a_full_disk_is_said_so(study_file, in_folder, monkeypatch, capsys):
    from autolr.rundir import records

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "curves.jsonl")

    monkeypatch.setattr(records, "append", full)
    with pytest.raises(SystemExit) as stop:
        cli.main(["search", str(study_file), "--out", "run", "--device", "cpu"])
    assert stop.value.code == 2
    assert "no space left on the device (curves.jsonl)" in capsys.readouterr().err
    monkeypatch.undo()
    os.chdir(in_folder)
    assert autolr("search", "--out", "run").returncode == 0


def test_own_data_without_a_study_is_a_study_of_its_own(reviews, model_folders):
    study = resolve.resolve([], {"data.source": reviews, "model": model_folders["bert"]}, None)
    assert study.name == "reviews" and study.data.source == reviews and study.data.text_column is None
    default = resolve.resolve([], {"seed": 3}, None)
    assert default.name == "sentiment" and default.seed == 3
    assert isinstance(default, Study)


def test_spark_lines():
    assert table.spark([1, 2, 3, 4], 4) == "▁▃▆█"
    assert table.spark([], 4) == "" and table.spark([float("nan")], 4) == ""
    assert len(table.spark(list(range(100)), 12)) == 12
