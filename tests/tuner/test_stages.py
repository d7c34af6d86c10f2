"""The stages of a search: the table, who is promoted, and what each of them scores."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from autolr.data.batches import joined
from autolr.errors import DocumentError
from autolr.rundir import folder, records
from autolr.rundir.records import Record
from autolr.rundir.result import SearchResult
from autolr.schema.study import BaselineName, Study
from autolr.tuner.execute.held_out import judges
from autolr.tuner.judge.selection import best_of
from autolr.tuner.propose import baselines
from autolr.tuner.propose.baselines import Baseline
from autolr.tuner.run import search
from autolr.tuner.setting import read_setting
from autolr.tuner.stages import Judge, Stage, deciding, stages, training_id

HALF = 16  # of 24 steps, in whole cycles of batches


@pytest.fixture(scope="module")
def setting(small_study):
    return read_setting(small_study, torch.device("cpu"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, small_study) -> SearchResult:
    return search(small_study, tmp_path_factory.mktemp("search") / "run", device="cpu")


def table(horizon: int = 512, **settings) -> list[tuple[str, int, int, int]]:
    study = Study(model="m", data="d", search=settings)
    return [(stage.name, stage.steps, stage.promote, stage.seeds) for stage in stages(study, horizon)]


def with_stages(study: Study, *wanted: dict, **settings) -> Study:
    content = study.model_dump(mode="json")
    content["search"] |= {"stages": list(wanted), **settings}
    return Study.model_validate(content)


def test_the_table_of_a_new_study():
    assert table() == [("trials", 128, 16, 1), ("50%", 256, 6, 1), ("100%", 512, 2, 1), ("seeds", 128, 1, 3)]


def test_all_that_could_be_said_before_can_be_said():
    assert table(stages=[{"to": 200}, {"to": 1.0, "promote": 2}], seeds=2) == [
        ("trials", 200, 16, 1), ("100%", 512, 2, 1), ("seeds", 200, 1, 2),
    ]  # fmt: skip
    assert table(stages=[{"to": 0.25}]) == [("trials", 128, 16, 1), ("seeds", 128, 1, 3)]  # no finals
    # Trials of the full length: of the best two the seeds choose.
    assert table(stages=[{"to": 1.0}, {"to": 1.0, "promote": 2}]) == [("trials", 512, 16, 1), ("seeds", 512, 2, 3)]
    assert table(horizon=100, stages=[{"to": 200}])[0] == ("trials", 100, 16, 1)  # the full run has no more


@pytest.mark.parametrize("horizon", [1, 2, 4, 8, 12, 16, 24, 31, 64])
def test_each_stage_goes_further_than_the_one_before(horizon):
    study = Study(model="m", data="d")
    first, *later, last = stages(study, horizon)
    ends = [first.steps, *(stage.steps for stage in later)]
    assert (ends == sorted(set(ends)) and ends[-1] == horizon) or not later
    assert first.judged_on is Judge.RUNGS and last.steps == first.steps and last.seeds == 3
    assert [stage.promote for stage in later] == sorted((stage.promote for stage in later), reverse=True)
    assert deciding((first, *later, last)) == (later[-1] if later else last)
    assert last.promote == (1 if later else 2)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"stages": [{"to": 0.25, "promote": 3}]}, "first stage is the trials"),
        ({"stages": [{"to": 0.25}, {"to": 1.0}]}, "must promote a number"),
        ({"stages": [{"to": 0.25}, {"to": 0.5, "promote": 2}, {"to": 1.0, "promote": 2}]}, "fewer candidates"),
        ({"stages": [{"to": 0.1}, {"to": 0.5, "promote": 6}, {"to": 0.4, "promote": 2}]}, "further than the one"),
        ({"stages": [{"to": 2.5}]}, "whole number of steps"),
        ({"stages": [{"to": 8}], "rungs": [9]}, "end of the trials"),
        ({"length": 200, "repeats": 2}, r"Write stages: \[\{to: 200\}, .*: 6\}, .*: 2\}\] and seeds: 2"),
        ({"finalists": 1}, r"Write stages: \[\{to: 0.25\}\]$"),
        ({"semifinalists": 0}, r"Write stages: \[\{to: 0.25\}, \{to: 1.0, promote: 2\}\]$"),
    ],
)  # fmt: skip
def test_what_is_wrong_and_what_has_been_renamed(wrong, said, tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(f"model: m\ndata: d\nsearch: {wrong}\n")
    with pytest.raises(DocumentError, match=said):
        Study.load(path)


def test_baselines_have_new_names(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text("model: m\ndata: d\nbaselines: [rule, winner_lr, paper, qkv]\n")
    with pytest.raises(DocumentError) as wrong:
        Study.load(path)
    for line in ("rule is now called default", "winner_lr is now called same_lr", "qkv is now called with_k"):
        assert line in str(wrong.value)
    assert get_args(BaselineName) == tuple(Baseline)


def test_the_best_of_the_trials_that_finished_are_promoted(finished, setting):
    default = baselines.default(setting.space)
    through = {trial.candidate for trial in finished.trials if trial.outcome == "finished"}
    wanted = [one for one in best_of(finished.trials, 9, setting.space, default) if one in through][:6]
    assert len(wanted) > 2 and default not in wanted
    assert [one.candidate for one in sorted(finished.ladder["50%"], key=lambda one: one.label)] == wanted
    assert [phase.phase for phase in finished.phases] == ["trials", "50%", "100%", "seeds"]


def test_the_best_of_them_are_the_finalists(finished):
    ranked = [one.candidate for one in sorted(finished.ladder["50%"], key=lambda one: one.held_out_loss)]
    labels = {one.candidate: one.label for one in finished.finals if "finalist" in one.label}
    assert sorted(labels, key=labels.__getitem__) == ranked[:2]
    assert finished.finals == finished.ladder["100%"]


def test_they_end_at_half_and_are_scored_on_all_that_is_held_out_by_then(finished, setting, small_study):
    held_out = joined(judges(small_study, setting.data, HALF))
    assert len(held_out) > len(setting.data.validation)
    for one in finished.ladder["50%"][:2]:
        candidate = one.candidate
        with setting.pack(1) as pack:
            slot = pack.admit(setting.space.slot(candidate, small_study.seed, 24))
            for _ in range(HALF):
                pack.step()
            losses, _ = pack.evaluate([slot], held_out, averaged=True)
            pack.evict(slot)
        assert len(one.curve) == HALF and one.held_out_examples == len(held_out)
        assert one.held_out_loss == pytest.approx(float(losses.mean()), rel=1e-4)
        assert one.validation_loss == pytest.approx(float(losses[0, : len(setting.data.validation)].mean()), rel=1e-4)
        assert one.test_loss is None and not one.losses


def test_every_training_has_its_own_id_and_stands_in_one_file(finished, small_study):
    kept = records.parsed(folder.RunFolder(finished.folder).trainings, Record)
    assert kept == finished.trainings
    assert len({one.id for one in kept}) == len(kept)
    assert all(one.id == training_id(one.candidate, one.seed, one.steps) for one in kept)
    assert {one.stage for one in kept} == {"50%", "100%", "seeds"}


def test_a_baseline_outside_the_space_trains_only_where_it_is_compared(finished):
    assert all(trial.candidate.targets == "qv" for trial in finished.trials)
    with_k = [one for one in finished.trainings if one.candidate.targets == "qkv"]
    assert {(one.stage, one.label) for one in with_k} == {("seeds", "with_k")} and len(with_k) == 2


def test_there_is_no_stage_between_if_the_study_has_none(small_study, setting, tmp_path):
    study = with_stages(small_study, {"to": 12}, {"to": 1.0, "promote": 2})
    result = search(study, tmp_path / "run", device="cpu")
    assert list(result.ladder) == ["100%"]
    default = baselines.default(setting.space)
    best = best_of(result.trials, 2, setting.space, default)
    assert {one.candidate for one in result.finals} == {*best, default}


def test_four_stages_are_a_change_of_the_table_alone(small_study, tmp_path):
    table = [{"to": 4}, {"to": 8, "promote": 5}, {"to": 16, "promote": 3}, {"to": 1.0, "promote": 2}]
    study = with_stages(small_study.model_copy(update={"baselines": ["default"]}), *table, rungs=[2])
    result = search(study, tmp_path / "run", device="cpu")
    counts = {name: len(stage) for name, stage in result.ladder.items()}
    assert counts == {"step 8": 5, "step 16": 3, "100%": 3}
    assert [phase.phase for phase in result.phases] == ["trials", "step 8", "step 16", "100%", "seeds"]
    ends = {one.candidate: one for one in result.ladder["step 16"]}
    for one in result.finals:  # each resumes what the stage before has trained
        if one.candidate in ends:
            assert one.curve[:16] == ends[one.candidate].curve and one.tokens < ends[one.candidate].tokens * 24 / 16


def test_a_search_that_takes_more_trials_promotes_anew(small_study, tmp_path):
    few = small_study.model_copy(update={"budget": small_study.budget.model_copy(update={"trials": 3})})
    before = search(few, tmp_path / "run", device="cpu")
    assert list(before.ladder) == ["100%"]  # no more than two beside the default
    assert len(search(small_study, tmp_path / "run", device="cpu").ladder["50%"]) > 2


def test_seeds_of_a_stage():
    assert list(Stage("a", 8, 2).seeds_of(5)) == [5]
    assert list(Stage("b", 8, 2, seeds=3).seeds_of(5)) == [6, 7, 8]
