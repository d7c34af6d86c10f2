"""Numbers behind the figures, on searches made by hand whose answers are known."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import plotly.graph_objects as go
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import autolr
from autolr.errors import AutoLRError
from autolr.progress.resources import SCHEMA
from autolr.report import data
from autolr.report.figures import (
    FIGURES,
    choice_effect,
    convergence,
    cost,
    early_vs_late,
    importance,
    memory,
    pruning_timeline,
    rate_map,
    steps_to_target,
)
from autolr.report.figures.style import Colours
from autolr.report.page import render
from autolr.rundir.records import Record
from autolr.rundir.result import SearchResult
from autolr.schema.candidate import Candidate
from autolr.schema.study import Study
from autolr.tuner.propose.baselines import Baseline
from tests.report import made
from tests.report.made import result, trial


def draw(name: str, result: SearchResult):
    return FIGURES[name].draw(result)


def test_each_figure_has_marks_or_is_none(tmp_path):
    whole = made.searched(tmp_path)
    shown = {name: figure.draw(whole) for name, figure in FIGURES.items()}
    absent = {name for name, figure in shown.items() if figure is None}
    # There are λ, one set of targets, one method and one ρ; nothing was recorded.
    assert absent == {"rate_effect", "targets_effect", "kind_effect", "loraplus_lr_ratio_effect", "memory"}
    for name, figure in shown.items():
        if figure is not None:
            assert isinstance(figure, go.Figure) and any(len(trace.x) for trace in figure.data), name
    assert all(figure.draw(result(tmp_path)) is None for figure in FIGURES.values())


def test_a_figure_is_asked_for_by_its_name(tmp_path):
    whole = made.searched(tmp_path)
    assert isinstance(autolr.figure(whole, "convergence"), go.Figure)
    with pytest.raises(AutoLRError, match="figure 'gains': choose one of convergence, steps_to_target, .*history"):
        autolr.figure(whole, "gains")
    with pytest.raises(AutoLRError, match="has nothing to show for memory yet"):
        autolr.figure(whole, "memory")


def test_figures_are_in_order_and_each_file_is_named_as_its_figure():
    orders = [figure.order for figure in FIGURES.values()]
    assert orders == sorted(set(orders))
    for name, figure in FIGURES.items():
        if not name.endswith("_effect"):
            assert figure.plot.__module__.endswith(f".{name}")


def test_steps_to_target_in_units_of_the_rule(tmp_path):
    slow = np.linspace(1, 0, 100)
    fast = np.linspace(1, -1, 100)
    found = steps_to_target.targets(
        result(tmp_path, trial(0, slow, baseline="default"), trial(1, fast, ratio=8), trial(2, [1.0] * 100, ratio=2))
    )
    assert found is not None
    _, rows = found
    assert rows[0].fraction == 1
    assert rows[1].fraction == pytest.approx(0.5, abs=0.06)
    assert rows[2].fraction is None
    assert steps_to_target.targets(result(tmp_path, trial(0, slow))) is None


def repeat(label: str, candidate: Candidate, seed: int, losses, validation=0.5) -> Record:
    return Record(
        label=label, candidate=candidate, seed=seed, validation_loss=validation, validation_metric=0,
        test_loss=validation, test_metric=0, losses=[0.0], curve=list(losses),
    )  # fmt: skip


def test_reaching_is_paired_by_seed(tmp_path):
    rule, other = Candidate(lr_v=1e-3, ratio=1, rank=8), Candidate(lr_v=1e-3, ratio=8, rank=8)
    repeats = [
        repeat("default", rule, 1, np.linspace(1, 0, 100)),
        repeat("default", rule, 2, np.linspace(2, 1, 100)),
        repeat("finalist 1", other, 2, np.linspace(2, 0, 100)),
        repeat("finalist 1", other, 1, [1.0] * 100),
    ]
    found = steps_to_target.reaches(result(tmp_path, trainings=repeats), Baseline.DEFAULT)
    assert len(found) == 1 and found[0].candidate == other
    never, half = found[0].fractions
    assert never is None and half == pytest.approx(0.5, abs=0.06)
    assert found[0].median is None  # half of the seeds never reached it
    assert steps_to_target.reaches(result(tmp_path, trainings=repeats), Baseline.PAPER) == []


def test_a_band_is_the_middle_half_of_an_octave(tmp_path):
    flat = [trial(n, [float(n)] * 20, ratio=4 * 1.05**n) for n in range(5)]
    alone = trial(5, [9.0] * 20, ratio=0.5)
    short = trial(6, [7.0] * 3, ratio=4.1, outcome="diverged")
    made_of = result(tmp_path, *flat, alone, short)
    found = convergence.bands(data.curves(made_of), Colours(made_of))
    assert [band.centre for band in found] == [pytest.approx(4)]
    assert set(found[0].low) == {1.0} and set(found[0].high) == {3.0}


def test_scores_of_pruned_trials_are_brought_to_the_last_rung(tmp_path):
    found = data.comparable_scores(
        result(
            tmp_path,
            trial(0, rungs={10: 0.6, 20: 0.4}),
            trial(1, rungs={10: 0.7, 20: 0.5}),
            trial(2, rungs={10: 0.8}, outcome="pruned"),
            trial(3, rungs={10: 0.1}, outcome="diverged"),
        )
    )
    assert found == pytest.approx({0: 0.4, 1: 0.5, 2: 0.6})


def test_the_surface_finds_the_valley(tmp_path):
    rng = np.random.default_rng(0)
    trials = []
    for number in range(40):
        lr_v, lr_q = 10 ** rng.uniform(-4, -2, 2)
        loss = 0.4 + 0.1 * (np.log10(lr_v) + 2.8) ** 2 + 0.02 * (np.log10(lr_q) + 3.5) ** 2
        trials.append(trial(number, lr_v=lr_v, ratio=lr_v / lr_q, rungs={20: loss}, score=loss))
    surface = rate_map.surface(result(tmp_path, *trials))
    assert surface is not None
    z = np.array(surface.z, dtype=float)  # None, where nothing is known, is nan
    row, _ = np.unravel_index(np.nanargmin(z), z.shape)
    assert np.log10(surface.y[row]) == pytest.approx(-2.8, abs=0.2)
    assert rate_map.surface(result(tmp_path, *trials[:4])) is None
    assert draw("rate_map", result(tmp_path, *trials[:4])) is not None


def test_importance_is_what_the_loss_was_made_of(tmp_path):
    found = {one.name: one for one in importance.importances(made.searched(tmp_path, 60)) or []}
    assert max(found, key=lambda name: found[name].total) == "lr_v"
    assert found["lr_v"].total > 0.6 > 0.4 > found["ratio"].total
    assert found["rank"].total < 0.1
    assert all(0 <= one.alone <= one.total <= 1 for one in found.values())
    assert importance.importances(made.searched(tmp_path, 4)) is None


def test_where_the_rule_wins_the_best_finalist_is_told_of(tmp_path):
    whole = made.searched(tmp_path)
    assert steps_to_target.headline(whole).startswith("λ=5 reaches the default's training loss in 0.")
    scores = whole.recipe.evidence.scores
    rule, best = (next(s for s in scores if s.label == label) for label in ("default", "finalist 1"))
    swapped = [
        s.model_copy(
            update={
                "gain": None if s is rule else s.gain or rule.gain,
                "validation_loss": 9.0 if s is rule else s.validation_loss,
            }
        )
        for s in scores
    ]
    evidence = whole.recipe.evidence.model_copy(update={"scores": swapped})
    recipe = whole.recipe.model_copy(update={"evidence": evidence, "candidate": rule.candidate})
    found = SearchResult(whole.folder, whole.study, whole.trials, whole.over_seeds, whole.phases, recipe)
    assert best.candidate.ratio == 5.0 and steps_to_target.headline(found).startswith(
        "λ=5 reaches the default's training loss"
    )
    assert "its own lr_v" not in steps_to_target.headline(found)


@pytest.mark.parametrize("ratios", [[1.0], [0.5, 32], [0.1, 100], [4, 8], [1.1, 1.3], [1e-3, 1e4]])
def test_ticks_of_the_ratio_enclose_it_and_are_few(ratios):
    ticks = steps_to_target.ratio_ticks(ratios)
    assert ticks[0] <= min(ratios) <= max(ratios) <= ticks[-1] and 1.0 in ticks
    assert len(ticks) <= 8 and len(set(f"{tick:.3g}" for tick in ticks)) == len(ticks)


def test_the_ladder_counts_what_was_spared(tmp_path):
    found = pruning_timeline.climbed(
        result(
            tmp_path,
            trial(0, [0.5] * 100, rungs={25: 0.6, 100: 0.5}, score=0.5, seconds=10),
            trial(1, [0.5] * 25, rungs={25: 0.7}, outcome="pruned", score=0.7, seconds=5),
            trial(2, [0.5] * 10, outcome="diverged", seconds=1),
            trial(3, [0.5] * 30, rungs={25: 0.6}, outcome="running", score=0.6),
        )
    )
    assert found is not None and found.length == 100 and found.rungs == [25]
    assert {climb.trial.number: climb.spared for climb in found.climbs} == {0: 0, 1: 75, 2: 90, 3: 0}
    assert found.spared_seconds == pytest.approx(75 * 0.2 + 90 * 0.1)
    assert [climb.spared_seconds for climb in found.climbs if climb.trial.number == 1] == [pytest.approx(15)]
    assert "2 of 4 trials ended early: 165 steps were trained and 165 spared (50%" in found.describe()


def test_one_standard_error_is_what_the_verdict_chose(tmp_path):
    best, small = Candidate(lr_v=1e-3, ratio=1, rank=16), Candidate(lr_v=1e-3, ratio=1, rank=4)
    worse = Candidate(lr_v=1e-4, ratio=1, rank=2)
    losses = {best: (0.50, 0.52, 0.54), small: (0.49, 0.53, 0.545), worse: (0.70, 0.72, 0.75)}
    repeats = [repeat("x", c, seed, [], loss) for c, group in losses.items() for seed, loss in enumerate(group, 1)]
    found = choice_effect.judged_candidates(result(tmp_path, trainings=repeats))
    assert [(one.candidate, one.as_good) for one in found] == [(best, True), (small, True), (worse, False)]
    difference = np.array(losses[small]) - np.array(losses[best])
    assert found[1].error == pytest.approx(difference.std(ddof=1) / np.sqrt(3))
    whole = made.searched(tmp_path)
    judged = choice_effect.judged_candidates(whole)
    chosen = next(one for one in judged if one.chosen)
    assert chosen.candidate == whole.recipe.candidate and chosen.as_good
    assert chosen.candidate.rank == min(one.candidate.rank for one in judged if one.as_good)


def test_parameters_are_those_of_the_adapters(tmp_path):
    candidate = Candidate(lr_v=1e-3, ratio=1, rank=8)
    assert choice_effect.parameters(result(tmp_path), candidate) is None
    (tmp_path / "machine.json").write_text(json.dumps({"per_rank": {"q": 100, "v": 60, "k": 60}}))
    assert choice_effect.parameters(result(tmp_path), candidate) == 8 * 160
    shown = draw("rank_effect", made.searched(tmp_path))
    assert "8<br>1,280" in shown.layout.xaxis.categoryarray


@pytest.mark.parametrize("targets", ["vo", "v", "q", "qk"])
def test_without_both_rates_the_ratio_is_not_shown(tmp_path, targets):
    one = made.searched(tmp_path, targets=targets)
    assert not data.ratio_matters(one)
    assert (
        draw("steps_to_target", one) is None
        and draw("rate_map", one) is None
        and steps_to_target.headline(one) is None
    )
    assert draw("rate_effect", one) is not None
    named = {one.name for one in importance.importances(one) or []}
    assert named == {"rate", "rank"}
    candidate = one.trials[5].candidate
    assert candidate.rate == (candidate.lr_q if set(targets) <= {"q", "k"} else candidate.lr_v)
    assert "λ ≈" not in draw("convergence", one).to_json()


def test_several_targets_are_a_dimension(tmp_path):
    study = Study(model="m", data="d", space={"targets": ["qv", "vo"]})
    both = [*made.searched(tmp_path, 20).trials, *made.searched(tmp_path, 20, targets="vo").trials]
    trials = [one.model_copy(update={"number": number}) for number, one in enumerate(both)]
    mixed = result(tmp_path, *trials, study=study)
    assert set(data.dimensions(mixed)) == {"lr_v", "ratio", "rank", "targets"}
    shown = draw("targets_effect", mixed)
    assert list(shown.layout.xaxis.categoryarray) == ["qv", "vo"]
    assert rate_map.surface(mixed).like.targets == "qv"  # of vo there is no ratio
    marks = draw("rate_map", mixed).select_traces({"type": "scatter", "mode": "markers"})
    assert sum(len(trace.x) for trace in marks) == 20


def test_whole_matrices_have_no_rank(tmp_path):
    study = Study(model="m", data="d", method={"kind": "full"})
    trials = [
        one.model_copy(update={"candidate": one.candidate.model_copy(update={"rank": 0, "kind": "full"})})
        for one in made.searched(tmp_path).trials
    ]
    full = result(tmp_path, *trials, study=study)
    assert draw("rank_effect", full) is None and set(data.dimensions(full)) == {"lr_v", "ratio"}
    assert "There is no rank: matrices are trained whole." in render(full)


def test_methods_are_a_dimension(tmp_path):
    study = Study(
        model="m", data="d", method={"kind": ["lora", "dora"]}, space={"loraplus_lr_ratio": {"low": 1, "high": 16}}
    )
    trials = [
        one.model_copy(
            update={
                "candidate": one.candidate.model_copy(update={"kind": kind, "loraplus_lr_ratio": 1.0 + number % 7})
            }
        )
        for number, one in enumerate(made.searched(tmp_path).trials)
        for kind in [("lora", "dora")[number % 2]]
    ]
    several = result(tmp_path, *trials, study=study)
    assert set(data.dimensions(several)) == {"lr_v", "ratio", "rank", "kind", "loraplus_lr_ratio"}
    assert {one.name for one in importance.importances(several)} == {
        "lr_v",
        "ratio",
        "rank",
        "kind",
        "loraplus_lr_ratio",
    }
    page = render(several)
    assert "Effect of the method" in page and "Effect of the ratio ρ" not in page  # a range has no columns


def test_a_space_of_choices(tmp_path):
    points = [(lr_v, ratio) for lr_v in (1e-4, 1e-3, 1e-2) for ratio in (1, 4, 16)]
    trials = [
        trial(n, [0.5] * 20, lr_v=lr_v, ratio=ratio, rungs={20: abs(np.log10(lr_v) + 3)}, score=0.5)
        for n, (lr_v, ratio) in enumerate(points)
    ]
    assert rate_map.surface(result(tmp_path, *trials)) is not None
    only = result(tmp_path, *(one for one in trials if one.candidate.ratio == 4))
    assert rate_map.surface(only) is None and draw("rate_map", only) is not None
    assert draw("importance", only) is None


def test_foresight_compares_ranks(tmp_path):
    same = [trial(n, rungs={10: n / 10, 20: n / 20, 40: -n / 10}, score=0.0) for n in range(6)]
    found = early_vs_late.foresights(result(tmp_path, *same))
    assert [(one.early, one.late, round(one.correlation, 6)) for one in found] == [
        ("step 10", "step 40", -1.0),
        ("step 20", "step 40", -1.0),
    ]
    assert early_vs_late.foresights(result(tmp_path, *same[:2]))[0].correlation is None
    # Those that went on to half of the full run tell more than other rungs of a trial.
    those = [trial(n, lr_v=1e-3 * (n + 1), rungs={10: n / 10}, score=n / 10) for n in range(6)]
    halves = [
        Record(stage="50%", label="promoted", candidate=one.candidate, seed=0, validation_loss=1 - one.score)
        for one in those
    ]
    (half,) = early_vs_late.foresights(dataclasses.replace(result(tmp_path, *those), trainings=halves))
    assert (half.early, half.late, half.correlation) == ("step 10", "50% of the full run", pytest.approx(-1.0))
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "metrics.json").write_text(json.dumps({"validation": {"loss": 0.123}}))
    assert "the full run reached a validation loss of 0.1230" in early_vs_late.headline(made.searched(tmp_path))


def test_memory_over_time(tmp_path):
    def row(at, slot=None, label=None, step=None, **fields):
        return {"time": float(at), "phase": "search", "slot": slot, "label": label, "step": step, **fields}

    gib = 2**30
    rows = [
        row(100, memory_bytes=2 * gib, peak_bytes=3 * gib),
        row(100, 0, "trial 0", 1, tokens=10, seconds=0.1, ended=False),
        row(100, 1, "trial 1", 1, tokens=10, seconds=0.1, ended=False),
        row(110, 0, "trial 0", 9, tokens=90, seconds=5.0, ended=True),
        row(110, 1, "trial 1", 9, tokens=95, seconds=5.0, ended=False),
        row(111, memory_bytes=4 * gib, peak_bytes=4 * gib),
        row(111, 0, "trial 2", 1, tokens=10, seconds=0.1, ended=False),
        row(112, 1, "trial 1", 12, tokens=120, seconds=6.0, ended=True),
        row(9_000, memory_bytes=gib, peak_bytes=4 * gib),  # another sitting
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), tmp_path / "resources.parquet")
    over_time, stays = memory.recorded(result(tmp_path))
    assert over_time.used == [2, 4, 1] and over_time.slots == [2, 2, 0] and over_time.per_slot == [1, 2, None]
    assert over_time.seconds == [0, 11, 12 + data.PAUSE]
    assert [(s.slot, s.label, s.start, s.end, s.tokens) for s in stays] == [
        (0, "trial 0", 0, 10, 90),
        (0, "trial 2", 11, 11, 10),
        (1, "trial 1", 0, 12, 120),
    ]
    assert draw("memory", result(tmp_path)) is not None
    (tmp_path / "resources.parquet").write_bytes(b"PAR1 broken")
    assert draw("memory", result(tmp_path)) is None


def test_long_curves_are_thinned(tmp_path):
    curve = data.Curve(trial(0), list(range(1, 3001)), [float(n) for n in range(3000)])
    thin = data.thinned(curve)
    assert len(thin.steps) <= data.MOST_POINTS and (thin.steps[0], thin.steps[-1]) == (1, 3000)
    assert all(loss == step - 1 for step, loss in zip(thin.steps, thin.losses, strict=True))


def test_energy_is_power_over_time(tmp_path):
    rows = [
        {"time": float(at), "phase": "search", "watts": watts} for at, watts in ((0, None), (10, 360), (20, None))
    ]
    rows.append({"time": 9_000.0, "phase": "search", "watts": 100.0})  # of a pause nothing is counted
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), tmp_path / "resources.parquet")
    found = cost.energy(result(tmp_path))
    assert found.watt_hours == pytest.approx(1.0) and found.share == pytest.approx(0.5)
    assert "1 Wh drawn in the 50% of the time" in cost.headline(made.searched(tmp_path))
    assert "energy could not be read" in cost.headline(made.searched(tmp_path / "none"))
