"""Products in bf16: close to float32, exact on request, and never in what is trained."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from autolr.model import backbone, precision
from autolr.pack.pack import Pack
from autolr.pack.slots import SlotConfig
from autolr.schema.training import Training
from tests import tiny
from tests.pack.test_packed_equals_alone import TASK

IDS = torch.arange(5, 29).view(2, 12)


def gpt2() -> torch.nn.Module:
    config = AutoConfig.for_model(
        "gpt2", vocab_size=60, n_embd=32, n_layer=2, n_head=4, n_positions=64, pad_token_id=1, num_labels=3
    )
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(config).eval().requires_grad_(False)


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits


@pytest.mark.parametrize("make", [lambda: tiny.model("bert"), lambda: tiny.model("llama"), gpt2])
def test_rounded_products_are_close_and_exact_ones_are_back(make):
    model = make()
    before = logits(model)
    precision.round_products(model, ("classifier", "score"))
    rounded = logits(model)
    error = float((rounded - before).norm() / before.norm())
    assert 1e-5 < error < 3e-2
    with precision.exact(model):
        assert torch.equal(logits(model), before)
    assert torch.equal(logits(model), rounded)


def test_the_products_are_torchs_own_in_bf16():
    torch.manual_seed(0)
    linear = torch.nn.Linear(40, 24).requires_grad_(False)
    model = torch.nn.Sequential(linear)
    x = torch.randn(7, 40, requires_grad=True)
    precision.round_products(model, ())
    out = model(x)
    expected = (x.bfloat16() @ linear.weight.bfloat16().T).float() + linear.bias
    assert torch.equal(out, expected)
    out.backward(torch.ones_like(out))
    assert x.grad is not None
    torch.testing.assert_close(x.grad, linear.weight.sum(0).expand(7, 40), rtol=2e-2, atol=2e-2)


def test_trained_modules_keep_their_products():
    model = tiny.model("bert")
    precision.round_products(model, ("bert.pooler", "classifier"))
    rounded = {name for name, module in model.named_modules() if precision._is_rounded(module)}
    assert "bert.encoder.layer.0.attention.self.query" in rounded
    assert not {"bert.pooler.dense", "classifier"} & rounded


def test_a_pack_learns_nearly_the_same():
    curves = []
    for halved in (False, True):
        base = tiny.base("bert")
        if halved:
            precision.round_products(base.model, base.head)
        config = SlotConfig({"q": 2e-3, "v": 2e-3, "head": 1e-2}, rank=4, seed=0, steps=30)
        with Pack(base, Training(batch_size=8), TASK, tiny.tokens(), capacity=1, max_rank=4, lora_alpha=16) as pack:
            slot = pack.admit(config)
            for _ in range(30):
                pack.step()
            curves.append(torch.tensor(slot.losses))
    assert 0 < float((curves[0] - curves[1]).abs().max()) < 0.05
    assert curves[0][-5:].mean() < curves[0][:5].mean()


def test_auto_asks_the_processor(monkeypatch):
    cpu = torch.device("cpu")
    for instruction in precision.BF16_INSTRUCTIONS:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda has=instruction: {has: True}, raising=False)
        assert precision.choose("auto", cpu) == "bf16"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True}, raising=False)
    assert precision.choose("auto", cpu) == "fp32"
    assert precision.choose("bf16", cpu) == "bf16"


def test_the_fingerprint_is_that_of_the_weights(model_folders):
    exact = backbone.load(model_folders["bert"], ["a", "b"], wanted="fp32")
    rounded = backbone.load(model_folders["bert"], ["a", "b"], wanted="bf16")
    assert (exact.precision, rounded.precision) == ("fp32", "bf16")
    assert exact.fingerprint() == rounded.fingerprint()
    assert copy.deepcopy(rounded.model).state_dict().keys() == exact.model.state_dict().keys()
