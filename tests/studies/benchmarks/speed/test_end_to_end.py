"""The end-to-end benchmark compares both sides, and resumes."""

from __future__ import annotations

import json

import torch

from autolr.schema.study import StageSetting
from studies.benchmarks.common import document
from studies.benchmarks.speed import end_to_end

CPU = torch.device("cpu")


def trial(end_to_end, number, seconds, validation, test):
    outcome = "pruned" if test is None else "finished"
    return end_to_end.PeerTrial(number, outcome, seconds, 1e-3, 8, validation, test, None)


def test_the_peer_has_reached_our_loss_when_its_choice_has():
    trials = [
        trial(end_to_end, 0, 10, 0.50, 0.60),
        trial(end_to_end, 1, 5, 0.40, None),  # pruned: it is not chosen
        trial(end_to_end, 2, 10, 0.55, 0.40),  # good on test, but not chosen on validation
        trial(end_to_end, 3, 10, 0.45, 0.41),
    ]
    assert end_to_end.best_of(trials).number == 3
    assert end_to_end.reached(trials, 1.0, 0.42) == 36
    assert end_to_end.reached(trials, 1.0, 0.39) is None


def test_half_a_comparison_has_no_ratio():
    main, small = ({"seconds": seconds, "test_loss": loss} for seconds, loss in ((10.0, 0.4), (5.0, 0.45)))
    trials = [trial(end_to_end, 0, 30, 0.5, 0.46)]
    whole = {"cpu_confirm_loss_main", "cpu_confirm_loss_ours", "cpu_confirm_loss_hf"}
    whole |= {"cpu_time_vs_hf", "cpu_time_vs_hf_main"}
    for given, held, names in (
        ([main], [], {"cpu_confirm_loss_main"}),
        ([], trials, {"cpu_confirm_loss_hf"}),
        ([main], trials, {"cpu_confirm_loss_main", "cpu_confirm_loss_hf"}),
        ([main, small], trials, whole),
    ):
        result = document.Result("end_to_end")
        complete = end_to_end.compare(result, "cpu", given, held, 0.0, 1)
        assert set(result.figures) == names
        assert complete == (len(given) == 2 and bool(held))
    assert result.figures["cpu_time_vs_hf"] == 6
    assert result.figures["cpu_time_vs_hf_main"] == 3
    assert result.rows[-1]["reached_ours"] is False


def test_a_search_that_is_not_as_good_is_not_compared():
    main, small = ({"seconds": seconds, "test_loss": loss} for seconds, loss in ((10.0, 0.4), (5.0, 0.45)))
    for best, expected in ((0.44, 3.0), (0.39, None)):
        result = document.Result("end_to_end")
        held = [trial(end_to_end, 0, 30, 0.5, best)]
        assert end_to_end.compare(result, "cpu", [main, small], held, 0.0, 1)
        assert result.figures.get("cpu_time_vs_hf") == expected


def test_end_to_end_measures_both_sides_and_goes_on_where_it_stopped(small_study, tmp_path):
    update = {"horizon": small_study.training.horizon.model_copy(update={"steps": 12})}
    study = small_study.model_copy(
        update={
            "training": small_study.training.model_copy(update=update),
            "search": small_study.search.model_copy(update={"stages": [StageSetting(to=8)], "rungs": [4]}),
            "baselines": ["default"],
            "budget": small_study.budget.model_copy(update={"trials": 2}),
        }
    )
    both = ("ours", "peer")
    _, complete = end_to_end.measure(study, CPU, tmp_path, sides=("peer",), peer_trials=1, tuning_steps=2)
    assert not complete
    stopped = end_to_end.Peer(study, CPU, tmp_path, 2, {})
    stopped._study().ask()  # a trial that was running when the script was killed
    result, complete = end_to_end.measure(study, CPU, tmp_path, sides=both, peer_trials=2, tuning_steps=2)
    assert complete
    assert {"cpu_time_vs_hf_main", "cpu_confirm_loss_main", "cpu_confirm_loss_hf"} <= set(result.figures)
    trials = [row for row in result.rows if row["kind"] == "hf trial"]
    assert [row["number"] for row in trials] == [0, 2]
    assert trials[0]["rate"] != trials[1]["rate"]
    again, _ = end_to_end.measure(study, CPU, tmp_path, sides=both, peer_trials=2, tuning_steps=2)
    assert again.figures == result.figures
    json.dumps(result.settings)


def test_the_quick_study_is_a_study():
    study = end_to_end.Study.load(end_to_end.SENTIMENT, end_to_end.QUICK)
    assert study.budget.trials == 2 and study.training.horizon.steps
