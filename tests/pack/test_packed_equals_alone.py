"""The test the project rests on: a slot learns what stock PEFT with torch's AdamW learns alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from transformers import get_scheduler

from autolr.data.tasks import Classification
from autolr.errors import ModelError
from autolr.model import adapters
from autolr.pack.pack import Pack
from autolr.pack.slots import SlotConfig
from autolr.schema.training import Training
from tests import tiny

STEPS = 20
ALPHA = 16.0
TASK = Classification(("a", "b", "c"))
TRAINING = Training(batch_size=4, weight_decay=0.1, max_grad_norm=0.5, betas=(0.9, 0.99), warmup_ratio=0.1)
SLOTS = [
    SlotConfig({"q": 2e-3, "k": 0.0, "v": 8e-3, "head": 1e-2}, rank=4, seed=1, steps=STEPS),
    SlotConfig({"q": 5e-2, "k": 0.0, "v": 1e-3, "head": 1e-3}, rank=8, seed=2, steps=STEPS),
    SlotConfig({"q": 1e-3, "k": 1e-3, "v": 2e-2, "head": 3e-2}, rank=2, seed=3, steps=STEPS),
]
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


def alone(family: str, dtype: torch.dtype, config: SlotConfig, order: list[list[int]], initial: dict):
    """Train a stock PEFT model, or the model's own matrices, with torch.optim.AdamW on the batches of a slot."""
    base, kind = tiny.base(family, dtype), config.kind
    names = {site.role: site.name.rpartition(".")[2] for site in base.projections.sites}
    roles = [role for role in ("q", "k", "v") if config.rates[role] > 0]
    if kind == "full":
        model = base.model
        trained = {
            name: p
            for name, p in model.named_parameters()
            if name.startswith(base.head) or any(name.endswith(f".{names[role]}.weight") for role in roles)
        }
        for name, parameter in trained.items():
            parameter.requires_grad_()
            with torch.no_grad():
                parameter.copy_(initial[name])
        return train(model, config, {role: f".{names[role]}.weight" for role in roles}, order, lambda _: trained)
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
    return train(model, config, {role: f".{names[role]}.lora" for role in roles}, order, adapters.values_of)


def train(model, config: SlotConfig, parts: dict[str, str], order: list[list[int]], values_of):
    """Train what requires a gradient; `parts` says which part of a name makes which role."""
    groups = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            role = next((role for role, part in parts.items() if part in name), "head")
            rates = config.rates_b if "lora_B" in name and role in config.rates_b else config.rates
            groups.append({"params": [parameter], "lr": rates[role]})
    optimizer = torch.optim.AdamW(
        groups,
        betas=TRAINING.betas,
        eps=TRAINING.eps,
        weight_decay=TRAINING.weight_decay,
    )
    schedule = get_scheduler("linear", optimizer, round(TRAINING.warmup_ratio * STEPS), STEPS)
    data, losses = tiny.tokens(), []
    for rows in order:
        batch = data.collate(rows)
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], TRAINING.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return values_of(model), losses


def make_pack(family: str, dtype: torch.dtype, **options) -> Pack:
    options = {"capacity": 3, "max_rank": 8, "lora_alpha": ALPHA, **options}
    return Pack(tiny.base(family, dtype), TRAINING, TASK, tiny.tokens(), **options)


def assert_same(packed: dict, stock: dict, tolerance: float) -> None:
    assert packed.keys() == stock.keys()
    for name, value in packed.items():
        distance = torch.linalg.vector_norm(value - stock[name]) / torch.linalg.vector_norm(stock[name])
        assert distance <= tolerance, f"{name}: {float(distance):.2e}"


# A pack holds slots of one method, or of several.
METHODS = {name: [name] * 3 for name in ("lora", "rslora", "dora", "full")} | {"mixed": ["dora", "lora", "rslora"]}


@pytest.mark.parametrize("kinds", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize(("together", "passes"), [(1, 1), (1, 3), (3, 1)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_every_slot_equals_a_stock_run(family, dtype, together, passes, kinds):
    configs = [
        replace(config, kind=kind, rank=0 if kind == "full" else config.rank)
        for config, kind in zip(SLOTS, kinds, strict=True)
    ]
    with make_pack(family, dtype, together=together, passes=passes, kinds=set(kinds)) as pack:
        slots = [pack.admit(config) for config in configs]
        initial = [pack.initial_values(config) for config in configs]
        for _ in range(STEPS):
            pack.step()
        packed = [(pack.values(slot), slot.losses, slot.order) for slot in slots]
    for config, first, (values, losses, order) in zip(configs, initial, packed, strict=True):
        # Matrices and DoRA's lengths are there for the matrices that a slot freezes as well.
        own = {name: value for name, value in first.items() if name in values}
        stock, stock_losses = alone(family, dtype, config, order, own)
        assert (config.kind == "dora") == any("magnitude" in name for name in values)
        assert_same(values, stock, TOLERANCE[dtype])
        assert losses == pytest.approx(stock_losses, rel=TOLERANCE[dtype])
        assert max(losses) - min(losses) > 0.01  # it did train


def test_dora_on_a_fused_matrix_is_refused():
    with pytest.raises(ModelError, match="in one matrix.*use method.kind lora"):
        make_pack("gpt2", torch.float64, kinds=["dora"])


def test_rows_of_no_role_stay_as_they_are_when_matrices_train_whole(tmp_path):
    config = replace(SLOTS[1], kind="full", rank=0)
    with make_pack("gpt2", torch.float64, kinds=["full"]) as pack:
        slot = pack.admit(config)
        for _ in range(STEPS):
            pack.step()
        values = pack.values(slot)
    base = tiny.base("gpt2", torch.float64)
    before = {name: p.clone() for name, p in base.model.named_parameters()}
    model = adapters.peft_model(base, "qv", 0, ALPHA, 0, "full")
    adapters.set_values(model, values)
    model.save_pretrained(tmp_path)
    merged = PeftModel.from_pretrained(tiny.model("gpt2", torch.float64), tmp_path).merge_and_unload()
    for name, after in merged.state_dict().items():
        if name.endswith("c_attn.weight"):  # Conv1D: a column is a row of W
            q, k, v = (after - before[name]).abs().amax(0).chunk(3)
            assert q.min() > 0 and v.min() > 0
            assert k.max() == 0
        elif not name.startswith("score"):
            assert torch.equal(after, before[name]), name


def test_b_learns_at_a_rate_of_its_own_and_its_neighbours_do_not():
    plus = replace(SLOTS[0], rates_b={"q": 3e-2, "v": 5e-2})
    with make_pack("bert", torch.float64, together=3) as pack:
        slots = [pack.admit(config) for config in (plus, SLOTS[1])]
        initial = [pack.initial_values(slot.config) for slot in slots]
        for _ in range(STEPS):
            pack.step()
        packed = [(pack.values(slot), slot.order) for slot in slots]
    for slot, first, (values, order) in zip(slots, initial, packed, strict=True):
        stock, _ = alone("bert", torch.float64, slot.config, order, first)
        assert_same(values, stock, 1e-9)


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
