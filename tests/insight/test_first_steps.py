"""Theorem 2's terms, by hand on small models; and the peak of memory."""

from __future__ import annotations

import pytest
import torch

from autolr.data.tasks import Classification
from autolr.insight import first_steps, peak_memory
from autolr.schema.candidate import Candidate
from autolr.schema.training import Training
from tests import tiny

TRAINING = Training(batch_size=4, max_grad_norm=None)


def measured(candidate, family="bert", at=(1, 3), dtype=torch.float64):
    base = tiny.base(family, dtype)
    before = base.fingerprint()
    found = first_steps.measure(
        base, Classification(("a", "b", "c")), tiny.tokens(), TRAINING, candidate, lr_head=1e-3, at=at
    )
    assert base.fingerprint() == before and not any(p.requires_grad for p in base.model.parameters())
    return found


def test_changes_are_in_proportion_to_the_rates():
    one, other = (
        measured(Candidate(lr_v=lr_v, ratio=ratio, rank=2))[0] for lr_v, ratio in ((1e-6, 1.0), (4e-6, 2.0))
    )
    assert one.layers_v == pytest.approx([v / 4 for v in other.layers_v], rel=0.02)
    assert one.layers_q == pytest.approx([q / 2 for q in other.layers_q], rel=0.02)
    # What would balance them does not depend on where one stands.
    assert one.balance(1.0) == pytest.approx(other.balance(2.0), rel=0.02)


def test_at_the_balance_both_change_the_output_alike():
    found = measured(Candidate(lr_v=1e-6, ratio=1.0, rank=2))[0].balance(1.0)
    again = measured(Candidate(lr_v=1e-6 * found, ratio=found, rank=2))[0]
    ratios = [q / v for q, v in zip(again.layers_q, again.layers_v, strict=True)]
    assert torch.tensor(ratios).log().mean().item() == pytest.approx(0.0, abs=0.02)


def test_together_is_of_second_order():
    small, large = (measured(Candidate(lr_v=lr_v, ratio=1.0, rank=2))[1] for lr_v in (1e-5, 1e-4))
    for one, other in zip(small.layers_both[:1], large.layers_both[:1], strict=True):
        assert other / one == pytest.approx(100, rel=0.3)


def test_updates_are_measured_by_the_weights():
    first, third = measured(Candidate(lr_v=1e-3, ratio=4.0, rank=2))
    # Adam's first step moves each number of B by the rate, and A multiplies it.
    assert first.updates["v"] / first.updates["q"] == pytest.approx(4, rel=0.3)
    assert first.grown == pytest.approx(first.updates)
    assert third.grown["v"] > third.updates["v"]


@pytest.mark.parametrize(("family", "kind"), [("gpt2", "lora"), ("llama", "full")])
def test_fused_and_whole_matrices(family, kind):
    rank = 0 if kind == "full" else 2
    found = measured(Candidate(lr_v=1e-5, ratio=1.0, rank=rank, kind=kind), family)
    assert all(value > 0 for step in found for value in (*step.layers_q, *step.layers_v))


def test_tensors_are_counted_while_they_live():
    def work():
        a = torch.zeros(1000)
        b = a + 1
        del a
        c = b.view(10, 100)
        d = torch.zeros(500)
        del b
        return c.sum() + d.sum()

    assert peak_memory.peak(work, torch.device("cpu")) == pytest.approx(8000, abs=16)


def test_what_the_graph_keeps_is_counted():
    x = torch.ones(1000, requires_grad=True)

    def work():
        y = x
        for _ in range(5):
            y = torch.sin(y)
        y.sum().backward()

    # sin keeps its input; the first is x itself, which was there before.
    assert peak_memory.peak(work, torch.device("cpu")) >= 5 * 4000
