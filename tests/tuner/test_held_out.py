"""Choosing rests on examples that a training has not learned from, beside *validation*."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from autolr.data.batches import batch_order, joined
from autolr.pack.slots import Slot, SlotConfig
from autolr.rundir.records import Record
from autolr.schema.candidate import Candidate
from autolr.schema.study import Study
from autolr.tuner.execute.held_out import LAST, TIMES, judges, last_steps
from autolr.tuner.judge import verdict
from autolr.tuner.run import search
from autolr.tuner.setting import choose_device, read_setting


def changed(study: Study, **parts: dict) -> Study:
    content = study.model_dump()
    for part, values in parts.items():
        content[part] |= values
    return Study.model_validate(content)


@pytest.fixture(scope="module")
def setting(small_study):
    return read_setting(small_study, choose_device("cpu"))


def test_trials_are_judged_by_what_none_of_them_comes_to(small_study, setting):
    data, size = setting.data, small_study.training.batch_size
    validation, later = judges(small_study, data, 12)
    assert validation is data.validation and len(later) == len(data.train) - 12 * size
    learned = {row for batch in batch_order(data.train.lengths(), size, 12, small_study.seed) for row in batch}
    rest = [tuple(ids) for row, ids in enumerate(data.train.ids) if row not in learned]
    assert sorted(map(tuple, later.ids)) == sorted(rest)
    # No more than data.max_eval_samples, in all.
    few = changed(small_study, data={"max_eval_samples": len(data.validation) + 5})
    assert [len(part) for part in judges(few, data, 12)] == [len(data.validation), 5]
    assert set(map(tuple, judges(few, data, 12)[1].ids)) <= set(rest)
    assert judges(changed(small_study, data={"max_eval_samples": 20}), data, 12) == [data.validation]
    # Nothing is left of an epoch, or select is a table of its own: select alone.
    assert judges(small_study, data, 10_000) == [data.validation]
    apart = changed(small_study, data={"validation_split": "other.csv"})
    assert judges(apart, data, 12) == [data.validation]


def test_sets_are_joined_in_their_order(setting):
    both = joined([setting.data.validation, setting.data.test])
    assert both.ids == setting.data.validation.ids + setting.data.test.ids
    assert both.labels == setting.data.validation.labels + setting.data.test.labels


def through(steps: int, epoch: int, size: int, stop: int | None = None) -> Slot:
    """A training of so many steps, that sees as many examples as `epoch` steps have over and over."""
    order = [[(step % epoch) * size + place for place in range(size)] for step in range(steps)]
    config = SlotConfig({"v": 1e-3}, 4, 0, steps, stop)
    return Slot(config, order[: config.length], step=config.length)


@pytest.mark.parametrize(
    ("steps", "epoch", "validation", "expected"),
    [
        (100, 100, 1000, range(75, 100)),  # the last quarter
        (100, 100, 40, range(85, 100)),  # no more than three times the examples of validation
        (100, 90, 1000, range(75, 90)),  # what comes for the second time is no judge
        (100, 60, 1000, range(0)),
        (3, 3, 1000, range(2, 3)),
    ],
)
def test_the_last_steps_of_a_first_epoch_judge_a_full_run(small_study, steps, epoch, validation, expected):
    assert (LAST, TIMES) == (0.25, 3) and small_study.training.batch_size == 8
    assert list(last_steps(small_study, through(steps, epoch, 8), validation)) == list(expected)


def test_no_steps_judge_where_they_would_mislead(small_study):
    slot = through(100, 100, 8)
    assert len(last_steps(small_study, slot, 1000)) == 25
    assert not last_steps(changed(small_study, training={"lr_scheduler_type": "constant"}), slot, 1000)
    assert not last_steps(changed(small_study, data={"validation_split": "other.csv"}), slot, 1000)
    assert not last_steps(small_study, through(100, 100, 8, stop=90), 1000)


def test_the_loss_of_a_step_is_that_before_it_is_learned(setting):
    config = SlotConfig({"q": 1e-2, "v": 1e-2, "head": 1e-2}, 4, 3, 6)
    with setting.pack(1) as pack:
        slot = pack.admit(config)
        for step in range(6):
            before, _ = pack.evaluate([slot], setting.data.train.take(slot.order[step]), averaged=False)
            pack.step()
            pack.flush()
            assert slot.losses[step] == pytest.approx(float(before.mean()), rel=1e-4)


def final(rank: int, validation: np.ndarray, steps: np.ndarray, size: int = 16, **fields) -> Record:
    return Record(
        **{
            "label": "finalist 1",
            "candidate": Candidate(lr_v=1e-3, ratio=1, rank=rank),
            "seed": 0,
            "validation_loss": float(validation.mean()),
            "validation_metric": 0.8,
            "test_loss": 0.5,
            "test_metric": 0.8,
            "losses": [0.5] * 20,
            "validation_losses": validation.tolist(),
            "unseen_losses": steps.tolist(),
            "unseen_examples": size * len(steps),
        }
        | fields
    )


def test_finals_are_decided_by_all_that_is_held_out():
    rng = np.random.default_rng(0)
    validation, steps = rng.normal(0.5, 0.3, 100), rng.normal(0.5, 0.05, 25)
    single = np.repeat(steps, 16)  # as if each example of a step had its mean
    one = final(16, validation, steps)
    assert one.held_out_loss == pytest.approx(np.concatenate([validation, single]).mean())
    # On select the other leads; on four times as many examples it does not.
    other = final(16, validation - 0.01, steps + 0.01, candidate=Candidate(lr_v=2e-3, ratio=1, rank=16))
    assert other.validation_loss < one.validation_loss and verdict.choose([one, other]) == one.candidate
    scores = verdict.final_scores([other, one])
    assert [score.candidate for score in scores] == [one.candidate, other.candidate]
    assert scores[0].held_out_loss == scores[0].chosen_by == one.held_out_loss
    # One of the finals is of an older search and has no such losses: then it is select alone.
    older = other.model_copy(update={"unseen_losses": [], "unseen_examples": 0})
    assert verdict.choose([one, older]) == older.candidate
    assert verdict.final_scores([one, older])[0].held_out_loss is None
    # What has diverged does not count as older.
    lost = older.model_copy(update={"diverged": True, "validation_loss": 100.0})
    assert verdict.choose([one, other, lost.model_copy(update={"candidate": K})]) == one.candidate


K = Candidate(lr_v=4e-3, ratio=1, rank=16)


def test_the_standard_error_is_that_of_a_mean_over_both(seed=0):
    rng = np.random.default_rng(seed)
    validation, steps = rng.normal(0.5, 0.3, 200), rng.normal(0.5, 0.05, 30)
    found = []
    # Differences are drawn again and again: how far does their pooled mean scatter?
    for _ in range(400):
        apart, moved = rng.normal(0.01, 0.2, 200), rng.normal(0.01, 0.05, 30)
        own, best = final(4, validation + apart, steps + moved), final(16, validation, steps)
        found.append((own.held_out_loss - best.held_out_loss, verdict.standard_error([own], [best])))
    means, errors = np.array(found).T
    assert errors.mean() == pytest.approx(means.std(ddof=1), rel=0.1)
    # With no step it is that of the examples.
    own, best = final(4, validation + apart, steps[:0], 0), final(16, validation, steps[:0], 0)
    assert verdict.standard_error([own], [best]) == pytest.approx(stats.sem(apart))


def test_a_search_of_one_epoch_is_decided_by_it(small_study, tmp_path):
    study = changed(
        small_study,
        training={"horizon": {"steps": 16}},
        search={"stages": [{"to": 8}, {"to": 1.0, "promote": 2}], "rungs": [4]},
    )
    result = search(study, tmp_path / "run", device="cpu")
    evidence = result.recipe.evidence
    for one in result.finals:
        assert one.unseen_losses == pytest.approx(one.curve[-4:], rel=1e-4) and one.unseen_examples == 4 * 8
    assert [score.held_out_loss for score in evidence.finals] == sorted(one.held_out_loss for one in result.finals)
    own = [one for one in result.finals if one.label != "default"]
    rule = next(one for one in result.finals if one.label == "default")
    best = next(one for one in own if one.candidate == verdict.choose(own))
    assert result.recipe.candidate == min(rule, best, key=lambda one: one.held_out_loss).candidate
    # What ends after a trial's steps, at a high rate, has no such steps.
    assert all(not one.unseen_losses for one in result.over_seeds)
