"""A row optimizer of one's own: the base class freezes, clips, moves and resumes; packs need nothing else."""

from __future__ import annotations

import doctest

import pytest
import torch

from autolr.data.batches import TokenSet, tokenize
from autolr.data.tasks import Classification
from autolr.model.backbone import load
from autolr.pack import optimizers
from autolr.pack.pack import Pack
from autolr.pack.row_optimizer import RowOptimizer
from autolr.pack.slots import SlotConfig
from autolr.schema.training import Training
from tests.pack.test_packed_equals_alone import SLOTS, STEPS, TRAINING, alone, assert_same, make_pack

MOMENTUM = 0.9


class RowSGD(RowOptimizer):
    """torch.optim.SGD with momentum and weight decay, row by row."""

    STATE = ("momentum_buffer",)

    @staticmethod
    def alone(groups, training):
        return torch.optim.SGD(groups, momentum=MOMENTUM, weight_decay=training.weight_decay)

    def numbers(self, counts, rates):
        return [[max(0.0, rate) for rate in values] for values in rates.values()]

    def move_rows(self, grad, numbers, scratch):
        momentum, rows = self.state["momentum_buffer"][: len(grad)], self.rows[: len(grad)]
        grad.add_(rows, alpha=self.training.weight_decay)
        momentum.mul_(MOMENTUM).add_(grad)
        for rate, columns in zip(numbers, self.layout.blocks.values(), strict=True):
            rows[:, columns].addcmul_(momentum[:, columns], rate, value=-1)


@pytest.fixture
def sgd(monkeypatch):
    monkeypatch.setitem(optimizers.ROW_OPTIMIZERS, "sgd", RowSGD)
    monkeypatch.setattr(torch.optim, "AdamW", lambda groups, **_: RowSGD.alone(groups, TRAINING))  # of `alone`
    return {"optimizer": "sgd"}


def test_an_optimizer_of_ones_own_equals_torchs_on_stock_peft(sgd):
    configs = [SlotConfig({role: 10 * r for role, r in c.rates.items()}, c.rank, c.seed, STEPS) for c in SLOTS]
    with make_pack("bert", torch.float64, together=3, **sgd) as packed:
        gone = packed.admit(configs[2])
        slots = [packed.admit(config) for config in configs[:2]]
        packed.step()
        packed.evict(gone)  # the state of the others moves with their rows
        for _ in range(STEPS // 2):
            packed.step()
        kept = packed.state(slots[0])
        packed.evict(slots[0])
        slots[0] = packed.restore(configs[0], kept, slots[0].step, slots[0].losses, slots[0].tokens)
        while not slots[0].done:
            packed.step()
        packed.flush()
        found = [(packed.values(slot), slot.losses, slot.order, packed.initial_values(slot.config)) for slot in slots]
        assert packed.block.slot_bytes == 4 * packed.rows[0].nbytes  # weights, averages, gradients, momentum
    assert any(name.startswith("momentum_buffer.") for name in kept)
    for config, (values, losses, order, first) in zip(configs[:2], found, strict=True):
        stock, stock_losses = alone("bert", torch.float64, config, order, first)
        assert_same(values, stock, 1e-9)
        assert losses == pytest.approx(stock_losses, rel=1e-9)
        assert max(losses) - min(losses) > 0.01


def test_every_optimizer_says_what_it_holds_and_steps_as_torchs_does():
    for kind in optimizers.ROW_OPTIMIZERS.values():
        weight = torch.nn.Parameter(torch.randn(3, 2))
        optimizer = kind.alone([{"params": [weight], "lr": 1e-2}], TRAINING)
        weight.square().sum().backward()
        optimizer.step()
        held = [value for value in optimizer.state[weight].values() if value.shape == weight.shape]
        assert len(held) == len(kind.STATE)
        assert kind.bytes_per_parameter() * weight.numel() == weight.nbytes + weight.grad.nbytes + sum(
            value.nbytes for value in held
        )


def test_the_example_of_the_pack_runs():
    names = [Classification, Pack, SlotConfig, TokenSet, Training, load, tokenize]
    (example,) = doctest.DocTestFinder(recurse=False).find(Pack, "Pack", globs={own.__name__: own for own in names})
    result = doctest.DocTestRunner().run(example)
    assert result.attempted > 4 and not result.failed
