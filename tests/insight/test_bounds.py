"""Costs and bounds against the papers' own figures."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForSequenceClassification

from autolr.insight import bounds
from autolr.model import adapters, backbone
from tests import tiny

TABLE2 = Path(__file__).parents[2] / "studies" / "research" / "tables" / "table2.csv"
ROBERTA = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
LLAMA = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8}
# The dense layer of RoBERTa's head; its output layer is not in the paper's counts.
DENSE = 768 * 768 + 768


def shape_of(family, **shape):
    """A model of full size without any numbers."""
    config = AutoConfig.for_model(family, num_labels=2, pad_token_id=1, **shape)
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    fresh = frozenset(n for n, _ in model.named_parameters() if not n.startswith(f"{model.base_model_prefix}."))
    return backbone.from_model(model, None, family, fresh)


@pytest.fixture(scope="module")
def roberta():
    return shape_of("roberta", **ROBERTA)


def test_table_2_counts_are_adapter_and_head_and_for_lora_the_head_twice(roberta):
    with TABLE2.open(encoding="utf-8") as file:
        rows = {(r["method"].lower(), r["targets"].lower(), int(r["rank"] or 0)): r for r in csv.DictReader(file)}
    off = []
    for (kind, targets, rank), row in rows.items():
        if kind == "before":
            continue
        adapter = bounds.cost(roberta, targets, rank, kind, 1).adapter
        # Full fine-tuning trains the matrices' biases in the paper's code; ours keeps them, as LoRA does.
        biases = 12 * len(targets) * 768 if kind == "full" else 0
        printed = adapter + biases + DENSE * (2 if kind == "lora" else 1)
        if f"{printed / 1e6:.2f}" != row["params_m"]:
            off.append((kind, targets, rank, round(printed / 1e6, 2), float(row["params_m"])))
    # All to the digit, but one that is a hundredth above what any count of these parameters gives.
    assert off == [("dora", "qkv", 16, 1.50, 1.51)]


def test_what_is_trained_is_counted_once(roberta):
    found = bounds.cost(roberta, "qv", 8, "lora", 1)
    assert (found.adapter, found.head) == (294_912, 592_130)
    assert found.optimizer_bytes == 16 * (294_912 + 592_130)
    assert bounds.cost(roberta, "qv", 8, "dora", 1).adapter == 294_912 + 24 * 768
    assert bounds.cost(roberta, "qv", 8, "full", 1).adapter == 24 * 768 * 768


def test_ratios_of_theorem_1(roberta):
    qv, qkv = (bounds.cost(roberta, targets, 8, "lora", 67_349) for targets in ("qv", "qkv"))
    assert bounds.ratios([qv, qkv]) == pytest.approx([1.0, math.sqrt(6 / 4)])
    assert math.sqrt(6 / 4) == pytest.approx(1.2247, abs=5e-5)
    # The paper's own form, and a value that promises nothing for a loss in [0, 1].
    assert qv.gap == pytest.approx(math.sqrt(4 * 0.25 / 67_349 * 16 * 8 * 12 * (768 + 768)))
    assert qv.gap == pytest.approx(5.9, abs=0.05)


def test_grouped_queries_make_v_and_k_smaller():
    llama = shape_of("llama", intermediate_size=14336, vocab_size=128_256, head_dim=128, **LLAMA)
    qv, qkv = (bounds.cost(llama, targets, 16, "lora", 1000) for targets in ("qv", "qkv"))
    assert (qv.adapter, qkv.adapter) == (6_815_744, 9_437_184)
    assert bounds.ratios([qv, qkv])[1] == pytest.approx(1.177, abs=5e-4)
    assert 1 - qv.adapter / qkv.adapter == pytest.approx(0.278, abs=5e-4)


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "falcon:new"])
@pytest.mark.parametrize("kind", ["lora", "full", "dora"])
def test_saved_bytes_are_those_of_the_file(family, kind, tmp_path):
    base = tiny.base(family)
    if kind == "dora" and any(site.rows for site in base.projections.sites):
        pytest.skip("DoRA is refused on fused matrices")
    found = bounds.cost(base, "qv", 2, kind, 1)
    adapters.peft_model(base, "qv", found.rank, 16.0, 0, kind).save_pretrained(str(tmp_path))
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert found.saved_bytes == sum(t.numel() * t.element_size() for t in tensors.values())
