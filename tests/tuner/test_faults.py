"""What happens to machines: full disks, folders that cannot be written, locks, clocks, and damaged files."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import optuna
import pytest

from autolr import cli
from autolr.errors import RunError
from autolr.progress.callbacks import Callback
from autolr.report.page import render
from autolr.rundir import records, retry
from autolr.rundir.folder import RunFolder
from autolr.rundir.integrity import check
from autolr.rundir.result import SearchResult
from autolr.rundir.retry import RetryingStorage
from autolr.rundir.storage import Journal
from autolr.tuner.run import search


def autolr(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "autolr", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of a few hundred kilobytes, and how to change it."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(*options: str) -> None:
        subprocess.run(["mount", *options, str(folder)], check=True, capture_output=True)

    try:
        mount("-t", "tmpfs", "-o", "size=64k", "tmpfs")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    yield folder, lambda option: mount("-o", f"remount,{option}")
    subprocess.run(["umount", "-l", str(folder)], check=False)


@pytest.fixture(scope="module")
def finished(small_study, tmp_path_factory):
    budget = small_study.budget.model_copy(update={"trials": 5})
    return search(
        small_study.model_copy(update={"budget": budget}), tmp_path_factory.mktemp("f") / "run", device="cpu"
    )


def test_a_disk_that_is_full_ends_the_search_and_more_room_lets_it_go_on(small_study, small_disk, tmp_path):
    disk, remount = small_disk
    small_study.save(tmp_path / "study.yaml")
    command = ("search", tmp_path / "study.yaml", "budget.trials=12", "--out", disk / "run", "--device", "cpu")
    stopped = autolr(*command)
    assert stopped.returncode == 2 and "Traceback" not in stopped.stderr, stopped.stderr
    assert stopped.stderr.startswith("error: no space left on the device") and "to resume" in stopped.stderr
    before = {trial.number: trial for trial in SearchResult.load(disk / "run").ended()}
    remount("size=64m")
    done = autolr(*command)
    assert done.returncode == 0, done.stderr
    result = SearchResult.load(disk / "run")
    assert len(result.ended()) == 12 and result.recipe is not None
    after = {trial.number: trial for trial in result.ended()}
    assert all(after[number].rungs == trial.rungs for number, trial in before.items())
    assert not check(disk / "run").damaged


def test_a_folder_that_cannot_be_written(small_study, small_disk, tmp_path):
    disk, remount = small_disk
    remount("ro")
    with pytest.raises(RunError, match=r"--out .*cannot be written: Read-only file system"):
        search(small_study, disk / "run", device="cpu")
    small_study.save(tmp_path / "study.yaml")
    done = autolr("search", tmp_path / "study.yaml", "--out", disk / "run", "--device", "cpu")
    assert done.returncode == 2 and "Traceback" not in done.stderr and "cannot be written" in done.stderr


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_what_the_disk_says_in_the_middle_is_one_message(small_study, tmp_path, monkeypatch, capsys, number):
    small_study.save(tmp_path / "study.yaml")
    own, calls = records.append, []

    def append(path, record):
        calls.append(path)
        if len(calls) == 3:
            raise OSError(number, os.strerror(number), str(path))
        own(path, record)

    monkeypatch.setattr(records, "append", append)
    words = ["search", str(tmp_path / "study.yaml"), "--out", str(tmp_path / "run"), "--device", "cpu", "--plain"]
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and "Traceback" not in said
    assert ("to resume" in said) == (number != errno.EROFS) and "curves.jsonl" in said
    assert len(search(small_study, tmp_path / "run", device="cpu").ended()) == 9
    assert not check(tmp_path / "run").damaged


def test_a_second_search_on_a_folder_is_refused_and_nothing_is_lost(small_study, tmp_path):
    class Second(Callback):
        said = None

        def stepped(self, running, capacity):
            if self.said is None:
                command = f"from autolr import cli; cli.main(['search', '--out', {str(tmp_path / 'run')!r}])"
                done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, timeout=120)
                self.said = done.returncode, done.stderr

    second = Second()
    result = search(small_study, tmp_path / "run", device="cpu", callback=second)
    assert second.said[0] == 2 and "another search is at work in this folder" in second.said[1]
    assert len(result.ended()) == 9 and result.recipe is not None


def test_a_clock_that_goes_back(small_study, tmp_path, monkeypatch):
    own, start = time.time, time.time()

    def back() -> float:  # an hour back after the first second, a day after the second
        gone = own() - start
        return own() - (3600 if gone > 1 else 0) - (86400 if gone > 2 else 0)

    monkeypatch.setattr(time, "time", back)

    study = small_study.model_copy(
        update={"budget": small_study.budget.model_copy(update={"time": 3600.0, "trials": 9})}
    )
    result = search(study, tmp_path / "run", device="cpu")
    monkeypatch.undo()
    assert len(result.ended()) == 9 and result.recipe is not None
    assert all(trial.seconds > 0 for trial in result.ended()) and all(phase.seconds > 0 for phase in result.phases)
    assert "This search is not finished" not in render(result)
    state = json.loads((tmp_path / "run" / "live.json").read_text())
    assert state["ended"] == "finished"


# Storages that are locked, or gone for a while.


class Holder(threading.Thread):
    """Locks a database of SQLite for a while, as another process would."""

    def __init__(self, path: Path, seconds: float) -> None:
        super().__init__()
        self.connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self.connection.execute("BEGIN EXCLUSIVE")
        self.seconds = seconds

    def run(self) -> None:
        time.sleep(self.seconds)
        self.connection.execute("COMMIT")
        self.connection.close()


def test_a_storage_that_is_locked_is_waited_for(tmp_path):
    path, notes = tmp_path / "s.db", []
    inner = optuna.storages.RDBStorage(f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": 0.1}})
    study = optuna.create_study(storage=RetryingStorage(inner, "the storage", notes.append))
    holder = Holder(path, 1.0)
    holder.start()
    trial = study.ask({"x": optuna.distributions.FloatDistribution(0, 1)})
    study.tell(trial, 1.0)
    holder.join()
    assert [t.state.name for t in study.trials] == ["COMPLETE"]
    assert len(notes) == 2 and "unreachable (database is locked" in notes[0] and notes[1] == "the storage is back"


def test_a_storage_that_stays_away_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr(retry, "PATIENCE", 0.5)
    inner = optuna.storages.InMemoryStorage()

    def away(*_):
        raise OSError(errno.ESTALE, "Stale file handle")

    study = optuna.create_study(storage=RetryingStorage(inner, "journal.log"))
    monkeypatch.setattr(inner, "create_new_trial", away)
    with pytest.raises(RunError, match=r"journal.log: unreachable for 0 s \(.*Stale file handle\).*to resume"):
        study.ask()


def test_what_was_heard_is_not_said_twice():
    """A tell whose answer is lost has been heard: given again, it is refused, and that is all right."""
    inner = optuna.storages.InMemoryStorage()
    own, lost = inner.set_trial_state_values, [True]

    def deaf(*arguments, **options):
        found = own(*arguments, **options)
        if lost.pop() if lost else False:
            raise ConnectionResetError("the server closed the connection")
        return found

    inner.set_trial_state_values = deaf
    study = optuna.create_study(storage=RetryingStorage(inner, "s"))
    study.tell(study.ask(), 1.0)
    assert [t.value for t in study.trials] == [1.0]
    with pytest.raises(ValueError, match="Cannot tell"):
        study.tell(0, 2.0)


def test_a_search_goes_on_when_its_folder_was_gone_for_a_moment(small_study, tmp_path, monkeypatch):
    own, calls = Journal.append_logs, []

    def append(self, logs):
        calls.append(1)
        if len(calls) in (10, 11, 30):
            raise OSError(errno.ESTALE, "Stale file handle")
        own(self, logs)

    monkeypatch.setattr(Journal, "append_logs", append)
    result = search(small_study, tmp_path / "run", device="cpu")
    assert len(calls) > 30
    assert len(result.ended()) == 9 and not check(tmp_path / "run").damaged


# Damaged run folders.


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def garbage(path: Path) -> None:
    lines = path.read_bytes().split(b"\n")
    lines[len(lines) // 2] = b"\x00\xff" * 20
    path.write_bytes(b"\n".join(lines))


DAMAGE = {
    "study.yaml": (garbage, "a search needs it"),
    "journal.log": (garbage, "head -n"),
    "curves.jsonl": (garbage, "1 of 5 lines are damaged"),
    "trainings.jsonl": (cut, "lines are damaged; the others are read"),
    "phases.jsonl": (garbage, "1 of 4 lines are damaged"),
    "recipe.yaml": (cut, "made again by the search"),
    "machine.json": (cut, "made again by the search"),
    "live.json": (cut, "made again by the search"),
    "resources.parquet": (cut, "without its figures of memory"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_run_folder_is_reported_with_what_can_be_saved(finished, in_folder, capsys, name):
    shutil.copytree(finished.folder, "run")
    harm, expected = DAMAGE[name]
    harm(Path("run") / name)
    with pytest.raises(SystemExit) as stop:
        cli.main(["runs", "run", "--check"])
    said = capsys.readouterr()
    assert stop.value.code == 2 and "Traceback" not in said.err
    assert expected in said.out and name in said.out.split("sound")[0]
    # All other verbs say one thing, or do without.
    for words in (["runs", "."], ["report", "run"], ["watch", "run", "--once"], ["train", "run", "--out", "t"]):
        if words[0] == "train" and name != "recipe.yaml":
            continue
        if words[0] == "watch" and name != "live.json":
            continue
        try:
            cli.main(words)
        except SystemExit as end:
            assert end.code in (0, 2)
        assert "Traceback" not in capsys.readouterr().err


def test_a_sound_folder_and_one_of_many(finished, in_folder, capsys):
    shutil.copytree(finished.folder, "runs/a")
    shutil.copytree(finished.folder, "runs/b")
    with pytest.raises(SystemExit) as stop:
        cli.main(["runs", "--check"])
    assert stop.value.code == 0 and capsys.readouterr().out.count(": sound") == 2
    Path("runs/b/study.yaml").unlink()
    with pytest.raises(SystemExit) as stop:
        cli.main(["runs", "--check", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert stop.value.code == 2 and len(found) == 2
    assert "is missing" in next(row for row in found if row["folder"].endswith("b"))["damaged"][0]


def test_the_whole_beginning_of_a_journal_is_enough_to_go_on(finished, tmp_path):
    shutil.copytree(finished.folder, tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    garbage(run.journal)
    with pytest.raises(RunError, match=r"journal.log: is damaged .*--check"):
        SearchResult.load(run.path)
    kept = int(check(run.path).remedy.partition("the first ")[2].split()[0])
    lines = run.journal.read_bytes().split(b"\n")
    run.journal.write_bytes(b"\n".join(lines[:kept]) + b"\n")
    assert not check(run.path).damaged
    result = search(finished.study, run.path, device="cpu")
    assert len(result.ended()) == 5 and result.recipe is not None
