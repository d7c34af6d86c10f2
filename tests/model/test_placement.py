"""Where a base goes: chosen from sizes, and a base that is split trains what a whole one does."""

from __future__ import annotations

import re

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from autolr.data.tasks import Classification
from autolr.errors import ModelError
from autolr.model import backbone, placement
from autolr.model.placement import GIB, decide
from autolr.pack.pack import Pack
from autolr.pack.slots import SlotConfig
from autolr.schema.training import Training
from autolr.tuner.dry_run import plan
from tests import tiny

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
BILLION = 10**9


@pytest.fixture(autouse=True)
def bf16(monkeypatch):
    monkeypatch.setattr(placement, "choose", lambda wanted, device: "bf16" if wanted == "auto" else wanted)


@pytest.mark.parametrize(
    ("billions", "wanted", "free", "has_4_bits", "precision", "split", "said"),
    [
        (8, "auto", {0: 80}, False, "auto", False, "on one device: 8 billion parameters take 14.9 GiB in bf16, 80.0"),
        (8, "fp32", {0: 80}, False, "fp32", False, "take 29.8 GiB in fp32"),
        (8, "auto", {0: 12}, True, "nf4", False, "in 4 bits: .* too much for one device .*bitsandbytes is installed"),
        (8, "auto", {0: 12, 1: 12}, True, "nf4", False, "in 4 bits"),
        (8, "auto", {0: 12, 1: 12}, False, "auto", True, "split over 2 devices: .*bitsandbytes is not installed"),
        (70, "auto", {0: 24, 1: 80, 2: 80}, True, "auto", True, "split over 3 devices: .*nor does it in 4 bits"),
        (8, "bf16", {0: 12, 1: 12}, True, "bf16", True, "4 bits were not asked for"),
        (8, "nf4", {0: 12, 1: 12}, True, "nf4", False, "on one device"),
    ],
)
def test_what_is_chosen_and_why(billions, wanted, free, has_4_bits, precision, split, said):
    free = {index: gib * GIB for index, gib in free.items()}
    found = decide(billions * BILLION, wanted, GPU, free, "m", has_4_bits)
    assert found.precision == precision and (found.split is not None) == split
    assert re.search(said, found.reason), found.reason


@pytest.mark.parametrize(
    ("billions", "wanted", "free", "has_4_bits", "remedy"),
    [
        (70, "auto", {0: 12}, False, "pip install bitsandbytes for 4 bits"),
        (400, "auto", {0: 12, 1: 12}, True, "all 2 devices together do not hold it either; choose a smaller model"),
        (8, "fp32", {0: 12}, True, "take training.precision=nf4"),
    ],
)
def test_what_fits_nowhere_is_refused_before_anything_is_loaded(billions, wanted, free, has_4_bits, remedy):
    free = {index: gib * GIB for index, gib in free.items()}
    with pytest.raises(ModelError, match=f"model 'm': {billions} billion parameters .*{remedy}"):
        decide(billions * BILLION, wanted, GPU, free, "m", has_4_bits)
    with pytest.raises(ModelError, match="are free on cpu"):
        decide(billions * BILLION, "fp32", CPU, {0: GIB}, "m", has_4_bits)


def test_the_plan_says_where_the_base_goes(small_study, monkeypatch):
    assert plan(small_study, "cpu").base.startswith("on one device: ")
    monkeypatch.setattr(placement, "free_bytes", lambda device: {0: 10_000})
    with pytest.raises(ModelError, match="are free on cpu"):
        plan(small_study, "cpu")


def test_parameters_are_counted_without_loading(model_folders):
    for name in ("bert", "lm"):
        task = "lm" if name == "lm" else "classification"
        base = backbone.load(model_folders[name], [] if name == "lm" else ["a", "b"], task=task)
        config = base.model.config
        kind = AutoModelForCausalLM if name == "lm" else AutoModelForSequenceClassification
        assert placement.count(kind, config) == sum(p.numel() for p in base.model.parameters())


def test_layers_stay_whole_and_fill_the_devices_in_their_order():
    model = tiny.model("llama")
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    found = placement.device_map(model, {0: int(0.7 * size), 1: size})
    layers = [device for name, device in found.items() if "layers." in name]
    assert set(found.values()) == {0, 1} and layers == sorted(layers)
    assert all(name.count(".") <= 2 for name in found if "layers." in name), found


@pytest.mark.parametrize("kind", ["lora", "dora", "full"])
def test_a_base_in_parts_trains_what_a_whole_one_does(kind):
    """Both parts lie on the CPU, each with the hooks that move what goes from one to the next."""

    def trained(spread: bool):
        base = tiny.base("llama", torch.float64)
        if spread:
            parts = {name: "cpu" for name, _ in base.model.named_children() if name != "model"}
            parts |= {f"model.{name}": "cpu" for name, _ in base.model.model.named_children() if name != "layers"}
            parts |= {f"model.layers.{n}": "cpu" for n in range(len(base.model.model.layers))}
            placement.spread(base.model, parts)
            assert all(hasattr(layer, "_hf_hook") for layer in base.model.model.layers)
        task, rank = Classification(("a", "b", "c")), 0 if kind == "full" else 4
        with Pack(
            base, Training(batch_size=4), task, tiny.tokens(), capacity=2, max_rank=rank, lora_alpha=8.0, kinds=[kind]
        ) as pack:
            rates = {"q": 1e-2, "k": 0.0, "v": 2e-2, "head": 1e-2}
            slots = [pack.admit(SlotConfig(rates, rank=rank, seed=seed, steps=8, kind=kind)) for seed in range(2)]
            for _ in range(3):
                pack.step()
            return [pack.values(slot) for slot in slots]

    for own, other in zip(trained(True), trained(False), strict=True):
        for name, value in own.items():
            torch.testing.assert_close(value, other[name], rtol=0, atol=1e-9)
