"""The interval holds the truth as often as it says; the winner comes from select."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from autolr.rundir.records import Record
from autolr.schema.candidate import Candidate
from autolr.tuner.judge import verdict

A, B = Candidate(lr_v=1e-3, ratio=4, rank=8), Candidate(lr_v=1e-3, ratio=1, rank=8)
K = Candidate(lr_v=1e-3, ratio=1, rank=8, targets="qkv")


@pytest.mark.parametrize(("seed_sd", "example_sd"), [(0.02, 0.3), (0.0, 0.3), (0.05, 0.0)])
def test_the_interval_holds_the_truth_in_about_nine_of_ten_cases(seed_sd, example_sd):
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(600):
        seeds = rng.normal(0, seed_sd, (3, 1))
        examples = rng.normal(0, example_sd, (1, 200))
        interval = verdict.paired_interval(0.01 + seeds + examples + rng.normal(0, 0.1, (3, 200)))
        held += interval.low <= 0.01 <= interval.high
    assert 0.86 <= held / 600 <= 0.99


def test_without_differences_between_seeds_it_is_the_paired_t_interval():
    d = np.tile(np.random.default_rng(1).normal(0.1, 1, 400), (3, 1))
    low, high = stats.t.interval(0.9, 399, loc=d[0].mean(), scale=stats.sem(d[0]))
    interval = verdict.paired_interval(d)
    assert (interval.low, interval.high) == pytest.approx((low, high), rel=1e-6)


def record(candidate: Candidate, seed: int, validation: float, test: float, label: str) -> Record:
    rng = np.random.default_rng(seed)
    return Record(
        label=label,
        candidate=candidate,
        seed=seed,
        validation_loss=validation,
        validation_metric=0.8,
        test_loss=test,
        test_metric=0.8,
        losses=(test + rng.normal(0, 0.001, 50)).tolist(),
    )


def test_the_winner_is_chosen_on_select_and_w_k_stays_frozen():
    repeats = [record(A, s, 0.40, 0.50, "finalist 1") for s in (1, 2)]
    repeats += [record(B, s, 0.41, 0.30, "default") for s in (1, 2)]
    repeats += [record(K, s, 0.20, 0.20, "with_k") for s in (1, 2)]
    winner = verdict.choose(repeats)
    assert winner == A
    scores = verdict.scores(repeats, winner)
    assert scores[0].candidate == A and scores[0].gain is None
    text = verdict.sentence(scores)
    assert "is significantly worse than the default" in text and "-0.2000" in text
    assert "training W_k too (λ=1): a significant loss" in text


def test_the_smallest_rank_that_is_as_good_is_taken():
    small = A.model_copy(update={"rank": 4})
    best = [record(A, s, loss, 0.5, "finalist 1") for s, loss in ((1, 0.400), (2, 0.410), (3, 0.405))]
    # 0.001 worse on average, by differences that scatter more; and 0.004 worse in all of them.
    as_good = [record(small, s, loss, 0.5, "finalist 2") for s, loss in ((1, 0.405), (2, 0.406), (3, 0.407))]
    worse = [record(small, s, loss, 0.5, "finalist 2") for s, loss in ((1, 0.404), (2, 0.4145), (3, 0.409))]
    assert verdict.choose([*best, *as_good]) == small
    assert verdict.choose([*best, *worse]) == A
    # A larger rank has to be better, not as good.
    large = A.model_copy(update={"rank": 16})
    assert verdict.choose([*best, *[r.model_copy(update={"candidate": large}) for r in as_good]]) == A


def test_of_one_seed_the_examples_say_what_is_as_good():
    rng = np.random.default_rng(0)
    best = rng.normal(0.5, 0.2, 400)
    small = best + rng.normal(0.002, 0.1, 400)

    def final(rank: int, losses: np.ndarray) -> Record:
        one = record(A.model_copy(update={"rank": rank}), 0, float(losses.mean()), 0.5, "finalist 1")
        return one.model_copy(update={"validation_losses": losses.tolist()})

    error = verdict.standard_error([final(4, small)], [final(16, best)])
    assert error == pytest.approx(stats.sem(small - best)) and 0 < (small - best).mean() < error
    assert verdict.choose([final(16, best), final(4, small)]).rank == 4
    assert verdict.choose([final(16, best), final(4, small + 0.05)]).rank == 16
    # Nothing is known of the examples: the best is taken.
    unknown = [one.model_copy(update={"validation_losses": []}) for one in (final(16, best), final(4, small))]
    assert verdict.choose(unknown).rank == 16


def test_the_sentence_says_no_gain_where_there_is_none():
    rng = np.random.default_rng(0)
    close = [record(A, s, 0.40, 0.400, "finalist 1") for s in (1, 2, 3)]
    rule = [
        r.model_copy(
            update={"candidate": B, "label": "default", "losses": (np.array(r.losses) + rng.normal(0, 0.1, 50))}
        )
        for r in close
    ]
    text = verdict.sentence(verdict.scores([*close, *rule], A))
    assert text.startswith("The gain of λ=4") and "is inconclusive" in text
    alone = verdict.sentence(
        verdict.scores([r.model_copy(update={"label": "finalist 1 + default"}) for r in close], A)
    )
    assert alone.startswith("No gain over the default: the default itself")
    both = [r.model_copy(update={"label": "finalist 1"}) for r in rule]
    rules = [r.model_copy(update={"label": "default + same_lr", "candidate": A}) for r in close]
    gain = verdict.scores([*rules, *both], A)[1].gain
    said = verdict.sentence(verdict.scores([*rules, *both], A)).partition(". ")[0]
    where = f"{abs(gain.mean):.4f} {'above' if gain.mean >= 0 else 'below'}"
    assert f"lies {where} it, 90% interval {gain.low:+.4f} to {gain.high:+.4f}" in said
    better = [record(A, s, 0.40, 0.3, "finalist 1") for s in (1, 2, 3)]
    worse = [record(B, s, 0.45, 0.4, "default") for s in (1, 2, 3)]
    assert "is significantly better than the default" in verdict.sentence(verdict.scores([*better, *worse], A))


def test_a_recipe_that_diverges_is_chosen_last_however_low_its_other_losses():
    wild = [record(A, 1, 0.1, 0.1, "finalist 1"), record(A, 2, 0.1, 0.1, "finalist 1")]
    wild[1] = wild[1].model_copy(update={"diverged": True, "validation_loss": 0.3})
    small = A.model_copy(update={"rank": 2, "lr_v": 5e-3})  # of a smaller rank, and as good but for what diverged
    repeats = [*wild, *(record(B, s, 0.41, 0.5, "default") for s in (1, 2))]
    repeats += [r.model_copy(update={"candidate": small, "label": "finalist 2"}) for r in wild]
    assert verdict.choose(repeats) == B
    scores = verdict.scores(repeats, B)
    assert (scores[0].candidate, scores[0].diverged) == (B, 0)
    assert sorted(score.diverged for score in scores) == [0, 1, 1]
    other = verdict.scores(repeats, A)
    assert "1 of its trainings diverged" in verdict.sentence(other)
