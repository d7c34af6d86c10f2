"""The replay bench: surfaces say what their tables say, and searches are judged and charged as they should be."""

from __future__ import annotations

import importlib
import itertools
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from autolr.candidate import Candidate

BENCHMARKS = Path(__file__).resolve().parents[2] / "studies" / "benchmarks"
MODULES = ("contract", "surfaces", "tables", "ledger", "strategies", "search", "repeats")
SOME = ("crossing/0", "crossing/101", "sweep/Qwen/Qwen3-8B", "heatmap/llama31-mnli")


@pytest.fixture(scope="module")
def bench():
    """Imports a file of the benchmarks as its script does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module
        for name in MODULES:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def tables(bench):
    return bench("tables")


@pytest.fixture(scope="module")
def strategies(bench):
    bench("search").set_up()
    return bench("strategies")


def candidates(surface, count: int = 200) -> list[Candidate]:
    rng = np.random.default_rng(0)
    bounds = surface.bounds
    return [
        Candidate(
            lr_v=float(np.exp(rng.uniform(*np.log(bounds.lr_v)))),
            ratio=float(np.exp(rng.uniform(*np.log(bounds.ratio)))),
            rank=int(rng.choice(bounds.ranks)),
        )
        for _ in range(count)
    ]


# Surfaces


def test_sweep_surfaces_lie_on_their_runs(tables):
    far = []
    for model, (points, losses) in tables.sweep_models().items():
        surface = tables.surface(f"sweep/{model}")
        inside = points[:, 0] < math.log(surface.bounds.lr_v[1]) + 0.01
        kept = inside & (losses < tables.SWEEP_DIVERGED * losses.min())
        far.append(np.abs(surface.final_at(points[kept]) / losses[kept] - 1))
        # Between the runs it does not dip far below the best of them.
        assert surface.best[1] > 0.995 * losses.min()
    assert len(far) > 25
    assert max(off.max() for off in far) < 0.02
    assert np.median([off.max() for off in far]) < 0.001


def test_nothing_depends_on_the_ratio_where_it_was_never_varied(tables):
    surface = tables.surface("sweep/Qwen/Qwen3-8B")
    assert surface.final(Candidate(lr_v=3e-4, ratio=1, rank=16)) == surface.final(
        Candidate(lr_v=3e-4, ratio=20, rank=16)
    )


def test_the_heat_map_lies_on_its_cells(tables):
    rates, errors, bounded = tables.read_heatmap()
    points = np.column_stack([rates[:, 0], rates[:, 0] - rates[:, 1], np.full(len(rates), math.log(16))])
    found = tables.surface("heatmap/llama31-mnli").final_at(points)
    assert np.abs(found / errors - 1)[~bounded].max() < 0.07
    assert (found[bounded] > 0.99 * errors[bounded]).all()


def measured_runs(count: int = 72, seeds: int = 2) -> list[dict]:
    """Runs as an oracle's file holds them; those of the last candidate have diverged."""
    rng = np.random.default_rng(0)
    runs = []
    grid = list(itertools.product([5e-4, 1e-3, 2e-3, 4e-3], [0.5, 2.0, 8.0], [4, 16], range(seeds)))
    for lr_v, ratio, rank, seed in grid[:count]:
        rungs = []
        for step in (24, 128, 479):
            loss = 0.4 + 0.02 * math.log(lr_v / 2e-3) ** 2 + 0.004 * math.log(ratio / 2) ** 2 + 2 / step
            for averaged in (False, True):
                seen = loss * math.exp(0.002 * rng.standard_normal()) + (0.0 if averaged or step == 479 else 0.05)
                rungs.append({"step": step, "averaged": averaged, "select_loss": seen, "confirm_loss": seen})
        runs.append({"lr_v": lr_v, "ratio": ratio, "rank": rank, "seed": seed, "rungs": rungs})
    for run in runs[-seeds:]:
        run["rungs"] = run["rungs"][:2]
    return runs


def test_an_oracle_lies_on_its_runs(tables):
    runs = measured_runs()
    surface = tables.Oracle("toy", runs, rule=2e-3)
    assert surface.about["runs"] == len(runs)
    assert surface.bounds.steps == 479
    assert surface.bounds.ranks == (4, 8, 16)
    assert surface.about["final_noise_pct"] == pytest.approx(0.2, abs=0.1)
    for run in runs[:20]:
        candidate = Candidate(lr_v=run["lr_v"], ratio=run["ratio"], rank=run["rank"])
        assert surface.final(candidate) == pytest.approx(run["rungs"][-2]["select_loss"], rel=0.02)
        point = np.log([run["lr_v"], run["ratio"], run["rank"]])
        at_128 = surface.curve_at(point, 128, 479, averaged=True)
        assert at_128 == pytest.approx(run["rungs"][3]["select_loss"], rel=0.02)
        assert surface.curve_at(point, 128, 479, averaged=False) > at_128 + 0.03
    # Nothing beats where the best of the runs lies without its luck, and rank 8, which nobody ran, is in between.
    places = [Candidate(lr_v=run["lr_v"], ratio=run["ratio"], rank=run["rank"]) for run in runs]
    assert surface.best[1] == pytest.approx(min(surface.final(place) for place in places), rel=1e-9)
    means = [(one["rungs"][-2]["select_loss"] + two["rungs"][-2]["select_loss"]) / 2 for one, two in by_seed(runs)]
    assert surface.best[1] == pytest.approx(min(means), rel=3e-3)
    between = [surface.final(Candidate(lr_v=1e-3, ratio=2.0, rank=rank)) for rank in (4, 8, 16)]
    assert min(between) - 1e-3 < between[1] < max(between) + 1e-3


def test_what_a_seed_does_to_all_candidates_is_no_noise(tables):
    runs = measured_runs()
    surface = tables.Oracle("toy", runs, rule=2e-3)
    for run in runs:
        for rung in run["rungs"] if run["seed"] else ():
            rung["select_loss"] = rung["confirm_loss"] = 1.03 * rung["select_loss"]
    shifted = tables.Oracle("toy", runs, rule=2e-3)
    assert shifted.about["final_noise_pct"] == pytest.approx(surface.about["final_noise_pct"], abs=0.02)
    points = np.log([[run["lr_v"], run["ratio"], run["rank"]] for run in runs[:20]])
    assert shifted.final_at(points) == pytest.approx(surface.final_at(points), rel=1e-3)
    # Of one seed nothing tells luck from the surface.
    alone = tables.Oracle("toy", [run for run in runs if run["seed"] == 0], rule=2e-3)
    assert alone.noises[479, False] == alone.fits[479, False].noise


def by_seed(runs: list[dict]) -> list[tuple[dict, dict]]:
    """Pair the two seeds of each candidate that did not diverge."""
    return [(one, two) for one, two in zip(runs[::2], runs[1::2], strict=True) if len(two["rungs"]) == 6]


def test_an_oracle_of_few_runs_is_left_out_and_named(tables, monkeypatch, tmp_path):
    (tmp_path / "oracle").mkdir()
    runs = [json.dumps(run) for run in measured_runs(5)]
    (tmp_path / "oracle" / "toy.jsonl").write_text("\n".join(runs) + '\n{"cut')
    (tmp_path / "data").symlink_to(BENCHMARKS.parent / "data")
    monkeypatch.setattr(tables, "STUDIES", tmp_path)
    names, notes = tables.names("all")
    assert not any(name.startswith("oracle/") for name in names)
    assert notes == ["oracle/toy is left out: 5 runs are measured, 30 are needed"]


@pytest.mark.parametrize("name", SOME)
def test_nothing_is_below_the_best(tables, name):
    surface = tables.surface(name)
    best, lowest = surface.best
    assert surface.final(best) == pytest.approx(lowest)
    assert min(surface.final(candidate) for candidate in candidates(surface)) >= lowest
    assert surface.excess(best) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("number", range(6))
def test_crossing_surfaces_cross(bench, number):
    surfaces = bench("surfaces")
    surface = surfaces.crossing(number)
    fast, slow = surfaces.crossing_pair(surface)
    steps = surface.bounds.steps
    assert surface.final(fast) < surface.final(slow)
    for rung in bench("strategies").full_rungs(steps)[:-1]:
        raw = [surface.curve_at(surfaces.encode(one), rung, steps, averaged=False) for one in (fast, slow)]
        assert raw[0] > raw[1]


def test_at_its_end_a_full_run_is_what_final_says(tables):
    surface = tables.surface("crossing/0")
    candidate = surface.bounds.rule_candidate
    seen = [surface.loss(candidate, surface.bounds.steps, seed) for seed in range(400)]
    assert np.mean(seen) == pytest.approx(surface.final(candidate), rel=5e-4)
    assert np.std(seen) / np.mean(seen) == pytest.approx(0.0015, rel=0.2)
    assert seen[0] == surface.loss(candidate, surface.bounds.steps, 0)


def test_short_runs_want_higher_rates(tables):
    surface = tables.surface("crossing/1")
    best, length = surface.best[0], 96
    carried = best.model_copy(update={"lr_v": best.lr_v * (surface.bounds.steps / length) ** surface.own_shift})
    seen = [np.mean([surface.short_loss(one, length, seed) for seed in range(100)]) for one in (best, carried)]
    assert seen[1] < seen[0]


def test_parts_are_fixed_and_apart(tables):
    design, held_back = (tables.names(part)[0] for part in ("design", "held_back"))
    assert not set(design) & set(held_back)
    assert set(design + held_back) == set(tables.names("all")[0])
    assert len([name for name in held_back if name.startswith("sweep/")]) >= 9
    assert "heatmap/llama31-mnli" in held_back


# The account of a search


def test_a_curve_by_hand(bench, monkeypatch):
    ledger = bench("ledger")
    excesses = {1: 2.0, 2: 0.2, 3: 0.9, 4: 0.25}
    surface = ToySurface(excesses)
    account = ledger.Ledger(budget=10.0)
    for cost, ratio in ((1.0, 1), (1.0, 2), (2.0, 3), (1.0, 3), (1.0, 4)):
        assert account.spend(cost)
        account.recommend(Candidate(lr_v=1e-3, ratio=ratio, rank=8))
    assert not account.spend(4.5)
    assert account.spent == 6.0
    assert len(account.incumbents) == 4
    curve = ledger.Curve.of(account, surface)
    assert [curve.at(tokens) for tokens in (0.5, 1, 1.9, 2, 4, 5.9, 6, 10)] == [5, 2, 2, 0.2, 0.9, 0.9, 0.25, 0.25]
    # Within 1 % from the second moment on; it left 0.3 % again, and came back at the sixth.
    assert curve.tokens_to(1.0) == 2.0
    assert curve.tokens_to(0.3) == 6.0
    assert curve.tokens_to(0.1) == math.inf
    assert curve.area(10.0) == pytest.approx((5 + 2 + 2 * 0.2 + 2 * 0.9 + 4 * 0.25) / 10)
    assert curve.area(3.0) == pytest.approx((5 + 2 + 0.2) / 3)


def test_the_best_that_was_pruned(bench):
    ledger = bench("ledger")
    surface = ToySurface({1: 2.0, 2: 0.2, 3: 0.9})
    one, two, three = (Candidate(lr_v=1e-3, ratio=ratio, rank=8) for ratio in (1, 2, 3))
    account = ledger.Ledger(1.0, tried=[(one, False), (two, True), (three, False)])
    was_pruned, cost = ledger.pruned_best(account, surface)
    assert was_pruned
    assert cost == pytest.approx(100 * (1.009 / 1.002 - 1))
    account.tried[1] = (two, False)
    assert ledger.pruned_best(account, surface) == (False, 0.0)
    assert ledger.pruned_best(ledger.Ledger(1.0), surface) is None


class ToySurface:
    """Excess by ratio, in percent; the rule's is 5."""

    def __init__(self, excesses: dict[int, float]) -> None:
        self.excesses = {**excesses, 99: 5.0}
        self.bounds = self
        self.rule_candidate = Candidate(lr_v=1e-3, ratio=99, rank=8)

    def excess(self, candidate: Candidate) -> float:
        return self.excesses[int(candidate.ratio)]

    def final(self, candidate: Candidate) -> float:
        return 1 + self.excess(candidate) / 100


# Searches

BUDGET = 3.0
STRATEGIES = ["rule", "grid", "random", "asha", "tpe_asha", "tpe_median", "tpe_hyperband", "gp"]
STRATEGIES += ["own_decay_tpe", "rung_tpe", "halving_curves", "ours"]


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_search_spends_no_more_than_its_budget(strategies, tables, name):
    surface = tables.surface("crossing/0")
    account = strategies.STRATEGIES[name](surface, BUDGET, 1)
    assert 0 < account.spent <= BUDGET + 1e-9
    moments = [moment for moment, _ in account.incumbents]
    assert moments
    assert moments == sorted(moments)
    assert moments[-1] <= account.spent
    # What was tried was paid for: a trial that was not pruned took at least a fifth of a full run.
    assert sum(not pruned for _, pruned in account.tried) <= BUDGET / 0.19
    again = strategies.STRATEGIES[name](surface, BUDGET, 1)
    assert again.incumbents == account.incumbents


def test_all_strategies_are_tested_and_begin_with_the_rule(strategies, tables):
    assert set(strategies.STRATEGIES) == set(STRATEGIES)
    surface = tables.surface("crossing/0")
    for name in strategies.STOCK:
        assert strategies.STRATEGIES[name](surface, 1.0, 0).tried[0][0] == surface.bounds.rule_candidate


def test_a_search_without_time_for_a_full_run_has_nothing_from_the_grid(strategies, tables):
    account = strategies.grid(tables.surface("crossing/0"), 0.9, 0)
    assert account.spent == 0
    assert not account.incumbents


def test_the_grid_is_the_papers(strategies, tables):
    account = strategies.grid(tables.surface("crossing/0"), 36.0, 0)
    assert account.spent == 36
    tried = [candidate for candidate, _ in account.tried]
    assert len({round(math.log(candidate.lr_v), 6) for candidate in tried}) == 6
    assert len({round(math.log(candidate.lr_q), 6) for candidate in tried}) == 6


def test_the_slots_report_before_any_is_judged(strategies, tables, monkeypatch):
    pruner = strategies.RungPruner
    reported = []

    class Watching(pruner):
        def prune(self, study, trial):
            reported.append(sum(trial.last_step in t.intermediate_values for t in study.get_trials(deepcopy=False)))
            return super().prune(study, trial)

    monkeypatch.setattr(strategies, "RungPruner", Watching)
    strategies.STRATEGIES["rung_tpe"](tables.surface("crossing/0"), 1.0, 0)
    assert reported[: strategies.SLOTS] == [strategies.SLOTS] * strategies.SLOTS


def test_the_finals_are_paid_for_and_end_no_worse_than_the_rule(strategies, tables):
    surface = tables.surface("crossing/1")
    steps, rule = surface.bounds.steps, surface.bounds.rule_candidate
    ledger = strategies.STRATEGIES["ours"](surface, 5.0, 3)
    # Up to six go on with their trials to half, two of them and the rule to the end; each pays for what is left.
    part = strategies.trial_length(steps) / steps
    finals = 6 * (0.5 - part) + 2 * 0.5 + (1 - part)
    through = sum(not pruned for candidate, pruned in ledger.tried if candidate != rule)
    assert through > 2 and 5.0 - part - max(0, 6 - through) * (0.5 - part) < ledger.spent <= 5.0
    searched = [moment for moment, _ in ledger.incumbents if moment <= 5.0 - finals + 1e-9]
    assert searched and len(ledger.incumbents) - len(searched) <= 1
    final = ledger.incumbents[-1][1]
    assert surface.loss(final, steps, 3) <= surface.loss(rule, steps, 3)


@pytest.mark.parametrize("order", itertools.permutations([0.5, 0.1, 0.9, 0.3]))
def test_halving_judges_trials_that_report_together_alike_in_any_order(strategies, order):
    study = strategies.optuna.create_study(pruner=strategies.RungPruner((10,)))
    trials = [study.ask() for _ in order]
    for trial, score in zip(trials, order, strict=True):
        trial.report(score, 10)
    assert {score for trial, score in zip(trials, order, strict=True) if trial.should_prune()} == {0.5, 0.9}


# The document


def test_the_benchmark_keeps_the_contract(bench, capsys, monkeypatch, tmp_path):
    search = bench("search")
    words = "search.py --quick --part design --surfaces crossing/2 --only rule,random,ours --processes 1 --out"
    monkeypatch.setattr(sys, "argv", [*words.split(), str(tmp_path)])
    search.main()
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(last) == {"name", "figures", "settings", "environment"}
    assert last["name"] == "search"
    assert {"excess_pct", "gain_over_rule_pct", "pruned_best_rate", "random.area"} <= set(last["figures"])
    assert last["settings"]["surfaces"] == ["crossing/2"]
    (file,) = tmp_path.glob("search-*.json")
    document = json.loads(file.read_text())
    assert {row["kind"] for row in document["rows"]} == {"surface", "search", "strategy"}


def test_a_median_of_censored_values_is_censored(bench):
    search = bench("search")
    assert search.middle([1.0, 2.0, math.inf]) == 2.0
    assert search.middle([1.0, math.inf]) == math.inf
    assert search.middle([1.0, 3.0, math.inf, math.inf]) == math.inf


def test_ratios_are_absent_or_bounds_where_nothing_was_reached(bench):
    search, plan = bench("search"), bench("search").Plan(budget=16.0)
    ours = {"tokens_to_0.3pct": 2.0}
    found = search.figures({"gp": {"area": 1.0}, "ours": ours}, plan)
    assert found["tokens_vs_best_optuna"] == 2.0 / 16
    assert found["tokens_vs_grid"] == 2.0 / 36
    assert search.figures({"gp": {"tokens_to_0.3pct": 4.0}, "ours": ours}, plan)["tokens_vs_best_optuna"] == 0.5
    assert "tokens_vs_best_optuna" not in search.figures({"gp": {"tokens_to_0.3pct": 4.0}, "ours": {}}, plan)


# The real search, repeated


def test_recipes_of_real_searches_are_judged_by_the_oracle(bench, monkeypatch, small_study, tmp_path, capsys):
    repeats, tables = bench("repeats"), bench("tables")
    monkeypatch.setattr(repeats, "STUDY", tmp_path / "study.yaml")
    small_study.model_copy(update={"baselines": ["default"]}).save(repeats.STUDY)
    monkeypatch.setattr(tables, "oracle", lambda name: tables.crossing(0))
    words = ["repeats.py", "--searches", "2", "--device", "cpu", "--out", str(tmp_path / "results")]
    words += ["--runs", str(tmp_path / "runs")]
    monkeypatch.setattr(sys, "argv", words)
    repeats.main()
    (file,) = (tmp_path / "results").glob("repeats-*.json")
    result = json.loads(file.read_text())
    searches, finals, (rule,) = ([r for r in result["rows"] if r["kind"] == k] for k in ("search", "final", "rule"))
    surface = tables.crossing(0)
    for row in searches:
        found = Candidate(lr_v=row["lr_v"], ratio=row["ratio"], rank=row["rank"])
        assert row["excess_pct"] == pytest.approx(surface.excess(found), rel=0.02, abs=0.05)
    assert len(searches) == 2 and searches[0]["lr_v"] != searches[1]["lr_v"]  # another seed, another search
    for number, row in enumerate(searches, 1):
        own = {(one["lr_v"], one["rank"]): one for one in finals if one["seed"] == number}
        assert len(own) in (2, 3) and {one["label"] for one in own.values()} >= {"finalist 1"}
        winner = min(own.values(), key=lambda one: abs(one["lr_v"] / row["lr_v"] - 1))
        assert winner["lr_v"] == pytest.approx(row["lr_v"], rel=1e-3) and winner["excess_pct"] == row["excess_pct"]
        assert all(0 < one["select_loss"] < one["trial_loss"] * 1.2 for one in own.values())
    assert rule["excess_pct"] == pytest.approx(surface.excess(surface.bounds.rule_candidate), abs=1e-3)
    assert result["figures"]["worst_excess_pct"] >= result["figures"]["median_excess_pct"]
