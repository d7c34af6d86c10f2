"""A search around a function: its trials, what interrupts it, and what it concludes."""

from __future__ import annotations

import math

import numpy as np
import pytest

import autolr
from autolr.cli.live import PlainWatcher
from autolr.errors import DataError, DocumentError, RunError
from autolr.report.page import write_report
from autolr.rundir.result import SearchResult

BEST_V, BEST_RATIO = 3e-3, 8.0


def loss_of(candidate, step: int, seed: int) -> float:
    """Losses that fall with the steps; best at a known rate and ratio."""
    away = math.log(candidate.lr_v / BEST_V) ** 2 + 0.5 * math.log(candidate.ratio / BEST_RATIO) ** 2
    return 0.3 + 0.1 * away + 1.0 / step + 1e-3 * math.sin(seed * 7.0 + step)


class Training:
    """A training function that remembers its calls."""

    __qualname__ = "mine"

    def __init__(self, examples: int | None = 20, fail_at: int | None = None) -> None:
        self.calls: list[tuple[float, int, int]] = []
        self.examples = examples
        self.fail_at = fail_at

    def __call__(self, candidate, report):
        step = 0
        while not report.should_stop():
            step += 5
            report(step, loss_of(candidate, step, report.seed))
            if self.fail_at == len(self.calls):
                raise ZeroDivisionError("out of luck")
        self.calls.append((candidate.lr_v, report.seed, step))
        if self.examples is None or not report.is_tested:
            return None
        noise = np.random.default_rng(0).normal(0, 0.05, self.examples)  # the examples', the same for all
        return (loss_of(candidate, step, report.seed) + noise).tolist()


OPTIONS = {"lr": 1e-3, "steps": 40, "trials": 12, "space": {"ratio": {"low": 0.5, "high": 32}, "rank": 8}}


def test_finds_what_is_best_and_says_so(in_folder):
    training = Training()
    result = autolr.tune(training, out="run", **OPTIONS)
    recipe = result.recipe
    assert recipe is not None and recipe.evidence is not None
    assert 1 / 2.5 < recipe.candidate.lr_v / BEST_V < 2.5 and recipe.candidate.ratio > 2
    assert recipe.evidence.verdict.count("is significantly better than the default") == 1
    assert recipe.rates.v == pytest.approx(recipe.rates.q * recipe.candidate.ratio)
    assert len(result.ended()) == 12 and {t.outcome for t in result.ended()} <= {"finished", "pruned"}
    stopped = [trial for trial in result.ended() if trial.outcome == "pruned"]
    assert all(max(trial.rungs) == 8 and len(trial.curve) == 2 for trial in stopped)  # steps 5 and 10
    seeds = {seed for _, seed, _ in training.calls}
    assert seeds == {0, 1, 2, 3}
    labels = {label for record in result.over_seeds for label in record.label.split(" + ")}
    assert labels == {"finalist 1", "finalist 2", "default", "same_lr"}
    assert result.over_seeds[0].test_loss == pytest.approx(np.mean(result.over_seeds[0].losses), abs=1e-5)
    page = write_report(result).read_text(encoding="utf-8")
    assert "is significantly better than the default" in page
    assert autolr.Recipe.load("run").candidate == recipe.candidate


def test_goes_on_where_it_stopped(in_folder):
    broken = Training(fail_at=5)
    with pytest.raises(ZeroDivisionError):
        autolr.tune(broken, out="run", **OPTIONS)
    begun = SearchResult.load("run")
    assert len(begun.ended()) == 5 and begun.recipe is None
    whole = Training()
    resumed = autolr.tune(whole, out="run", **OPTIONS)
    at_once = autolr.tune(Training(), out="other", **OPTIONS)
    first = [[trial.candidate for trial in one.ended()[:5]] for one in (begun, resumed, at_once)]
    assert first[0] == first[1] == first[2] and len(resumed.ended()) == 12
    # What was cut short is trained again, and it is the same trial.
    cut_short = next(trial for trial in begun.trials if trial.outcome == "running")
    assert resumed.trials[cut_short.number].candidate == cut_short.candidate
    assert {trial.outcome for trial in resumed.trials} <= {"finished", "pruned"}
    assert resumed.recipe.evidence.verdict.startswith("λ=")
    again = Training()
    autolr.tune(again, out="run", **OPTIONS)
    assert again.calls == []
    more = autolr.tune(again, out="run", **{**OPTIONS, "trials": 13})
    assert len(more.ended()) == 13


def test_one_number_or_none_judges_over_seeds_alone(in_folder):
    one = autolr.tune(
        lambda c, r: Training(1)(c, r)[0] if r.is_tested else Training(None)(c, r), out="one", **OPTIONS
    )
    none = autolr.tune(Training(None), out="none", **OPTIONS)
    for result in (one, none):
        rule = next(s for s in result.recipe.evidence.scores if "default" in s.label.split(" + "))
        assert rule.gain.low <= rule.gain.mean <= rule.gain.high and math.isfinite(rule.gain.low)
    assert "returned none of other examples" in none.recipe.evidence.verdict
    assert "returned none of other examples" not in one.recipe.evidence.verdict


def test_divergence_counts_and_is_not_the_end(in_folder):
    def fragile(candidate, report):
        for step in range(5, 45, 5):
            report(step, math.nan if candidate.lr_v > 5e-3 else loss_of(candidate, step, report.seed))
            if report.should_stop():
                return None
        return None

    space = {**OPTIONS["space"], "lr_v": [1e-3, 8e-3], "ratio": [1, 4]}
    result = autolr.tune(fragile, out="run", **{**OPTIONS, "space": space, "trials": 4})
    outcomes = {trial.candidate.lr_v: trial.outcome for trial in result.ended()}
    assert outcomes == {1e-3: "finished", 8e-3: "diverged"}
    assert len(result.ended()) == 4  # all points of the space
    assert result.recipe.candidate.lr_v == 1e-3


def test_a_longer_full_run_and_rates(in_folder):
    seen = {}

    def train(candidate, report):
        seen.update(steps=report.steps, horizon=report.horizon, rates=report.rates)
        report(report.steps, 1.0)

    more = {"training": {"horizon": {"steps": 160}, "batch_size": 32}, "task": "sft", "model": "a/model"}
    result = autolr.tune(train, lr=1e-3, steps=40, trials=1, out="run", **more)
    assert (seen["steps"], seen["horizon"]) == (40, 160)
    assert result.recipe.steps == 160 and result.recipe.training.batch_size == 32
    assert result.recipe.model == "a/model" and set(seen["rates"].trained()) == {"q", "v"}


def test_stages_after_the_trials_train_from_the_start_and_choose_the_winner(in_folder):
    training = Training()
    longer = {"training": {"horizon": {"steps": 160}}}
    result = autolr.tune(training, out="run", **OPTIONS, **longer)
    assert [phase.phase for phase in result.phases] == ["trials", "100%", "seeds"]
    finals = result.ladder["100%"]
    labels = {label for one in finals for label in one.label.split(" + ")}
    assert labels == {"finalist 1", "finalist 2", "default"} and {one.steps for one in finals} == {160}
    assert all(len(one.curve) == 32 and one.losses for one in finals)  # a report every 5 steps, from the first on
    assert {(one.seed, one.steps) for one in result.over_seeds} == {(1, 40), (2, 40), (3, 40)}
    best = min(finals, key=lambda one: one.validation_loss)
    assert result.recipe.candidate == best.candidate
    assert (
        "These differences were measured after 40 of 160 steps. Trained to the end" in result.recipe.evidence.verdict
    )
    steps = sum(max(trial.rungs) for trial in result.trials) + 160 * len(finals) + 40 * len(result.over_seeds)
    assert result.recipe.evidence.cost.full_run_equivalents == pytest.approx(steps / 160, abs=0.01)
    calls = len(training.calls)
    autolr.tune(training, out="run", **OPTIONS, **longer)
    assert len(training.calls) == calls
    table = {"stages": [{"to": 40}, {"to": 80, "promote": 4}, {"to": 1.0, "promote": 2}]}
    more = autolr.tune(Training(), out="more", **OPTIONS, **longer, search=table)
    assert {name: len(stage) for name, stage in more.ladder.items()} == {"step 80": 4, "100%": 3}
    assert not any(one.losses for one in more.ladder["step 80"])


def test_what_is_wrong_is_said(in_folder, capsys):
    with pytest.raises(RunError, match="returned after step 5 of 40, though it was not to stop"):
        autolr.tune(lambda c, report: report(5, 1.0), out="short", **OPTIONS)
    with pytest.raises(ValueError, match=r"report\(41, ...\): steps rise, after 0 up to 40"):
        autolr.tune(lambda c, report: report(41, 1.0), out="long", **OPTIONS)
    with pytest.raises(DocumentError, match="unknown key"):
        autolr.tune(Training(), out="wrong", **OPTIONS, search={"lenght": 3})
    with pytest.raises(RunError, match="reads its data itself; leave it out"):
        autolr.tune(Training(), out="wrong", **OPTIONS, data="rows.csv")
    with pytest.raises(RunError, match="must be steps, no fewer"):
        autolr.tune(Training(), out="wrong", **OPTIONS, training={"horizon": {"steps": 10}})
    sizes = iter(range(1, 99))
    with pytest.raises(RunError, match="returned 2 losses, and 1 before"):
        autolr.tune(
            lambda c, r: (r(40, 1.0), [0.0] * next(sizes))[1] if r.is_tested else r(40, 1.0), out="s", **OPTIONS
        )
    with pytest.raises(TypeError, match="not str"):
        autolr.tune(lambda c, r: (r(40, 1.0), "good")[1], out="t", **OPTIONS)
    autolr.tune(Training(), out="run", callback=PlainWatcher(), **OPTIONS)
    assert "trials: 12 to do" in capsys.readouterr().out
    study = SearchResult.load("run").study
    with pytest.raises(DataError, match="only autolr.tune searches it"):
        autolr.search(study, "elsewhere")
    with pytest.raises(DataError, match="autolr.with_rates"):
        autolr.train(autolr.Recipe.load("run"), "full-run")
