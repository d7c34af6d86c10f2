"""`autolr init`, `ls`, `cp`, `export`, completion, `--json`: the shell's comforts."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys

import pytest
import yaml

from autolr.cli import resolve
from autolr.cli.verbs import cp as cp_verb
from autolr.cli.verbs.init import commented
from autolr.integrations.registry import TOOLS
from autolr.schema.study import Study
from autolr.tuner.run import search
from tests.cli.test_cli import apart, autolr


def test_init_without_questions(in_folder, reviews):
    done = autolr("init", "mine.yaml", "--data", reviews, "--model", "a/model", "--trials", 5, "--no-train", "--yes")
    assert done.returncode == 0, done.stderr
    study = Study.load("mine.yaml")
    assert (study.name, study.model, study.data.source) == ("reviews", "a/model", reviews)
    assert (study.task, study.budget.trials, study.train) == ("classification", 5, False)
    again = autolr("init", "mine.yaml", "--data", reviews, "--yes")
    assert again.returncode == 2 and "this file exists. Give another name, or --force" in again.stderr
    assert autolr("init", "mine.yaml", "--data", reviews, "--yes", "--force").returncode == 0
    assert autolr("validate", "mine.yaml").returncode == 0


def test_init_names_what_it_needs(in_folder):
    done = apart("init", stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stderr) == (2, "error: --data: missing. Give a file or a hub data set.\n")
    assert not (in_folder / "study.yaml").exists()


def test_init_asks_five_questions(in_folder, reviews):
    here, there = pty.openpty()
    command = [sys.executable, "-m", "autolr", "init"]
    with subprocess.Popen(
        command, stdin=there, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        os.write(here, f"a/model\n{reviews}\nsft\n7\nn\n".encode())
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    for question in ("Model", "Data", "Task", "Trials", "full run after the search?"):
        assert question in said
    study = Study.load("study.yaml")
    assert (study.model, study.data.source, study.task) == ("a/model", reviews, "sft")
    assert (study.budget.trials, study.train) == (7, False)


def test_every_setting_is_in_the_written_study_and_explained():
    text = commented({"name": "mine", "model": "a/model", "data": {"source": "rows.csv"}}, ["mine"])
    assert yaml.safe_load(text) == {"name": "mine", "model": "a/model", "data": {"source": "rows.csv"}}
    # What is a comment can be made a setting by taking the mark away: then every default is spelled out.
    settings = [line for line in text.splitlines() if "##" not in line]
    said = [line[2:] if line.startswith("# ") else re.sub("^  # ", "  ", line) for line in settings]
    content = yaml.safe_load("\n".join(said))
    assert content.keys() == Study.model_fields.keys()
    whole = Study.model_validate({key: value for key, value in content.items() if value is not None})
    assert whole == Study(name="mine", model="a/model", data="rows.csv")


def test_init_from_a_set_up(in_folder, reviews):
    (in_folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 8, "lora_alpha": 32, "target_modules": ["query", "value"],
                    "lora_dropout": 0.1, "base_model_name_or_path": "a/model", "task_type": "SEQ_CLS"})
    )  # fmt: skip
    done = autolr("init", "--from", ".", "--data", reviews, "--yes")
    assert done.returncode == 0, done.stderr
    assert "a set-up of PEFT" in done.stdout and "not taken over: dropout 0.1" in done.stdout
    text = (in_folder / "study.yaml").read_text(encoding="utf-8")
    assert "## not taken over: dropout 0.1" in text
    study = Study.load("study.yaml")
    assert study.space.rank == [4, 8, 16] and study.method.lora_alpha == 32 and study.model == "a/model"


def test_ls_and_cp(in_folder):
    listed = json.loads(autolr("ls", "--json").stdout)
    assert [row["name"] for row in listed] == list(resolve.shipped())
    assert all(row["model"] and row["about"] and row["trials"] > 0 for row in listed)
    said = autolr("ls").stdout
    assert all(row["name"] in said for row in listed)
    for row in listed:
        cp_verb.cp(row["name"], None)
        shipped, _ = resolve.load(row["name"])
        assert Study.load(f"{row['name']}.yaml").identity() == shipped.identity()
    done = autolr("cp", "sentiment")
    assert done.returncode == 2 and "sentiment.yaml: this file exists" in done.stderr
    assert autolr("cp", "sentiment", "mine.yaml").stdout.startswith("wrote mine.yaml")
    assert "no such shipped study. Choose one of: classify" in autolr("cp", "nothing").stderr


def test_validate_a_study(in_folder):
    assert "all settings are valid" in autolr("validate", "sentiment").stdout
    assert json.loads(autolr("validate", "glue-cola", "--json").stdout)["metric"] == "matthews"
    (in_folder / "bad.yaml").write_text("model: x\ndata: y\nspac: 1\nseed: -1\n")
    done = autolr("validate", "bad.yaml")
    assert done.returncode == 2 and "2 problems" in done.stderr and "line 3: spac" in done.stderr
    assert "give a study, or --model" in autolr("validate").stderr


def test_validate_a_model_as_json(model_folders):
    found = json.loads(autolr("validate", "--model", model_folders["bert"], "--json", "--device", "cpu").stdout)
    assert ["coverage", "q and v in 2 of 2 layers"] in found["facts"]
    assert found["checks"] and all(check["passed"] for check in found["checks"])


@pytest.fixture(scope="module")
def run(small_study, tmp_path_factory):
    return search(small_study, tmp_path_factory.mktemp("runs") / "run", device="cpu").folder


def test_every_reading_verb_has_json(run, small_study):
    report = json.loads(autolr("report", run, "--json").stdout)
    assert len(report["trials"]) >= 9 and report["recipe"]["evidence"]["verdict"]
    assert report["study"]["name"] == "small" and "losses" not in report["trainings"][0]
    predicted = autolr("predict", run, "--lr-v", "3e-3", "--ratio", 2, "--rank", 4, "--json")
    found = json.loads(predicted.stdout)
    assert found["low"] < found["loss"] < found["high"] and found["nearest"]["rank"] in (2, 4, 8)
    watched = json.loads(autolr("watch", run, "--json").stdout)
    assert watched["ended"] == "finished" and watched["phase"] == "seeds"
    assert json.loads(autolr("runs", run, "--json").stdout)[0]["name"] == "small"
    plan = json.loads(autolr("search", run / "study.yaml", "--dry-run", "--json", "--device", "cpu").stdout)
    assert plan["plan"]["stages"][0]["stage"]["steps"] == 12 and plan["study"]["budget"]["trials"] == 9
    assert autolr("search", run / "study.yaml", "--json").returncode == 2


def test_export_of_a_run(run, tmp_path):
    for tool in TOOLS:
        done = autolr("export", run, "--to", tool, "--out", tmp_path / tool)
        if tool == "peft":
            assert done.returncode == 0, done.stderr
            assert f"wrote {tmp_path / tool}" in done.stdout and "rates" in done.stdout.lower()
        else:
            assert done.returncode == 2 and "trains language models" in done.stderr
    assert autolr("export", run, "--to", "peft").returncode == 0
    assert (run / "export-peft" / "adapter_config.json").is_file()


def test_help_tells_exit_codes_and_colours():
    said = " ".join(autolr("--help").stdout.split())
    assert "Exit codes: 0 success" in said and "130 stopped by Ctrl-C" in said and "NO_COLOR" in said


def test_no_color():
    forced = {**os.environ, "FORCE_COLOR": "1", "TERMINAL_WIDTH": "100"}
    coloured = apart("search", "--help", env={key: v for key, v in forced.items() if key != "NO_COLOR"}).stdout
    plain = apart("search", "--help", env={**forced, "NO_COLOR": "1"}).stdout
    colours = [f"\x1b[{code}" for code in ("31", "32", "33", "34", "35", "36", "1;31", "1;32", "1;33", "1;36")]
    assert any(colour in coloured for colour in colours) and not any(colour in plain for colour in colours)


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("autolr sea", {"search"}),
        ("autolr search sen", {"sentiment"}),
        ("autolr search my", {"mystudy.yaml"}),
        ("autolr cp glue-c", {"glue-cola"}),
        ("autolr export runs/", {"runs/one"}),
        ("autolr search --da", {"--data"}),
    ],
)
def test_completion(words, offered, in_folder):
    (in_folder / "mystudy.yaml").write_text("model: x\n")
    (in_folder / "runs" / "one").mkdir(parents=True)
    (in_folder / "runs" / "one" / "study.yaml").write_text("model: x\n")
    asked = {"_AUTOLR_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    code = "import sys; sys.argv = ['autolr']; from autolr.cli import app; app(prog_name='autolr')"
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **asked}, capture_output=True, text=True)
    found = {line.strip().rstrip("/") for line in done.stdout.splitlines()}
    assert offered <= found, (done.stdout, done.stderr)
