"""The live view fits terminals of all sizes and alphabets, and another process can watch."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time

import psutil
import pytest
from rich.console import Console
from rich.live import Live

from autolr import cli
from autolr.cli.live import Screen, is_live
from autolr.cli.output import fold
from autolr.progress.state import Best, SlotState, State
from autolr.progress.table import View, spell
from autolr.tuner.run import search

SLOTS = [
    SlotState(
        label=f"trial {n}",
        candidate="λ=12.3 lr_v=1.10e-02 r=16 with W_k",
        step=40 * n,
        steps=12345,
        losses=[1 / (k + 1) for k in range(100)],
        score=0.4321,
    )
    for n in range(8)
]
STATE = State(
    phase="trials", total=24, done=9, slots=SLOTS, capacity=10, best=Best(score=0.4, candidate="λ=4 lr_v=2e-3 r=8"),
    outcomes={"pruned": 5},
)  # fmt: skip


def test_the_time_left_counts_what_was_trained_here():
    slot = SLOTS[0].model_copy(update={"step": 150, "steps": 200, "begun": 100})
    state = State(phase="finals", total=4, slots=[slot, slot], capacity=2, started=100.0, updated=160.0)
    assert state.time_left() == pytest.approx(180)  # two halves in a minute, three more to go


def drawn(width: int, height: int = 40, encoding: str = "utf-8") -> list[str]:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, errors="strict")
    Console(file=file, width=width, height=height, force_terminal=True, color_system=None).print(View(STATE))
    file.flush()
    return raw.getvalue().decode(encoding).splitlines()


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_no_line_is_wrapped_and_all_slots_are_there(width):
    lines = drawn(width)
    assert all(len(line.rstrip()) <= width for line in lines)
    rows = [line for line in lines if line.startswith("trial ") and "step" not in line]
    assert len(rows) == 8
    assert all("0.4321" in row and f"{40 * n}/12345" in row for n, row in enumerate(rows))
    blocks = max(sum(letter in "▁▂▃▄▅▆▇█" for letter in row) for row in rows)
    assert blocks >= (60 if width == 200 else 0)  # what is left of the width is the curve's
    if width >= 120:
        assert "λ=12.3 lr_v=1.10e-02 r=16 with W_k" in rows[0]


def test_a_low_terminal_shows_what_fits():
    lines = drawn(80, height=10)
    assert len(lines) <= 9 and lines[-1].startswith("and 3 more")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_terminals_without_greek_letters(encoding):
    text = "\n".join(drawn(120, encoding=encoding))
    assert "ratio=12.3" in text and "?" not in text


def test_before_the_first_trial_and_after_the_last_there_is_no_table():
    raw = io.StringIO()
    Console(file=raw, width=80).print(View(State()), View(State(phase="trials", capacity=4, ended="finished")))
    assert raw.getvalue().split("\n") == ["preparation", "trials 0/0", ""]


def test_a_resized_terminal_is_drawn_anew():
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, color_system=None, width=80, height=24)
    screen = Screen(Live(console=console, auto_refresh=False))
    screen.draw(STATE.model_copy(update={"notes": ["said before"]}))
    assert "said before" not in file.getvalue()
    console.width = 120
    screen.draw(STATE.model_copy(update={"notes": ["said before"]}))
    assert "\x1b[2J" in file.getvalue() and "note: said before" in file.getvalue().rpartition("\x1b[2J")[2]


def test_long_lines_are_folded_between_words_and_commands_are_not():
    text = f"verdict  {'word ' * 30}end\n  next: autolr search {'x' * 100}"
    *lines, command = fold(text, 60).split("\n")
    assert len(lines) > 2 and all(len(line) <= 60 for line in lines) and lines[1].startswith(" " * 9 + "word")
    assert " ".join(" ".join(lines).split()) == " ".join(text.split("\n")[0].split())
    assert command == text.split("\n")[1]
    assert fold("two words  and more of it", 24) == "two words  and more of\n           it"
    assert fold("- a reason that is long", 20) == "- a reason that is\n  long"


def test_letters():
    assert spell("λ=4 η_V", "ascii") == "ratio=4 lr_V"
    assert spell("λ=4", "utf-8") == "λ=4"
    assert not is_live(Console(force_terminal=True))  # colours forced on in a log make no terminal of it


@pytest.fixture(scope="module")
def finished(small_study, tmp_path_factory):
    return search(small_study, tmp_path_factory.mktemp("watch") / "run", device="cpu")


def test_a_finished_search_is_said_so(finished, capsys):
    state = json.loads((finished.folder / "live.json").read_text())
    assert state["ended"] == "finished" and state["phase"] == "seeds" and state["done"] == state["total"]
    assert state["pid"] == os.getpid()
    with pytest.raises(SystemExit) as stop:
        cli.main(["watch", str(finished.folder)])
    assert stop.value.code in (0, None)
    said = capsys.readouterr().out
    assert said.splitlines()[-1].startswith("finished: ") and "seeds" in said


def test_a_search_in_another_process_is_watched_to_its_end(small_study, tmp_path):
    small_study.model_copy(
        update={"budget": small_study.budget.model_copy(update={"trials": 60})}
    ).save(tmp_path / "study.yaml")  # fmt: skip
    run = tmp_path / "run"
    command = [sys.executable, "-m", "autolr"]
    with (tmp_path / "log").open("w") as log:
        arguments = [*command, "search", str(tmp_path / "study.yaml"), "--out", str(run), "--device", "cpu"]
        process = subprocess.Popen(arguments, stdout=log, stderr=log)
    try:
        for _ in range(600):
            if (run / "live.json").exists():
                break
            time.sleep(0.1)
        watched = subprocess.Popen(
            [*command, "watch", str(run)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONIOENCODING": "ascii", "FORCE_COLOR": "1"},
        )  # fmt: skip
        first = watched.stdout.readline()
        while first == "preparation\n":
            first = watched.stdout.readline()
        assert first.startswith("trials ") and "/60" in first
        psutil.Process(process.pid).kill()
        process.wait()
        rest, errors = watched.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert watched.returncode == 0, errors
    assert "its process has ended; resume with: autolr search --out" in rest and "\x1b" not in rest


def test_what_cannot_be_watched(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["watch", str(tmp_path)])
    assert stop.value.code == 2 and "live.json" in capsys.readouterr().err
