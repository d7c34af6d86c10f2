"""Projections by family, loading, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from autolr.data import demo
from autolr.errors import ModelError
from autolr.model import adapters, backbone, loading, projections
from tests import tiny


@pytest.mark.parametrize("family", tiny.SEPARATE)
def test_projections_are_those_peft_knows_and_parameters_are_counted_as_peft_counts(family):
    base = tiny.base(family)
    roles = [site.role for site in base.projections.sites]
    assert roles[:8] == ["q", "k", "v", "o"] * 2 and set(roles[8:]) <= {"mlp"}
    assert base.projections.coverage == "q and v in 2 of 2 layers" and base.projections.warning is None
    if family in tiny.DECODERS:
        assert {site.d_out for site in base.projections.of("qv")} == {32, 16}
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN

    counted = adapters.parameters(base, "qv", 4)
    own = sorted({site.name.rpartition(".")[2] for site in base.projections.of("qv")})
    targets = KNOWN.get(family, own)
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS, r=4, target_modules=targets, modules_to_save=list(base.head) or None
    )
    model = get_peft_model(base.model, config)
    trainable = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    if sorted(targets) == own:
        assert counted["adapter"] == sum(n for name, n in trainable.items() if "lora_" in name)
    assert counted["head"] == sum(n for name, n in trainable.items() if "modules_to_save" in name)
    assert (counted["head"] > 0) == (family not in tiny.LANGUAGE_ONLY)


# Rows of q and v in the first layer, worked out by hand from the code of each family: four heads of
# eight, so that a matrix with as many keys as queries has 96 rows.
ROWS = {
    "gpt2": (range(32), range(64, 96)),
    "mpt": (range(32), range(64, 96)),
    "modernbert": (range(32), range(64, 96)),
    "gpt_bigcode:mqa": (range(32), range(40, 48)),
    "falcon:mqa": (range(32), range(40, 48)),
    "phi3": (range(32), range(48, 64)),
    **dict.fromkeys(
        ("gpt_neox", "bloom", "falcon:mha", "gpt_bigcode:mha"),
        (
            [*range(8), *range(24, 32), *range(48, 56), *range(72, 80)],
            [24 * h + 16 + i for h in range(4) for i in range(8)],
        ),
    ),
    "falcon:new": ([*range(16), *range(32, 48)], [*range(24, 32), *range(56, 64)]),
}


@pytest.mark.parametrize("family", tiny.FUSED)
def test_rows_of_fused_projections(family):
    base = tiny.base(family)
    assert base.projections.coverage == "q and v in 2 of 2 layers"
    first = {site.role: site for site in base.projections.sites[:3]}
    for role, expected in zip("qv", ROWS[family], strict=True):
        assert first[role].rows.index() == list(expected)
        assert first[role].d_out == len(expected) and first[role].d_in == 32
    assert first["q"].module == first["v"].module and first["q"].name == f"{first['q'].module}.q"


def test_a_gate_inside_q_proj_is_no_query_and_layers_without_q_and_v_are_counted():
    shape = {**tiny.GROUPED, "linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 8}
    shape |= {"linear_value_head_dim": 8, "layer_types": ["linear_attention", "full_attention"]}
    model = AutoModelForSequenceClassification.from_config(tiny.config_of("qwen3_5_text", shape))
    found = projections.find(model, "tiny")
    assert found.coverage == "q and v in 1 of 2 layers"
    assert found.warning == "q and v in 1 of 2 layers; the other 1 are not tuned"
    q = found.sites[0]
    assert q.module.endswith("q_proj") and q.d_out == 32
    assert q.rows.index() == [16 * head + row for head in range(4) for row in range(8)]


@pytest.mark.parametrize("family", ["deepseek_v2", "deepseek_v3"])
def test_latent_attention_is_refused_with_the_reason(family):
    shape = {**tiny.GROUPED, "num_key_value_heads": 4, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4}
    shape |= {"n_routed_experts": 4, "first_k_dense_replace": 2, "n_group": 1, "topk_group": 1}
    model = AutoModelForSequenceClassification.from_config(tiny.config_of(family, shape))
    with pytest.raises(ModelError, match="kv_b_proj.*no W_v"):
        projections.find(model, family)


@pytest.mark.parametrize(
    ("family", "shape"), [("fnet", tiny.ENCODER), ("mamba", {"hidden_size": 32, "num_hidden_layers": 2})]
)
def test_a_model_without_q_and_v_is_refused_with_its_modules(family, shape):
    model = AutoModel.from_config(tiny.config_of(family, shape))
    with pytest.raises(ModelError, match="no attention layer has query and value projections") as error:
        projections.find(model, family)
    assert f"family {family!r}" in str(error.value) and "Linear" in str(error.value)


def test_a_family_without_a_classification_class_is_refused(tmp_path):
    tiny.model("cohere").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no sequence-classification class.*'cohere'"):
        backbone.load(str(tmp_path), ["a", "b"])


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
    same = backbone.load(model_folders["bert"], ["0", "1", "2"])
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
    demo.model_path.cache_clear()
    monkeypatch.setattr(demo, "MODEL_SHA256", "0" * 64)
    with pytest.raises(ModelError, match="sha256"):
        demo.model_path(demo.MODEL)
    demo.model_path.cache_clear()


def test_what_cannot_be_loaded_is_said_why(tmp_path):
    def refused(source: str) -> str:
        with pytest.raises(ModelError) as error:
            backbone.load(source, ["a", "b"])
        return str(error.value)

    assert "no such folder or .gguf file" in refused(str(tmp_path / "none"))
    assert "no config.json" in refused(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    assert "not readable JSON" in refused(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    assert "never loaded" in refused(str(tmp_path))
    assert "no local folder" in refused("nobody/nothing")
    assert "the embedded models are" in refused("demo:other")


def test_dropout_is_off_everywhere():
    for family in ("bert", "distilbert", "opt", "mistral", "gpt2", "mpt", "modernbert", "falcon"):
        config = AutoConfig.for_model(family)
        loading.disable_dropout(config)
        if family == "mpt":
            assert config.attn_config.attn_pdrop == config.attn_config.to_dict()["attn_pdrop"] == 0
        dropouts = {k: v for k, v in config.to_dict().items() if ("drop" in k) and isinstance(v, float)}
        assert dropouts and not any(dropouts.values())
