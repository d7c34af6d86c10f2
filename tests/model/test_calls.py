"""Tokens without an embedding are refused; parts of a model that a task does not call get no adapter."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from autolr import cli
from autolr.errors import DataError, ModelError
from autolr.model import backbone, calls, projections
from autolr.model.meta_model import outline
from autolr.tuner.setting import read_setting
from tests import tiny
from tests.conftest import tokenizer_with

SEQ2SEQ = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64,
    "vocab_size": 60, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 1, "forced_eos_token_id": None,
}  # fmt: skip
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
          "image_size": 16, "patch_size": 8}  # fmt: skip
SEEING = {
    "text_config": {**tiny.GROUPED, "vocab_size": 60, "sliding_window": 32, "max_position_embeddings": 64},
    "vision_config": VISION, "mm_tokens_per_image": 1, "image_token_index": 59, "boi_token_index": 57,
    "eoi_token_index": 58,
}  # fmt: skip
DECODER = {**tiny.ENCODER, "vocab_size": 60, "is_decoder": True, "add_cross_attention": True}


@pytest.fixture(params=["bert", "lm"])
def with_more_tokens(request, model_folders, tmp_path) -> str:
    """A model whose tokenizer was given tokens, while the embeddings stayed as they were."""
    auto = AutoModelForCausalLM if request.param == "lm" else AutoModelForSequenceClassification
    model = auto.from_pretrained(model_folders[request.param])
    rows = model.get_input_embeddings().num_embeddings
    tokenizer = tokenizer_with(cls_token="[CLS]", eos_token="[SEP]")
    tokenizer.add_tokens([f"new{number}" for number in range(rows - len(tokenizer) + 2)])
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return str(tmp_path)


@pytest.mark.parametrize("words", [["validate", "--model"], ["search", "--data", "{data}", "--dry-run", "--model"]])
def test_tokens_without_an_embedding(with_more_tokens, reviews, capsys, words):
    task = ["--task", "lm"] if words[0] == "validate" else ["task=lm"]
    config = AutoConfig.from_pretrained(with_more_tokens)
    task = task if config.architectures[0].endswith("CausalLM") else []
    with pytest.raises(SystemExit) as end:
        cli.main([*(word.replace("{data}", reviews) for word in words), with_more_tokens, *task])
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.count("\n") == 1
    assert f"2 tokens without an embedding (the first: 'new{config.vocab_size - 47}', id {config.vocab_size};" in said
    assert f"model.resize_token_embeddings({config.vocab_size + 2})" in said
    auto = AutoModelForCausalLM if task else AutoModelForSequenceClassification
    mended = auto.from_pretrained(with_more_tokens)  # what the message says mends it
    mended.resize_token_embeddings(config.vocab_size + 2)
    mended.save_pretrained(with_more_tokens)
    assert backbone.load(with_more_tokens, [] if task else ["a", "b"], task="lm" if task else "classification")


def test_a_token_beyond_the_embeddings_names_its_row(small_study, monkeypatch):
    monkeypatch.setattr(backbone.Backbone, "vocabulary", 6)
    with pytest.raises(
        DataError, match=r"row 1 contains the token '\w+' \(id \d+\), for which the model has no embedding"
    ):
        read_setting(small_study, torch.device("cpu"))


@pytest.mark.parametrize(
    ("family", "shape", "part", "layers"),
    [
        ("bart", SEQ2SEQ, "encoder_attn", 2),  # a decoder without an encoder
        ("bert", DECODER, "crossattention", 2),
        ("gemma3", SEEING, "vision_tower", 2),
    ],
)
def test_parts_that_a_language_model_does_not_call(family, shape, part, layers):
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **shape)).eval().requires_grad_(False)
    everything = projections.find(model, family)
    assert any(part in site.name for site in everything.sites)
    base = backbone.from_model(model, None, family, frozenset())
    found = base.projections
    assert not any(part in site.name for site in found.sites)
    assert (found.covered, found.layers) == (layers, layers)
    assert found.uncalled and all(part in kind for kind in found.uncalled)
    assert len(base.notes) == len(found.uncalled) and part in base.notes[0]
    seen = set()  # torch itself: which matrices have a gradient
    model.requires_grad_(True)
    model(torch.arange(8)[None]).logits.sum().backward()
    seen = {name.removesuffix(".weight") for name, p in model.named_parameters() if p.grad is not None}
    assert {site.module for site in found.sites if site.role in ("q", "k", "v")} <= seen
    assert not any(site.module in seen for site in everything.sites if part in site.name)


def test_a_part_that_is_called_keeps_its_adapters():
    config = AutoConfig.for_model("bart", num_labels=2, **SEQ2SEQ)
    model = AutoModelForSequenceClassification.from_config(config).eval().requires_grad_(False)
    fresh = frozenset(name for name, _ in model.named_parameters() if name.startswith("classification_head"))
    found = backbone.from_model(model, None, "bart", fresh).projections
    assert found.covered == 6 and not found.uncalled  # encoder, decoder, and what lies between them


def test_an_expert_that_no_token_chose_is_still_trained():
    found = tiny.base("qwen3_moe").projections
    assert not found.uncalled


@pytest.mark.parametrize("family", ["bert", "llama", "gpt_neox", "phi3", "deberta-v2"])
def test_a_configuration_alone_calls_the_same(family, tmp_path):
    model = tiny.model(family)
    model.config.save_pretrained(tmp_path)
    found = outline(str(tmp_path), outputs=3).projections
    assert found == projections.find(model, family, calls.called(model, None, family))


def test_a_model_that_cannot_read_a_text_is_refused(monkeypatch):
    model = tiny.model("bert")

    def fails(**_):
        raise ValueError("no text")

    monkeypatch.setattr(model, "forward", fails)
    with pytest.raises(ModelError, match="cannot read a text of 9 tokens: no text"):
        calls.called(model, None, "bert")
