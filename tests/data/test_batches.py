"""The order of batches, and padding."""

from __future__ import annotations

import random

import torch

from autolr.data.batches import CYCLE, TokenSet, batch_order, by_length

LENGTHS = [3 + (n * 7) % 11 for n in range(50)]


def test_an_epoch_visits_every_example_once_and_the_incomplete_batch_is_dropped():
    epoch = batch_order(LENGTHS, 8, steps=6, seed=0)
    rows = sum(epoch, [])
    assert len(rows) == len(set(rows)) == 48
    assert all(len(batch) == 8 for batch in epoch)


def test_a_longer_run_begins_as_a_shorter_one_and_the_seed_decides():
    assert batch_order(LENGTHS, 8, 20, seed=3)[:7] == batch_order(LENGTHS, 8, 7, seed=3)
    assert batch_order(LENGTHS, 8, 6, seed=3) != batch_order(LENGTHS, 8, 6, seed=4)


def test_batches_hold_similar_lengths():
    lengths = [1 + n % 40 for n in range(2000)]
    spread = [max(lengths[r] for r in b) - min(lengths[r] for r in b) for b in batch_order(lengths, 16, 100, 0)]
    assert sum(spread) / len(spread) < 4


def test_lengths_come_round():
    rng = random.Random(0)
    lengths = [rng.randrange(5, 60) for _ in range(4000)]
    widths = [max(lengths[row] for row in batch) for batch in batch_order(lengths, 16, 500, 0)]
    apart = lambda shift: sum(abs(a - b) for a, b in zip(widths, widths[shift:], strict=False)) / 480  # noqa: E731
    assert apart(CYCLE) < apart(3) / 3
    assert apart(2 * CYCLE) < apart(13) / 3


def test_collate_pads_right_to_the_longest():
    tokens = TokenSet(ids=[[5, 6, 7], [8]], labels=[0, 1], pad_id=9)
    batch = tokens.collate([1, 0])
    assert torch.equal(batch["input_ids"], torch.tensor([[8, 9, 9], [5, 6, 7]]))
    assert torch.equal(batch["attention_mask"], torch.tensor([[1, 0, 0], [1, 1, 1]]))
    assert batch["labels"].tolist() == [1, 0]


def test_by_length_covers_all():
    batches = list(by_length(LENGTHS, 7))
    assert sorted(sum(batches, [])) == list(range(50))


def test_the_learned_tokens_of_an_example_are_all_but_its_first():
    rng = random.Random(0)
    labels = [[rng.choice([-100, 7]) for _ in range(rng.randrange(1, 9))] for _ in range(50)]
    data = TokenSet([[5] * len(own) for own in labels], labels, 0)
    assert data.learned == [sum(label != -100 for label in own[1:]) for own in labels]
    assert TokenSet([[5]] * 3, [0, 1, 0], 0).learned == [1, 1, 1]


def test_a_batch_is_padded_to_a_multiple_but_not_beyond_what_the_model_takes():
    data = TokenSet([[5] * length for length in (3, 10)], [0, 1], 9)
    assert [data.collate([0, row], 8)["input_ids"].shape[1] for row in (0, 1)] == [8, 16]
    assert [data.collate([0, row], 8, 12)["input_ids"].shape[1] for row in (0, 1)] == [8, 12]
    batch = data.collate([0, 1], 8, 4)  # an example that is too long all the same is not cut
    assert batch["input_ids"].shape[1] == 10
    assert batch["input_ids"][0].tolist() == [5] * 3 + [9] * 7 and batch["attention_mask"].sum(1).tolist() == [3, 10]
