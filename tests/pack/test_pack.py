"""Properties of the pack: frozen roles, averages, evaluation, initial values."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from autolr.data.tasks import Classification
from autolr.model import adapters
from autolr.pack.pack import Pack
from autolr.pack.row_block import AVERAGE_C
from autolr.pack.slots import SlotConfig
from autolr.schema.training import Training
from tests import tiny

TASK = Classification(("a", "b", "c"))
V_ONLY = SlotConfig({"q": 0.0, "k": 0.0, "v": 1e-2, "head": 0.0}, rank=4, seed=0, steps=10)
QV = SlotConfig({"q": 1e-2, "k": 0.0, "v": 1e-2, "head": 1e-2}, rank=8, seed=0, steps=10)


def make_pack(**options) -> Pack:
    options = {"capacity": 2, "max_rank": 8, "lora_alpha": 16.0, **options}
    return Pack(tiny.base("bert", torch.float64), Training(batch_size=4), TASK, tiny.tokens(), **options)


def test_a_rate_of_zero_freezes_a_role_beside_slots_that_train_it():
    with make_pack(together=2) as pack:
        frozen, free = pack.admit(V_ONLY), pack.admit(QV)
        head = {name: p for name, p in pack.initial_values(V_ONLY).items() if "classifier" in name}
        for _ in range(5):
            pack.step()
        after = pack.values(frozen)
        assert all(torch.equal(after[name], value.double()) for name, value in head.items())
        assert not any(".query." in name or ".key." in name for name in after)
        assert all(after[name].abs().sum() > 0 for name in after if "lora_B" in name)
        assert pack.values(free)["bert.encoder.layer.0.attention.self.query.lora_B"].abs().sum() > 0


def test_the_base_is_never_changed_and_gets_its_hooks_off():
    base, data = tiny.base("bert", torch.float64), tiny.tokens()
    before = {name: p.clone() for name, p in base.model.named_parameters()}
    batch = {key: value for key, value in data.collate([0, 1]).items() if key != "labels"}
    clean = base.model(**batch).logits
    with Pack(base, Training(batch_size=4), TASK, data, capacity=2, max_rank=8, lora_alpha=16.0) as pack:
        pack.admit(QV)
        for _ in range(3):
            pack.step()
    assert all(torch.equal(p, before[name]) for name, p in base.model.named_parameters())
    assert torch.equal(clean, base.model(**batch).logits)


def test_padding_of_ranks_stays_zero():
    with make_pack() as pack:
        slot = pack.admit(SlotConfig(QV.rates, rank=2, seed=0, steps=10))
        for _ in range(5):
            pack.step()
        row = pack.rows[0]
        used = sum(value.numel() for value in pack.values(slot).values())
        assert int((row != 0).sum()) <= used


def test_the_average_is_the_stated_running_average():
    with make_pack() as pack:
        slot = pack.admit(QV)
        expected = None
        for step in range(1, 6):
            pack.step()
            row = pack.rows[0].clone()
            weight = (AVERAGE_C + 1) / (step + AVERAGE_C)
            expected = row if expected is None else expected + weight * (row - expected)
        assert torch.allclose(pack.averages[0], expected, rtol=1e-12, atol=1e-14)
        assert pack.values(slot, averaged=True).keys() == pack.values(slot).keys()


def test_evaluation_in_a_pack_equals_the_model_with_the_adapter_in_it():
    data = tiny.tokens(seed=5)
    with make_pack(together=2) as pack:
        slots = [pack.admit(V_ONLY), pack.admit(QV)]
        for _ in range(4):
            pack.step()
        pack.budget = replace(pack.budget, rows=10)
        losses, said = pack.evaluate(slots, data, averaged=False)
        values = pack.values(slots[1])
    model = adapters.peft_model(tiny.base("bert", torch.float64), "qv", 8, 16.0, 0)
    adapters.set_values(model.double(), values)
    batch = data.collate(range(len(data)))
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert torch.allclose(losses[1], TASK.losses(logits, batch["labels"]), rtol=1e-9)
    assert torch.equal(said[1], TASK.predictions(logits, batch["labels"]).double())
    assert not torch.allclose(losses[0], losses[1])


def test_candidates_of_different_ranks_start_from_the_same_rows():
    site = tiny.base("bert").projections.sites[0]
    small, large = adapters.initial_a(site, 2, 7), adapters.initial_a(site, 8, 7)
    assert torch.equal(small, large[:2])
    assert not torch.equal(large, adapters.initial_a(site, 8, 8))
    bound = site.d_in**-0.5
    assert large.abs().max() <= bound
    assert large.std() == pytest.approx(bound / 3**0.5, rel=0.2)


def test_a_full_pack_takes_no_more():
    with make_pack(capacity=1) as pack:
        pack.admit(QV)
        with pytest.raises(ValueError, match="taken"):
            pack.admit(QV)
        with pytest.raises(ValueError, match="rank 9"):
            pack.evict(pack.slots[0])
            pack.admit(SlotConfig(QV.rates, rank=9, seed=0, steps=10))


def test_a_base_in_bf16_trains_in_float32():
    base = tiny.base("bert", torch.bfloat16)
    with Pack(
        base, Training(batch_size=4), TASK, tiny.tokens(), capacity=2, max_rank=8, lora_alpha=16.0, together=2
    ) as pack:
        slots = [pack.admit(QV), pack.admit(V_ONLY)]
        assert pack.rows.dtype == torch.float32
        for _ in range(6):
            pack.step()
        losses, _ = pack.evaluate(slots, tiny.tokens(seed=3), averaged=False)
    full = make_pack(together=2)
    with full as pack:
        exact = [pack.admit(QV), pack.admit(V_ONLY)]
        for _ in range(6):
            pack.step()
        expected, _ = pack.evaluate(exact, tiny.tokens(seed=3), averaged=False)
    assert 0 < float((losses.mean(1) - expected.mean(1)).abs().max()) < 0.05


@pytest.mark.parametrize("kinds", [("lora", "dora"), ("full",)])
def test_slots_that_share_a_pass_train_without_a_warning(kinds):
    torch.set_warn_always(True)  # once in a process is the default
    try:
        with warnings.catch_warnings(), make_pack(capacity=3, together=3, kinds=kinds) as pack:
            warnings.simplefilter("error")
            for rank, kind in zip((8, 4, 8), (*kinds, *kinds, *kinds), strict=False):
                pack.admit(SlotConfig(QV.rates, rank=rank, seed=0, steps=10, kind=kind))
            for _ in range(3):
                pack.step()
    finally:
        torch.set_warn_always(False)


def test_losses_that_wait_on_the_device_come_in_order(monkeypatch):
    with make_pack() as pack:
        first = pack.admit(QV)
        for _ in range(3):
            pack.step()
        expected = list(first.losses)
    with make_pack() as pack:
        flush, pack.flush = pack.flush, lambda: None
        first = pack.admit(QV)
        pack.step()
        second = pack.admit(V_ONLY)
        pack.step()
        pack.evict(first)
        assert (first.step, first.losses, pack.lag) == (2, [], 2)
        flush()
        assert first.losses == pytest.approx(expected[:2])
        assert (len(second.losses), second.step, pack.lag) == (1, 1, 0)


def test_a_slot_that_stops_early_is_the_beginning_of_the_whole_run():
    curves = []
    for stop in (None, 6):
        with make_pack() as pack:
            slot = pack.admit(SlotConfig(QV.rates, rank=4, seed=1, steps=20, stop=stop))
            while not slot.done:
                pack.step()
            curves.append(slot.losses)
    assert (len(curves[0]), len(curves[1])) == (20, 6)
    assert curves[1] == curves[0][:6]


def test_a_small_rank_does_not_pay_for_a_large_one():
    def operations(*ranks: int) -> int:
        with make_pack(capacity=4, together=4) as pack:
            for rank in ranks:
                pack.admit(SlotConfig(QV.rates, rank=rank, seed=0, steps=10))
            with FlopCounterMode(display=False) as counter:
                pack.step()
            return counter.get_total_flops()

    base = operations(1, 1, 1, 1)
    each = (operations(8, 8, 8, 8) - base) / (4 * 7)  # of one more rank in one slot
    assert operations(8, 1, 1, 1) == base + 7 * each
    assert operations(1, 8, 1, 1) == base + 7 * each
    assert operations(8, 4, 4, 4) == base + 4 * 7 * each  # like ranks are multiplied together


def test_slots_lie_in_the_order_of_their_ranks_and_keep_what_is_theirs():
    with make_pack(capacity=6, together=6) as pack:
        ranks = [4, 8, 1, 8, 4]
        slots = [pack.admit(SlotConfig(QV.rates, rank=rank, seed=n, steps=10)) for n, rank in enumerate(ranks)]
        before = [pack.values(slot) for slot in slots]
        pack.evict(slots[1])
        slots.append(pack.admit(SlotConfig(QV.rates, rank=2, seed=9, steps=10)))
        assert [slot.config.rank for slot in pack.slots] == [8, 4, 4, 2, 1]
        for slot, values in zip(slots, before, strict=False):
            if slot is not slots[1]:
                assert all(torch.equal(value, values[name]) for name, value in pack.values(slot).items())
