"""The test the project rests on: a slot learns what stock PEFT with torch's AdamW learns alone."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from transformers import get_scheduler

from autolr.data.tasks import Classification
from autolr.errors import ModelError
from autolr.model import adapters
from autolr.pack.pack import Pack, SlotConfig
from autolr.study import Training
from tests import tiny

STEPS = 20
ALPHA = 16.0
TASK = Classification(("a", "b", "c"))
TRAINING = Training(batch_size=4, weight_decay=0.1, clip_norm=0.5, betas=(0.9, 0.99), warmup=0.1)
SLOTS = [
    SlotConfig({"q": 2e-3, "k": 0.0, "v": 8e-3, "head": 1e-2}, rank=4, seed=1, steps=STEPS),
    SlotConfig({"q": 5e-2, "k": 0.0, "v": 1e-3, "head": 1e-3}, rank=8, seed=2, steps=STEPS),
    SlotConfig({"q": 1e-3, "k": 1e-3, "v": 2e-2, "head": 3e-2}, rank=2, seed=3, steps=STEPS),
]
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


def alone(
    family: str, dtype: torch.dtype, config: SlotConfig, order: list[list[int]], initial: dict, kind: str = "lora"
):
    """Train a stock PEFT model with torch.optim.AdamW on the batches of a slot."""
    base = tiny.base(family, dtype)
    names = {site.role: site.name.rpartition(".")[2] for site in base.projections.sites}
    roles = [role for role in ("q", "k", "v") if config.rates[role] > 0]
    lora = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=config.rank,
        lora_alpha=ALPHA,
        lora_dropout=0.0,
        target_modules=[names[role] for role in roles],
        modules_to_save=list(base.head),
        use_rslora=kind == "rslora",
        use_dora=kind == "dora",
    )
    model = get_peft_model(base.model, lora).to(dtype)
    adapters.set_values(model, initial)
    groups = {role: [] for role in config.rates}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            role = next((role for role in roles if f".{names[role]}.lora" in name), "head")
            groups[role].append(parameter)
    optimizer = torch.optim.AdamW(
        [{"params": params, "lr": config.rates[role]} for role, params in groups.items() if params],
        betas=TRAINING.betas,
        eps=TRAINING.eps,
        weight_decay=TRAINING.weight_decay,
    )
    schedule = get_scheduler("linear", optimizer, round(TRAINING.warmup * STEPS), STEPS)
    data, losses = tiny.tokens(), []
    for rows in order:
        batch = data.collate(rows)
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], TRAINING.clip_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return adapters.values_of(model), losses


def make_pack(family: str, dtype: torch.dtype, **options) -> Pack:
    options = {"capacity": 3, "max_rank": 8, "alpha": ALPHA, **options}
    return Pack(tiny.base(family, dtype), TRAINING, TASK, tiny.tokens(), **options)


def assert_same(packed: dict, stock: dict, tolerance: float) -> None:
    assert packed.keys() == stock.keys()
    for name, value in packed.items():
        distance = torch.linalg.vector_norm(value - stock[name]) / torch.linalg.vector_norm(stock[name])
        assert distance <= tolerance, f"{name}: {float(distance):.2e}"


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
@pytest.mark.parametrize(("together", "passes"), [(1, 1), (1, 3), (3, 1)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_every_slot_equals_a_stock_run(family, dtype, together, passes, kind):
    with make_pack(family, dtype, together=together, passes=passes, kind=kind) as pack:
        slots = [pack.admit(config) for config in SLOTS]
        initial = [pack.initial_values(config) for config in SLOTS]
        for _ in range(STEPS):
            pack.step()
        packed = [(pack.values(slot), slot.losses, slot.order) for slot in slots]
    for config, first, (values, losses, order) in zip(SLOTS, initial, packed, strict=True):
        # DoRA's lengths are there for the matrices that a slot freezes as well.
        own = {name: value for name, value in first.items() if name in values}
        stock, stock_losses = alone(family, dtype, config, order, own, kind)
        assert (kind == "dora") == any("magnitude" in name for name in values)
        assert_same(values, stock, TOLERANCE[dtype])
        assert losses == pytest.approx(stock_losses, rel=TOLERANCE[dtype])
        assert max(losses) - min(losses) > 0.01  # it did train


def test_dora_on_a_fused_matrix_is_refused():
    with pytest.raises(ModelError, match="in one matrix.*use method.kind lora"):
        make_pack("gpt2", torch.float64, kind="dora")


# The conformance kit takes the fused ones; DeBERTa's own loss is rounded to float32.
@pytest.mark.parametrize("family", sorted({*tiny.SEPARATE} - {*tiny.LANGUAGE_ONLY, "deberta-v2"}))
def test_one_step_equals_stock_in_every_family(family):
    with make_pack(family, torch.float64, together=3) as pack:
        slots = [pack.admit(config) for config in SLOTS]
        initial = [pack.initial_values(config) for config in SLOTS]
        for _ in range(3):
            pack.step()
        packed = [(pack.values(slot), slot.losses, slot.order[:3]) for slot in slots]
    for config, first, (values, losses, order) in zip(SLOTS, initial, packed, strict=True):
        stock, stock_losses = alone(family, torch.float64, config, order, first)
        assert_same(values, stock, 1e-9)
        assert losses == pytest.approx(stock_losses, rel=1e-9)


def test_a_trial_admitted_late_into_a_used_slot_equals_one_from_the_start():
    with make_pack("bert", torch.float64, together=3) as pack:
        first = pack.admit(SLOTS[0])
        second = pack.admit(SLOTS[1])
        for _ in range(STEPS):
            pack.step()
        early = pack.values(second)
        pack.evict(first)
        pack.admit(SLOTS[2])
        late = pack.admit(SLOTS[1])
        pack.evict(second)
        for _ in range(7):
            pack.step()
        pack.admit(SLOTS[0])
        for _ in range(STEPS - 7):
            pack.step()
        assert late.step == STEPS
        assert_same(pack.values(late), early, 1e-9)


def test_a_slot_that_blows_up_leaves_its_neighbours_alone():
    wild = SlotConfig({"q": 10.0, "k": 0.0, "v": 10.0, "head": 10.0}, rank=4, seed=1, steps=STEPS)
    with make_pack("bert", torch.float64, together=3) as pack:
        calm = pack.admit(SLOTS[0])
        for _ in range(STEPS):
            pack.step()
        expected = pack.values(calm)
    with make_pack("bert", torch.float64, together=3) as pack:
        broken = pack.admit(wild)
        calm = pack.admit(SLOTS[0])
        pack.rows[pack.slots.index(broken)] = float("nan")
        for _ in range(STEPS):
            pack.step()
        assert_same(pack.values(calm), expected, 1e-9)
