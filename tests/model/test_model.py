"""Projections by family, loading, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from transformers import AutoConfig, AutoModelForSequenceClassification

from autolr.data import demo
from autolr.errors import ModelError
from autolr.model import adapters, backbone, projections
from tests import tiny


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_projections_are_those_peft_knows_and_parameters_are_counted_as_peft_counts(family):
    base = tiny.base(family)
    assert len(base.projections.sites) == 6
    assert base.projections.coverage == "q and v in 2 of 2 layers"
    if family in tiny.DECODERS:
        assert {site.d_out for site in base.projections.of("qv")} == {32, 16}
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN

    counted = adapters.parameters(base, "qv", 4)
    own = sorted({site.name.rpartition(".")[2] for site in base.projections.of("qv")})
    targets = KNOWN.get(family, own)
    config = LoraConfig(task_type=TaskType.SEQ_CLS, r=4, target_modules=targets, modules_to_save=list(base.head))
    model = get_peft_model(base.model, config)
    trainable = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    if sorted(targets) == own:
        assert counted["adapter"] == sum(n for name, n in trainable.items() if "lora_" in name)
    assert counted["head"] == sum(n for name, n in trainable.items() if "modules_to_save" in name) > 0


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_a_model_without_separate_projections_is_refused_with_its_modules(family):
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = AutoConfig.for_model(family, vocab_size=50, **shape)
    model = AutoModelForSequenceClassification.from_config(config)
    with pytest.raises(ModelError, match="fused projections are not supported yet") as error:
        projections.find(model, family)
    assert "attn" in str(error.value) or "query_key_value" in str(error.value)


def test_the_head_is_drawn_by_the_seed_as_the_family_draws_it():
    base = tiny.base("roberta")
    head = backbone.fresh_head(base, seed=3)
    assert list(head) == list(base.head_parameters())
    again, other = backbone.fresh_head(base, seed=3), backbone.fresh_head(base, seed=4)
    weight = "classifier.dense.weight"
    assert torch.equal(head[weight], again[weight]) and not torch.equal(head[weight], other[weight])
    assert head[weight].std() == pytest.approx(base.model.config.initializer_range, rel=0.15)
    assert head["classifier.dense.bias"].abs().sum() == 0


def test_a_head_from_the_checkpoint_is_kept(model_folders):
    same = backbone.load(model_folders["bert"], ["a", "b", "c"])
    assert not same.fresh
    head = backbone.fresh_head(same, seed=0)
    assert torch.equal(head["classifier.weight"], same.model.classifier.weight)
    other = backbone.load(model_folders["bert"], ["a", "b"])
    assert other.fresh == {"classifier.weight", "classifier.bias"}


def test_the_embedded_model_is_the_one_with_the_known_checksum(monkeypatch):
    base = backbone.load(demo.MODEL, ["negative", "positive"])
    assert base.head == ("classifier",)
    assert len(base.projections.of("qv")) == 12
    assert base.max_length == 512
    demo.model_folder.cache_clear()
    monkeypatch.setattr(demo, "MODEL_SHA256", "0" * 64)
    with pytest.raises(ModelError, match="sha256"):
        demo.model_folder(demo.MODEL)
    demo.model_folder.cache_clear()


def test_what_cannot_be_loaded_is_said_why(tmp_path):
    def refused(source: str) -> str:
        with pytest.raises(ModelError) as error:
            backbone.load(source, ["a", "b"])
        return str(error.value)

    assert "no such folder" in refused(str(tmp_path / "none"))
    assert "no config.json" in refused(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    assert "not readable JSON" in refused(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    assert "never loaded" in refused(str(tmp_path))
    assert "no local folder" in refused("nobody/nothing")
    assert "only embedded model" in refused("demo:other")


def test_dropout_is_off_everywhere():
    for family in ("bert", "distilbert", "opt", "mistral"):
        config = AutoConfig.for_model(family)
        backbone.disable_dropout(config)
        dropouts = {k: v for k, v in config.to_dict().items() if "dropout" in k and isinstance(v, float)}
        assert dropouts and not any(dropouts.values())
