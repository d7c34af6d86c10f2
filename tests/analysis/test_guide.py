"""Steering: rates of heads in a pack, in a run alone, and from study to recipe."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from autolr.analysis import guide, pattern
from autolr.data.tasks import Classification
from autolr.errors import DocumentError
from autolr.model import adapters
from autolr.model.labelled import forward
from autolr.pack.optimizer import schedule_factor
from autolr.pack.pack import Pack
from autolr.pack.slots import SlotConfig
from autolr.recipe import Recipe
from autolr.search.run import search
from autolr.search.setting import read_setting
from autolr.study import Study, Training
from autolr.train.optimizer import HeadAdamW, grouped, head_factors
from autolr.train.run import train
from tests import tiny

TASK = Classification(("a", "b", "c"))
TRAINING = Training(batch_size=4, weight_decay=0.1, clip_norm=0.5)
STEPS = 5
RATES = {"q": 2e-3, "k": 0.0, "v": 8e-3, "head": 1e-2}


def alone(base, config, order):
    """The same in stock PEFT, torch's AdamW, and rows that take a part of its step."""
    model = adapters.peft_model(base, "qv", config.rank, 16.0, config.seed, config.kind)
    for p in model.parameters():
        if p.requires_grad:
            p.data = p.data.double()
    groups = grouped(model, {role: rate for role, rate in config.rates.items() if rate}, weight_decay=0.1)
    heads = {name: own for name, own in config.heads.items() if not name.endswith((".key", ".k", "k_proj"))}
    optimizer = HeadAdamW(groups, head_factors(model, heads), betas=TRAINING.betas, eps=TRAINING.eps)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule_factor(TRAINING, step, STEPS))
    for rows in order:
        batch = tiny.tokens().collate(rows)
        optimizer.zero_grad()
        TASK.batch_losses(forward(model, batch), batch["labels"])[0].backward()
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 0.5)
        optimizer.step()
        schedule.step()
    return {name: value.detach() for name, value in adapters.values_of(model).items()}


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2", "falcon:new"])
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_guided_slot_is_an_ordinary_run_at_rates_of_heads(family, kind):
    base = tiny.base(family, torch.float64)
    heads = guide.multiples(base, pattern.measure(base, TASK, tiny.tokens(8)))
    assert len({m for own in heads.values() for m in own}) > 3
    rank = 0 if kind == "full" else 3
    guided = SlotConfig(RATES, rank, 1, STEPS, kind=kind, heads=heads)
    plain = SlotConfig(RATES, rank, 2, STEPS, kind=kind)
    with Pack(base, TRAINING, TASK, tiny.tokens(), capacity=3, max_rank=rank, alpha=16.0, kinds=(kind,)) as pack:
        gone = pack.admit(guided)
        slots = [pack.admit(plain), pack.admit(guided)]
        pack.evict(gone)  # its factors must not stay with the row, nor those of others be lost
        slots.append(pack.admit(SlotConfig(RATES, rank, 3, STEPS, kind=kind)))
        for _ in range(STEPS):
            pack.step()
        values = [(slot.config, slot.order, pack.values(slot)) for slot in slots]
    for config, order, packed in values:
        for name, value in alone(tiny.base(family, torch.float64), config, order).items():
            torch.testing.assert_close(packed[name], value, rtol=1e-9, atol=1e-11)


def test_multiples_spread_the_rate_and_keep_it():
    rng = np.random.default_rng(0)
    found = guide.factors(rng.gamma(1.0, size=(2, 4)))
    assert np.log(found).mean() == pytest.approx(0.0)
    assert found.max() <= guide.MOST**2 and np.argmax(found) == np.argmax(rng.gamma(1.0, size=(2, 4)) * 0 + found)
    assert guide.factors(np.ones((2, 4))) == pytest.approx(np.ones((2, 4)))
    assert guide.factors(np.array([[1.0, 4.0]]))[0, 1] == pytest.approx(2**0.5)


def test_shared_values_take_the_mean_of_their_queries():
    base = tiny.base("llama")
    layers = tuple(site.module for site in pattern.output_sites(base))
    values = np.array([[1.0, 4.0, 2.0, 2.0], [1.0, 1.0, 1.0, 1.0]])
    found = guide.spread(base, values, layers)
    assert found["model.layers.0.self_attn.q_proj"] == [1.0, 4.0, 2.0, 2.0]
    assert found["model.layers.0.self_attn.v_proj"] == [2.0, 2.0]
    assert found["model.layers.0.self_attn.k_proj"] == [2.0, 2.0]
    assert set(found["model.layers.1.self_attn.v_proj"]) == {1.0}


def test_from_a_study_to_the_full_run(small_study, tmp_path):
    space = small_study.space.model_copy(update={"guide": ["none", "heads"], "rank": [4]})
    study = small_study.model_copy(update={"space": space})
    result = search(study, tmp_path / "run", device="cpu")
    tried = {trial.candidate.guide for trial in result.trials}
    assert tried == {"none", "heads"}
    assert any("by heads" in trial.candidate.describe() for trial in result.trials)
    setting = read_setting(study, torch.device("cpu"))
    heads = {name: own for name, own in setting.space.heads.items() if not name.endswith("key")}
    candidate = result.recipe.candidate.model_copy(update={"guide": "heads"})
    rates = result.recipe.rates.model_copy(update={"heads": heads})
    plain = result.recipe.model_copy(update={"candidate": candidate.model_copy(update={"guide": "none"})})
    plain = plain.model_copy(update={"rates": rates.model_copy(update={"heads": {}})})
    guided = plain.model_copy(update={"candidate": candidate, "rates": rates})
    guided.save(tmp_path / "recipe.yaml")
    assert Recipe.load(tmp_path / "recipe.yaml").rates.heads == heads
    losses = [train(one, tmp_path / one.candidate.guide, device="cpu").confirm["loss"] for one in (plain, guided)]
    assert losses[0] != losses[1] and max(losses) < 1


def test_what_is_no_guide_is_refused(small_study, tmp_path):
    small_study.save(tmp_path / "study.yaml")
    with pytest.raises(DocumentError, match="guide"):
        Study.load(tmp_path / "study.yaml", ["space.guide=tails"])
