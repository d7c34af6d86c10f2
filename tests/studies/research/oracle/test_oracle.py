"""The scripts that measure oracles, and what they say of short trials."""

from __future__ import annotations

import json
import math
import sys

import pyarrow.parquet as pq
import pytest

from autolr.rundir import records
from autolr.schema.study import Study
from studies.research.oracle import measure, optimum_drift, rung_correlation, sections, short_schedules


def stanza(name: str, section: str, text: str) -> list[str]:
    return [f"Package: {name}", f"Section: {section}", f"Description: {text}", " continued", ""]


def test_examples_are_balanced_and_no_text_has_two_labels():
    lines = [line for i in range(700) for line in stanza(f"g{i}", "games", f"a game number {i}")]
    lines += [line for i in range(30) for line in stanza(f"s{i}", "sound", f"a player number {i}")]
    lines += stanza("x", "sound", "a game number 5") + stanza("y", "libs", "not of these sections")
    lines += stanza("z", "sound", "too short")
    rows = sections.examples(lines)
    labels = [label for _, label in rows]
    assert labels.count("games") == sections.EACH
    assert labels.count("sound") == 30
    assert "a game number 5" not in {text for text, _ in rows}
    assert rows == sections.examples(lines)
    assert labels[:40] != sorted(labels[:40])


def test_every_grid_belongs_to_a_study_that_can_be_read(tmp_path):
    (tmp_path / "sections.csv").write_text("text,label\n")
    for name, grid in measure.GRIDS.items():
        study = measure.read_study(name, tmp_path / "sections.csv")
        assert isinstance(study, Study)
        if name != "horizon":
            assert len(grid["lr_v"]) >= 6 and len(grid["ratio"]) >= 6 and len(grid["rank"]) >= 2
        assert len(set(measure.points(grid))) == len(measure.points(grid))
        assert study.data.source.startswith(("demo:", str(tmp_path)))


def test_a_grid_is_measured_run_by_run_and_goes_on(small_study, tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "DATA", tmp_path)
    grid = {"overrides": [], "lr_v": [1e-3, 2e-3], "ratio": [1.0, 4.0], "rank": [2], "rungs": [8, 16]}
    monkeypatch.setattr(measure, "GRIDS", {"toy": grid})
    monkeypatch.setattr(measure, "read_study", lambda name, data: small_study)
    for limit, there in ((1, 1), (2, 3), (9, 4)):
        monkeypatch.setattr(sys, "argv", ["measure.py", "toy", "--seeds", "1", "--limit", str(limit)])
        measure.main()
        runs = list(records.lines(tmp_path / "toy.jsonl"))
        assert len(runs) == there
    assert len({(run["lr_v"], run["ratio"]) for run in runs}) == 4
    for run in runs:
        assert [(r["step"], r["averaged"]) for r in run["rungs"]] == [
            (s, a) for s in (8, 16, 24) for a in (False, True)
        ]
        assert all(
            {"validation_loss", "test_loss", "validation_accuracy", "test_accuracy"} <= r.keys() for r in run["rungs"]
        )
    # The small study's run has more than an epoch: its last steps are no judges. Of one within it they are.
    assert {(run["validation_examples"], run["unseen_examples"], run["unseen_loss"]) for run in runs} == {
        (48, 0, None)
    }
    content = small_study.model_dump()
    content["training"]["horizon"] = {"epochs": None, "steps": 16}
    monkeypatch.setattr(measure, "read_study", lambda name, data: type(small_study).model_validate(content))
    monkeypatch.setattr(measure, "GRIDS", {"short": {**grid, "rungs": [8]}})
    monkeypatch.setattr(sys, "argv", ["measure.py", "short", "--seeds", "1", "--limit", "1"])
    measure.main()
    (short,) = records.lines(tmp_path / "short.jsonl")
    assert short["unseen_examples"] == 4 * 8 and 0 < short["unseen_loss"] < 2
    table = pq.read_table(tmp_path / "toy.parquet")
    assert table.num_rows == 4 * 6
    about = json.loads(table.schema.metadata[b"autolr"])
    assert about["steps"] == 24 and about["environment"]["versions"]


def test_correlations_of_rungs_with_the_end():
    runs = []
    for number, lr_v in enumerate((1e-3, 2e-3, 3e-3, 4e-3, 5e-3, 9e-3)):
        end = 9.0 if lr_v == 9e-3 else 0.4 + 0.01 * number  # the last one has diverged
        raw, averaged = 0.9 - 0.01 * number, 0.6 + 0.01 * number
        row = [(10, False, raw), (10, True, averaged), (40, False, end), (40, True, end)]
        runs.append(
            {
                **{"lr_v": lr_v, "ratio": 1.0, "rank": 4, "seed": 0},
                "rungs": [{"step": s, "averaged": a, "validation_loss": x, "test_loss": x} for s, a, x in row],
            }
        )
    cooled = [{**run, "rung": 10, "rungs": run["rungs"][:1]} for run in runs]
    (found,) = rung_correlation.table(runs, cooled)
    assert found["share"] == 0.25
    assert found["candidates"] == 5
    assert (found["raw"], found["averaged"], found["cool"]) == pytest.approx((-1, 1, -1))
    # Where validation alone prefers the third of six, going on with it costs 0.42 / 0.40; both splits know better.
    runs[2]["rungs"][1]["validation_loss"] = 0.59
    (cost,) = rung_correlation.costs(runs)
    assert cost["best of 1 by validation"] == pytest.approx(5)
    assert cost["best of 3 by validation"] == cost["best of 1 by both"] == 0


def test_what_is_held_out_may_rank_the_ends_better_than_validation():
    runs = []
    for number in range(32):
        end = 0.4 + 0.01 * number
        # validation puts neighbours in the wrong order; the last batches, of as many examples, weigh more.
        seen = [end + (0.012 if number % 2 == 0 else 0.0), end]
        rung = {"step": 9, "averaged": True, "validation_loss": seen[0], "test_loss": seen[1]}
        runs.append(
            {"rungs": [rung], "validation_examples": 10, "unseen_examples": 10, "unseen_loss": end, "seed": 0}
        )
    (row,) = rung_correlation.ends(runs)
    assert row["candidates"] == 16 and row["held out to test"] == 1.0 > row["validation to test"] > 0.9
    assert (
        rung_correlation.ends(runs[:10])
        == rung_correlation.ends([{**run, "unseen_loss": None} for run in runs])
        == []
    )


def test_figures_of_rungs_are_means_over_seeds():
    runs = [{"seed": seed, "value": float(seed)} for seed in (0, 1) for _ in range(16)]
    few = [{"seed": 2, "value": 9.0}] * 15
    (row,) = rung_correlation.over_seeds([*runs, *few], lambda own: [{"value": own[0]["value"], "runs": len(own)}])
    assert row == {"value": 0.5, "runs": 16}
    # Of a seed that was measured before something was kept, nothing is said of it.
    (row,) = rung_correlation.over_seeds(runs, lambda own: [{"value": own[0]["value"]}] if own[0]["seed"] else [])
    assert row == {"value": 1.0}


def test_how_far_the_best_rate_moves():
    rates = [5e-4, 1e-3, 2e-3, 4e-3, 8e-3]

    def run(lr_v: float, seed: int, bests: dict[int, float], ratio: float = 2.0) -> dict:
        losses = {step: math.exp(0.1 * math.log(lr_v / best) ** 2 - 1) for step, best in bests.items()}
        rungs = [
            {"step": step, "averaged": averaged, "validation_loss": loss, "test_loss": loss}
            for step, loss in losses.items()
            for averaged in (False, True)
        ]
        return {"lr_v": lr_v, "ratio": ratio, "rank": 8, "seed": seed, "rungs": rungs}

    # The best rate of one line falls by the half power of the lengths, that of another stays; of a third it lies at
    # the end of the grid, and the fourth has too few rates.
    runs = [run(rate, 0, {12: 9e-3, 25: 3e-3, 100: 1.5e-3}) for rate in rates]
    runs += [run(rate, 1, {25: 1.7e-3, 100: 1.7e-3}) for rate in rates]
    runs += [run(rate, 2, {25: 2e-2, 100: 1.7e-3}) for rate in rates]
    runs += [run(rate, 3, {25: 1.7e-3, 100: 1.7e-3}) for rate in rates[:3]]
    found = optimum_drift.moves(runs)
    assert [(one.seed, one.rank, one.other) for one in found] == [(0, 8, "ratio=2"), (1, 8, "ratio=2")]
    assert (found[0].early, found[0].late) == pytest.approx((3e-3, 1.5e-3))
    assert [one.power for one in found] == pytest.approx([-0.5, 0.0], abs=1e-6)
    assert optimum_drift.rms([3.0, -4.0]) == pytest.approx(math.sqrt(12.5))
    assert {
        one.other
        for one in optimum_drift.moves([run(rate, 0, {25: 2e-3, 100: 2e-3}, rate / 1e-3) for rate in rates], True)
    } == {"lr_q=1.0e-03"}


def test_what_copying_a_short_run_costs():

    def run(lr_v: float, rungs: list[tuple[int, bool, float]]) -> dict:
        kept = [{"step": s, "averaged": a, "validation_loss": x, "test_loss": x} for s, a, x in rungs]
        return {"lr_v": lr_v, "ratio": lr_v / 1e-3, "rank": 8, "seed": 0, "rungs": kept}

    # Of three rates the highest is best in short runs, and the middle one in long ones.
    ends, shorts = {1e-3: 0.44, 2e-3: 0.40, 4e-3: 0.48}, {1e-3: 0.6, 2e-3: 0.5, 4e-3: 0.4}
    own = [run(v, [(100, False, shorts[v]), (100, True, shorts[v])]) for v in ends]

    def rows(*averages: float) -> list[dict]:
        whole = [
            run(v, [(100, False, shorts[v]), (100, True, average), (400, False, ends[v]), (400, True, ends[v])])
            for v, average in zip(ends, averages, strict=True)
        ]
        return short_schedules.table(whole, own)

    blind, moved, averaged, two, raw = rows(0.6, 0.5, 0.55)
    assert blind["lr_v"] == raw["lr_v"] == 4e-3 and blind["excess_pct"] == pytest.approx(20)
    assert moved["lr_v"] == averaged["lr_v"] == two["lr_v"] == 2e-3 and averaged["excess_pct"] == 0
    # From 0.25 on the short run's best comes nearer to the middle rate than to itself.
    assert moved["way"].endswith("^0.25")
    # Where the averages are wrong about the best, but not about the best two, these tell at their ends.
    _, _, averaged, two, _ = rows(0.6, 0.55, 0.5)
    assert averaged["lr_v"] == 4e-3 and two["lr_v"] == 2e-3
    _, _, _, two, _ = rows(0.5, 0.6, 0.55)
    assert two["lr_v"] == 1e-3
