"""Semifinals: the best of the trials go on to half of the full run, and the best of them are the finalists."""

from __future__ import annotations

import pytest
import torch

from autolr.data.batches import joined
from autolr.search.confirm import best_of
from autolr.search.folder import RunFolder
from autolr.search.held_out import judges
from autolr.search.result import SearchResult
from autolr.search.run import search
from autolr.search.setting import read_setting

HALF = 16  # of 24 steps, in whole cycles of batches


@pytest.fixture(scope="module")
def setting(small_study):
    return read_setting(small_study, torch.device("cpu"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, small_study) -> SearchResult:
    return search(small_study, tmp_path_factory.mktemp("search") / "run", device="cpu")


def test_the_best_of_the_trials_that_finished_are_in_them(finished, setting):
    rule = setting.space.rule("rule")
    through = {trial.candidate for trial in finished.trials if trial.outcome == "finished"}
    wanted = [one for one in best_of(finished.trials, 9, setting.space, rule) if one in through][:6]
    assert len(wanted) > 2 and rule not in wanted
    assert [one.candidate for one in sorted(finished.semifinals, key=lambda one: one.label)] == wanted
    assert [phase.phase for phase in finished.phases] == ["search", "semifinals", "finals", "confirmation"]


def test_the_best_of_them_are_the_finalists(finished):
    ranked = [one.candidate for one in sorted(finished.semifinals, key=lambda one: one.loss)]
    labels = {one.candidate: one.label for one in finished.finals if "finalist" in one.label}
    assert sorted(labels, key=labels.__getitem__) == ranked[:2]


def test_they_end_at_half_and_are_scored_on_all_that_is_held_out_by_then(finished, setting, small_study):
    held_out = joined(judges(small_study, setting.data, HALF))
    assert len(held_out) > len(setting.data.select)
    for one in finished.semifinals[:2]:
        candidate = one.candidate
        with setting.pack(1) as pack:
            slot = pack.admit(setting.space.slot(candidate, small_study.seed, 24))
            for _ in range(HALF):
                pack.step()
            losses, _ = pack.evaluate([slot], held_out, averaged=True)
            pack.evict(slot)
        assert len(one.curve) == HALF and one.examples == len(held_out)
        assert one.loss == pytest.approx(float(losses.mean()), rel=1e-4)


def test_there_are_none_where_as_many_go_to_the_end(small_study, setting, tmp_path):
    changed = small_study.search.model_copy(update={"semifinalists": 2})
    result = search(small_study.model_copy(update={"search": changed}), tmp_path / "run", device="cpu")
    assert not result.semifinals
    rule = setting.space.rule("rule")
    best = best_of(result.trials, 2, setting.space, rule)
    assert {one.candidate for one in result.finals} == {*best, rule}


def test_a_search_that_had_its_finals_before_there_were_any_is_not_searched_again(small_study, tmp_path):
    changed = small_study.search.model_copy(update={"semifinalists": 0})
    old = search(small_study.model_copy(update={"search": changed}), tmp_path / "run", device="cpu")
    study = RunFolder(tmp_path / "run").study
    study.write_text(study.read_text().replace("  semifinalists: 0\n", ""))
    again = search(small_study, tmp_path / "run", device="cpu")
    assert not again.semifinals and again.finals == old.finals and again.phases == old.phases


def test_a_search_that_goes_on_with_more_trials_has_them(small_study, tmp_path):
    few = small_study.model_copy(update={"budget": small_study.budget.model_copy(update={"trials": 4})})
    before = search(few, tmp_path / "run", device="cpu")
    assert before.finals and not before.semifinals  # no more than two beside the rule
    assert len(search(small_study, tmp_path / "run", device="cpu").semifinals) > 2
