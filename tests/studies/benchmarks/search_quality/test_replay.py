"""Replayed searches keep their budget and begin with the rule; the document holds what they reach."""

from __future__ import annotations

import itertools
import json
import math
import sys

import pytest

from studies.benchmarks.search_quality import fitted_surfaces, replay, strategies

BUDGET = 3.0
STRATEGIES = ["rule", "grid", "random", "asha", "tpe_asha", "tpe_median", "tpe_hyperband", "gp"]
STRATEGIES += ["own_decay_tpe", "rung_tpe", "halving_curves", "ours"]


@pytest.fixture(scope="module", autouse=True)
def set_up():
    replay.set_up()


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_search_spends_no_more_than_its_budget(name):
    surface = fitted_surfaces.surface("crossing/0")
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


def test_all_strategies_are_tested_and_begin_with_the_rule():
    assert set(strategies.STRATEGIES) == set(STRATEGIES)
    surface = fitted_surfaces.surface("crossing/0")
    for name in strategies.STOCK:
        assert strategies.STRATEGIES[name](surface, 1.0, 0).tried[0][0] == surface.bounds.rule_candidate


def test_a_search_without_time_for_a_full_run_has_nothing_from_the_grid():
    account = strategies.grid(fitted_surfaces.surface("crossing/0"), 0.9, 0)
    assert account.spent == 0
    assert not account.incumbents


def test_the_grid_is_the_papers():
    account = strategies.grid(fitted_surfaces.surface("crossing/0"), 36.0, 0)
    assert account.spent == 36
    tried = [candidate for candidate, _ in account.tried]
    assert len({round(math.log(candidate.lr_v), 6) for candidate in tried}) == 6
    assert len({round(math.log(candidate.lr_q), 6) for candidate in tried}) == 6


def test_the_slots_report_before_any_is_judged(monkeypatch):
    pruner = strategies.RungPruner
    reported = []

    class Watching(pruner):
        def prune(self, study, trial):
            reported.append(sum(trial.last_step in t.intermediate_values for t in study.get_trials(deepcopy=False)))
            return super().prune(study, trial)

    monkeypatch.setattr(strategies, "RungPruner", Watching)
    strategies.STRATEGIES["rung_tpe"](fitted_surfaces.surface("crossing/0"), 1.0, 0)
    assert reported[: strategies.SLOTS] == [strategies.SLOTS] * strategies.SLOTS


def test_the_finals_are_paid_for_and_end_no_worse_than_the_rule():
    surface = fitted_surfaces.surface("crossing/1")
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
def test_halving_judges_trials_that_report_together_alike_in_any_order(order):
    study = strategies.optuna.create_study(pruner=strategies.RungPruner((10,)))
    trials = [study.ask() for _ in order]
    for trial, score in zip(trials, order, strict=True):
        trial.report(score, 10)
    assert {score for trial, score in zip(trials, order, strict=True) if trial.should_prune()} == {0.5, 0.9}


# The document


def test_the_benchmark_keeps_the_contract(capsys, monkeypatch, tmp_path):
    words = "search.py --quick --part design --surfaces crossing/2 --only rule,random,ours --processes 1 --out"
    monkeypatch.setattr(sys, "argv", [*words.split(), str(tmp_path)])
    replay.main()
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(last) == {"name", "figures", "settings", "environment"}
    assert last["name"] == "search"
    assert {"excess_pct", "gain_over_rule_pct", "pruned_best_rate", "random.area"} <= set(last["figures"])
    assert last["settings"]["surfaces"] == ["crossing/2"]
    (file,) = tmp_path.glob("search-*.json")
    document = json.loads(file.read_text())
    assert {row["kind"] for row in document["rows"]} == {"surface", "search", "strategy"}


def test_a_median_of_censored_values_is_censored():
    assert replay.middle([1.0, 2.0, math.inf]) == 2.0
    assert replay.middle([1.0, math.inf]) == math.inf
    assert replay.middle([1.0, 3.0, math.inf, math.inf]) == math.inf


def test_ratios_are_absent_or_bounds_where_nothing_was_reached():
    plan = replay.Plan(budget=16.0)
    ours = {"tokens_to_0.3pct": 2.0}
    found = replay.figures({"gp": {"area": 1.0}, "ours": ours}, plan)
    assert found["tokens_vs_best_optuna"] == 2.0 / 16
    assert found["tokens_vs_grid"] == 2.0 / 36
    assert replay.figures({"gp": {"tokens_to_0.3pct": 4.0}, "ours": ours}, plan)["tokens_vs_best_optuna"] == 0.5
    assert "tokens_vs_best_optuna" not in replay.figures({"gp": {"tokens_to_0.3pct": 4.0}, "ours": {}}, plan)
