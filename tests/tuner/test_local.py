"""Several workers on one search: each trial once, none lost with a worker that dies, and who looks on sees all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from optuna.trial import TrialState

from autolr.errors import AutoLRError, RunError
from autolr.progress.callbacks import Callback
from autolr.progress.state import State, read_state
from autolr.rundir import storage
from autolr.rundir.folder import STORAGE, RunFolder
from autolr.rundir.records import CLAIM
from autolr.rundir.result import SearchResult
from autolr.tuner.run import join, search, wait_for
from autolr.tuner.workers import local
from tests.report.test_dashboard import ask

ROOT = Path(__file__).resolve().parents[2]
# What a worker does to the trials' storage, many times and without training.
WRITER = """
import sys
from autolr.rundir.folder import RunFolder
from autolr.rundir.records import CLAIM
from autolr.schema.study import Study
from optuna.distributions import CategoricalDistribution, FloatDistribution
folder = RunFolder(sys.argv[1])
study = folder.optuna(Study.load(folder.study))
for _ in range(int(sys.argv[2])):
    with folder.locked():
        rates = {"lr_v": FloatDistribution(1e-4, 1e-1, log=True), "ratio": FloatDistribution(0.5, 8, log=True)}
        trial = study.ask({**rates, "rank": CategoricalDistribution([2, 4, 8])})
        trial.set_user_attr(CLAIM, [sys.argv[3], 0])
    for step in (4, 8, 12):
        trial.report(1 / (1 + step), step)
    with folder.locked():
        trial.set_user_attr("outcome", "finished")
        study.tell(trial, 0.5)
"""


class Told(Callback):
    """Keeps notes and states."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.states: list[State] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def looked(self, state) -> None:
        self.states.append(state)


@pytest.fixture(autouse=True)
def paths(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv(STORAGE, raising=False)


@pytest.fixture(scope="module")
def alone(tmp_path_factory, small_study) -> SearchResult:
    return search(small_study, tmp_path_factory.mktemp("alone") / "run", device="cpu")


def check(result: SearchResult, alone: SearchResult) -> None:
    """Each trial and repeat is there once, and is what it would have been alone."""
    study = alone.study
    assert len(result.trials) == len(result.ended()) == study.budget.trials
    candidates = [trial.candidate for trial in result.trials]
    assert len(set(candidates)) == len(candidates)
    assert {trial.baseline for trial in result.trials} == {"default", "paper", None}
    lines = [json.loads(line) for line in RunFolder(result.folder).curves.read_text().splitlines()]
    assert {line["number"] for line in lines} == set(range(study.budget.trials))
    for trial in result.trials:
        assert len(trial.curve) == (12 if trial.outcome == "finished" else max(trial.rungs, default=len(trial.curve)))
    curves = {trial.candidate: trial.curve for trial in alone.ended()}
    rules = [trial for trial in result.trials if trial.baseline is not None]
    for trial in rules:
        length = min(len(trial.curve), len(curves[trial.candidate]))
        assert trial.curve[:length] == pytest.approx(curves[trial.candidate][:length], rel=1e-3)
    repeats = [(one.candidate, one.seed) for one in result.over_seeds]
    assert len(repeats) == len(set(repeats))
    assert len(repeats) == 2 * len(result.recipe.evidence.scores)
    for stage in result.ladder.values():
        assert len({one.candidate for one in stage}) == len(stage)
    finals = [one.candidate for one in result.finals]
    assert len(finals) == len(set(finals)) == len(result.recipe.evidence.finals)


def kill_one(folder: RunFolder, done: threading.Event) -> None:
    """Kill the first worker that has a trial."""
    while not done.wait(0.02):
        for path in folder.workers.glob("*.json"):
            if _training(folder, path):
                os.kill(read_state(folder, path).pid, signal.SIGKILL)
                return


def _training(folder: RunFolder, path: Path) -> bool:
    """Return True if the worker of a state file has claimed a trial that is under way."""
    running = [trial for trial in folder.trials() if trial.state == TrialState.RUNNING]
    return any(trial.user_attrs[CLAIM][0] == path.stem for trial in running if CLAIM in trial.user_attrs)


def test_two_workers_one_of_which_dies(alone, small_study, tmp_path):
    folder, told, done = RunFolder(tmp_path / "run"), Told(), threading.Event()
    killer = threading.Thread(target=kill_one, args=(folder, done))
    killer.start()
    try:
        result = search(small_study, folder.path, device="cpu", workers=2, callback=told)
    finally:
        done.set()
        killer.join()
    check(result, alone)
    assert [note for note in told.notes if "signal 9" in note and "a new worker takes over" in note]
    assert told.states[-1].phase == "seeds" and told.states[-1].done == len(result.over_seeds)
    assert read_state(folder).ended == "finished"
    assert not folder.slots.exists()
    assert len(list(folder.workers.glob("*.log"))) == 2
    # A search of several is gone on with by one, and is as finished as any other.
    assert search(small_study, folder.path, device="cpu").recipe.candidate == result.recipe.candidate


def test_workers_end_with_the_process_that_started_them(small_study, tmp_path):
    more = small_study.model_copy(update={"budget": small_study.budget.model_copy(update={"trials": 400})})
    more.save(tmp_path / "study.yaml")
    folder = RunFolder(tmp_path / "run")
    command = [sys.executable, "-m", "autolr", "search", str(tmp_path / "study.yaml"), "--out", str(folder.path)]
    with subprocess.Popen([*command, "--workers", "2", "--device", "cpu", "--plain"], cwd=ROOT) as first:
        while not list(folder.workers.glob("*.json")) and first.poll() is None:
            time.sleep(0.1)
        children = psutil.Process(first.pid).children(recursive=True)
        first.kill()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert children and not alive


@pytest.mark.parametrize("kind", ["postgres", "mysql"])
def test_a_worker_joins_a_search_in_a_database(alone, small_study, kind, request, tmp_path):
    address = request.getfixturevalue(kind)
    small_study.save(tmp_path / "study.yaml")
    folder = RunFolder(tmp_path / "run")
    command = [
        sys.executable,
        "-m",
        "autolr",
        "worker",
        str(folder.path),
        "--wait",
        "120",
        "--device",
        "cpu",
        "--plain",
    ]
    with subprocess.Popen([*command, "--storage", address], cwd=ROOT, stdout=subprocess.PIPE, text=True) as joined:
        result = search(small_study, folder.path, device="cpu", storage=address)
        said = joined.communicate(timeout=120)[0]
    assert joined.returncode == 0 and "has ended" in said
    check(result, alone)
    assert not folder.journal.exists()
    # The address is kept without its password, and another search of the same study has trials of its own.
    assert json.loads(folder.database.read_text())["url"] == address
    again = search(small_study, tmp_path / "again", device="cpu", storage=address)
    assert [t.candidate for t in again.trials] == [t.candidate for t in alone.trials]


def test_the_dashboard_of_a_search_in_a_database(small_study, postgres, tmp_path):
    pytest.importorskip("optuna_dashboard")
    from autolr.report.dashboard import application

    one = small_study.model_copy(update={"budget": small_study.budget.model_copy(update={"trials": 3})})
    result = search(one, tmp_path / "run", device="cpu", storage=postgres)
    app, update = application(RunFolder(result.folder))
    update()
    assert any(len(page["trials"]) == 3 for page in studies_of(app))


def studies_of(app) -> list[dict]:
    """Return what the dashboard's page is sent of each study."""
    status, answer = ask(app, "/api/studies")
    assert status.startswith("200")
    studies = json.loads(answer)["study_summaries"]
    pages = [ask(app, f"/api/studies/{study['study_id']}") for study in studies]
    assert all(status.startswith("200") for status, _ in pages)
    return [json.loads(page) for _, page in pages]


@pytest.mark.parametrize("where", ["journal", "database"])
def test_the_dashboard_reads_while_eight_workers_write(where, small_study, tmp_path, request):
    pytest.importorskip("optuna_dashboard")
    from autolr.report.dashboard import application

    folder, each = RunFolder(tmp_path / "run"), 12
    folder.path.mkdir()
    folder.open(small_study, request.getfixturevalue("postgres") if where == "database" else None)
    folder.optuna(small_study)
    app, update = application(folder)
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(folder.path), str(each), f"w{number}"], cwd=ROOT)
        for number in range(8)
    ]
    seen, reads = [0], 0
    while any(writer.poll() is None for writer in writers):
        update()
        name = folder.optuna(small_study).study_name
        now = [len(page["trials"]) for page in studies_of(app) if page["name"] == name]
        assert now and now[0] >= seen[-1]  # what was there once stays
        seen.append(now[0])
        reads += 1
    assert [writer.wait() for writer in writers] == [0] * 8
    assert reads >= 2
    trials = folder.trials()
    assert len(trials) == 8 * each and [t.number for t in trials] == list(range(8 * each))
    assert all(sorted(trial.intermediate_values) == [4, 8, 12] and trial.value == 0.5 for trial in trials)


def test_a_ray_cluster_with_two_workers(alone, small_study, tmp_path):
    ray = pytest.importorskip("ray", reason="ray is not installed (extra: ray)")
    from autolr.tuner.workers.ray import RayFleet

    told, started = Told(), []
    folder = RunFolder(tmp_path / "run")
    start = RayFleet.start

    def counted(self, place: int) -> None:
        start(self, place)
        started.append(place)

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    done = threading.Event()
    thread = threading.Thread(target=kill_one, args=(folder, done), daemon=True)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(RayFleet, "start", counted)
            thread.start()
            result = search(small_study, folder.path, workers="ray:2", callback=told)
        with pytest.raises(AutoLRError, match="the cluster has 2 cores"):
            search(small_study, tmp_path / "more", workers="ray:3")
    finally:
        done.set()
        ray.shutdown()
    check(result, alone)
    assert started[:2] == [0, 1] and len(started) == 3
    assert [note for note in told.notes if "its actor was lost" in note]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"workers": 0}, "must be at least 1"),
        ({"workers": "many"}, "give a number, ray, or ray and a number"),
        ({"workers": "ray:some"}, "give a number, ray, or ray and a number"),
        ({"workers": 2, "device": "cuda:1"}, "each worker has its own device"),
        ({"storage": "sqlite:///here.db"}, "must start with postgresql:// or mysql://"),
        ({"storage": "postgresql://me:secret@127.0.0.1:1/none"}, "onnection"),
    ],
)
def test_what_is_refused(asked, words, small_study, tmp_path):
    with pytest.raises(AutoLRError, match=words) as caught:
        search(small_study, tmp_path / "run", **{"device": "cpu", **asked})
    assert "secret" not in str(caught.value)
    for path in (tmp_path / "run").rglob("*") if (tmp_path / "run").exists() else []:
        assert not path.is_file() or b"secret" not in path.read_bytes()


def test_more_workers_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert local.devices(2, None) == ["cuda:0", "cuda:1"]
    assert local.devices(3, "cpu") == ["cpu"] * 3
    with pytest.raises(AutoLRError, match="has 2 GPUs"):
        local.devices(3, None)


def test_what_is_wrong_with_a_study_is_said_once(small_study, tmp_path):
    wrong = small_study.model_validate({**small_study.model_dump(), "space": {"rank": [8, 64]}})
    with pytest.raises(RunError, match=r"space\.rank 64: .*at most 32") as caught:
        search(wrong, tmp_path / "run", device="cpu", workers=2)
    assert "Traceback" not in str(caught.value)


def test_a_worker_without_a_search(tmp_path):
    folder = RunFolder(tmp_path / "nothing")
    wait_for(folder, 0.0)
    with pytest.raises(RunError, match="no search has begun here"):
        join(folder)


def test_trials_do_not_move(small_study, tmp_path, monkeypatch):
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.open(small_study, "postgresql://me@one/autolr")
    monkeypatch.delenv(STORAGE)
    with pytest.raises(RunError, match=r"lie in postgresql://\*\*\*@one/autolr"):
        folder.open(small_study, "postgresql://me@two/autolr")
    assert storage.hidden("postgresql://me:secret@one/autolr") == "postgresql://me@one/autolr"
    monkeypatch.setenv(STORAGE, "postgresql://me:secret@one/autolr")
    assert folder.url == "postgresql://me:secret@one/autolr"


def test_the_slurm_example_is_the_commands_we_have(tmp_path):
    script = ROOT / "examples" / "slurm.sh"
    fake = tmp_path / "autolr"
    fake.write_text('#!/bin/sh\necho "$@"\n')
    fake.chmod(0o755)
    for task, verb in (("0", "search"), ("3", "worker")):
        environment = {**os.environ, "SLURM_ARRAY_TASK_ID": task, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
        said = subprocess.run(
            ["bash", str(script)], env=environment, capture_output=True, text=True, check=True
        ).stdout
        words = said.split()
        assert words[0] == verb
        helped = subprocess.run(
            [sys.executable, "-m", "autolr", verb, "--help"], capture_output=True, text=True, check=True, cwd=ROOT
        ).stdout
        assert all(word in helped for word in words if word.startswith("--"))
