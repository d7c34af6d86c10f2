"""Drawn chats, tables and broken files: wrong results are counted, and there are none."""

from __future__ import annotations

import sys
import time
from dataclasses import replace

from studies.benchmarks.robustness import fuzz_chats, fuzz_files, fuzz_tables


def test_drawn_chats_are_learned_rightly(tmp_path):
    found = fuzz_chats.measure(40, tmp_path, 1)["figures"]
    assert found["generated"] == 40 == found["right"] + found["refused"], found
    assert found["right"] > 10


def test_a_wrong_span_would_be_counted(tmp_path, monkeypatch):
    learn = fuzz_chats.lm_labels.learn

    def one_less(*given):
        found = learn(*given)
        return type(found)(found.ids, [[-100, *own[1:-1], -100][: len(own)] for own in found.labels], found.notices)

    monkeypatch.setattr(fuzz_chats.lm_labels, "learn", one_less)
    assert fuzz_chats.measure(20, tmp_path, 1)["figures"]["wrong_spans"] > 3


def test_broken_files_are_read_without_traceback_or_hang(tmp_path):
    found = fuzz_files.measure(12, tmp_path, 1)
    assert found["fuzzed"] == 12 and found["tracebacks"] == found["hangs"] == 0, found["rows"]
    assert sum(row.get("plan", 0) + row.get("message", 0) for row in found["rows"]) == 12


def test_what_is_not_clear_is_counted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tracebacks").mkdir()
    outcomes = {"plan": lambda words: None, "message": lambda words: sys.exit(2), "traceback": lambda words: 1 / 0}
    outcomes["hang"] = lambda words: time.sleep(10)
    for outcome, run in outcomes.items():
        monkeypatch.setattr(fuzz_files.cli, "main", run)
        assert fuzz_files.run([], 0.1)[0] == outcome


def test_tables_of_all_formats_are_the_same_or_refused():
    found = fuzz_tables.measure(3, 1)
    figures = found["figures"]
    assert (figures["tables"], figures["tracebacks"], figures["differences"], figures["without_remedy"]) == (
        3,
        0,
        0,
        0,
    )
    assert figures["right"] >= 3 * 15 and figures["refused"] >= 3, found["failed"]


def test_tables_that_are_read_wrongly_are_counted(monkeypatch):
    load = fuzz_tables.sources.load

    def wrong(data, task):
        if data.source.endswith(".tsv"):
            raise ZeroDivisionError
        found = load(data, task)
        return replace(found, texts=found.texts[::-1]) if data.source.endswith("d.jsonl") else found

    monkeypatch.setattr(fuzz_tables.sources, "load", wrong)
    found = fuzz_tables.measure(2, 1)
    assert found["figures"]["differences"] == found["figures"]["tracebacks"] == 2
    assert {row["file"] for row in found["failed"]} == {"d.tsv", "d.jsonl"}
