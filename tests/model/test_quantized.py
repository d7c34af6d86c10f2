"""Bases in few bits: refused with the remedy where bitsandbytes is missing, equal to stock PEFT where it is not."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from peft import PeftModel

from autolr.conformance import equal
from autolr.conformance.bench import Bench, random_tokens
from autolr.errors import ModelError
from autolr.model import adapters, backbone, precision
from autolr.pack.slots import SlotConfig
from tests.model.test_loading import TASK

CPU = torch.device("cpu")
there = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes")


@pytest.mark.parametrize("wanted", precision.QUANTIZED)
def test_without_bitsandbytes_a_quantized_base_is_refused(model_folders, monkeypatch, wanted):
    monkeypatch.setattr(precision.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=f"training.precision {wanted}: this needs bitsandbytes; pip install"):
        backbone.load(model_folders["llama"], ["0", "1"], wanted=wanted)
    with pytest.raises(ModelError, match="its checkpoint is quantized: this needs bitsandbytes"):
        precision.quantization("auto", {"quant_method": "bitsandbytes", "load_in_4bit": True}, "x", CPU)


def test_a_checkpoint_quantized_otherwise_is_refused():
    with pytest.raises(ModelError, match="quantized with gptq.*take the model's plain weights"):
        precision.quantization("auto", {"quant_method": "gptq", "bits": 4}, "x", CPU)
    assert precision.quantization("bf16", None, "x", CPU) is None


@there
@pytest.mark.parametrize("wanted", precision.QUANTIZED)
def test_a_slot_on_a_quantized_base_learns_what_stock_peft_learns(model_folders, tmp_path, wanted):
    base = backbone.load(model_folders["llama"], ["0", "1"], wanted=wanted)
    assert base.model.is_quantized
    rates = {"q": 2e-3, "v": 8e-3, "head": 1e-2}
    slots = [("qv", SlotConfig(rates, 4, seed, 3)) for seed in range(2)]
    bench = Bench(base, random_tokens(base, 2), TASK, slots, [], tmp_path)
    bench.packed = equal._pack(bench, [config for _, config in slots])
    for (targets, config), (values, losses, order) in zip(slots, bench.packed, strict=True):
        with equal.adapted(base, targets, config) as model:
            assert isinstance(model, PeftModel)
            alone = equal._train(bench, model, config, order)
            assert losses == pytest.approx(alone, rel=1e-4)
            for name, value in adapters.values_of(model).items():
                assert torch.linalg.vector_norm(values[name] - value) <= 1e-3 * torch.linalg.vector_norm(value), name


@there
def test_methods_that_need_the_numbers_are_refused(model_folders):
    base = backbone.load(model_folders["llama"], ["0", "1"], wanted="nf4")
    for kind in ("dora", "full"):
        with pytest.raises(ModelError, match="quantized.*use lora or rslora"):
            adapters.check(base, base.projections.of("qv"), kind)
