"""How a base comes to a GPU: its types, what is computed in few bits, and what it does not cache."""

from __future__ import annotations

import importlib.util

import pytest
import torch
import transformers

from autolr.errors import ModelError
from autolr.model import backbone, precision
from tests import tiny
from tests.gpu.training import base_on, config, pack_on


@pytest.fixture
def loaded(monkeypatch):
    """What transformers is asked for, and the types of what it gives."""
    seen: list[dict] = []
    own = transformers.AutoModelForSequenceClassification.from_pretrained

    def from_pretrained(*args, **kwargs):
        model, info = own(*args, **kwargs)
        seen.append({**kwargs, "types": {parameter.dtype for parameter in model.parameters()}})
        return model, info

    monkeypatch.setattr(transformers.AutoModelForSequenceClassification, "from_pretrained", from_pretrained)
    return seen


def test_a_checkpoint_in_bf16_is_not_blown_up_on_its_way_to_a_gpu(gpu, loaded, model_folders, tmp_path):
    model = tiny.model("llama", torch.bfloat16)
    model.save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(model_folders["llama"]).save_pretrained(tmp_path)
    on_gpu = backbone.load(str(tmp_path), ["a", "b", "c"], "cuda", "auto")
    assert loaded[-1]["types"] == {torch.bfloat16} and on_gpu.precision == "bf16"
    assert {parameter.dtype for parameter in on_gpu.model.parameters()} == {torch.bfloat16}
    on_cpu = backbone.load(str(tmp_path), ["a", "b", "c"], "cpu", "fp32")
    assert loaded[-1]["types"] == {torch.float32}
    assert on_gpu.fingerprint() == on_cpu.fingerprint()


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_buffers_keep_their_type(gpu, model_folders, family):
    # Rotary frequencies in bf16 would turn long texts by wrong angles.
    models = [
        backbone.load(model_folders[family], ["a", "b", "c"], device, "auto").model for device in ("cpu", "cuda")
    ]
    found, expected = (
        {name: (value.dtype, value.cpu()) for name, value in m.named_buffers()} for m in reversed(models)
    )
    assert found.keys() == expected.keys() and found
    for name, (dtype, value) in expected.items():
        assert found[name][0] == dtype and torch.equal(found[name][1], value)


def test_a_gpu_without_bf16_keeps_float32(make_gpu, model_folders):
    make_gpu(bf16=False)
    base = backbone.load(model_folders["bert"], ["a", "b", "c"], "cuda", "auto")
    assert base.precision == "fp32" and next(base.model.parameters()).dtype == torch.float32


@pytest.mark.parametrize("wanted", ["nf4", "int8"])
def test_few_bits_compute_in_bf16_where_the_gpu_has_it(make_gpu, monkeypatch, model_folders, wanted):
    # bitsandbytes need not be there: what it is asked for is looked at.
    asked: dict = {}

    def from_pretrained(*args, **kwargs):
        asked.update(kwargs)
        raise OSError("seen enough")

    own = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: object() if name == "bitsandbytes" else own(name, *a)
    )
    monkeypatch.setattr(transformers.BitsAndBytesConfig, "post_init", lambda self: None)  # looks for its version
    monkeypatch.setattr(transformers.AutoModelForSequenceClassification, "from_pretrained", from_pretrained)
    for bf16, expected in ((True, torch.bfloat16), (False, torch.float32)):
        make_gpu(bf16=bf16)
        with pytest.raises(ModelError, match="seen enough"):
            backbone.load(model_folders["llama"], ["a", "b", "c"], "cuda", wanted)
        settings = asked["quantization_config"]
        assert asked["dtype"] == expected and settings.load_in_4bit == (wanted == "nf4")
        if wanted == "nf4":
            assert settings.bnb_4bit_compute_dtype == expected and settings.bnb_4bit_quant_type == "nf4"
    assert precision.quantization("bf16", None, "m", torch.device("cuda")) is None


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3_text", "gpt2", "llama/lm", "gpt_neox/lm"])
def test_no_pass_fills_a_cache(gpu, monkeypatch, family):
    kept = []
    own = transformers.DynamicCache.update
    monkeypatch.setattr(transformers.DynamicCache, "update", lambda *a, **k: kept.append(a) or own(*a, **k))
    base = base_on(family, "cuda")
    with pack_on(base, family) as pack:
        slot = pack.admit(config(0))
        pack.step()
        pack.evaluate([slot], pack.data, averaged=False)
    assert not kept and base.model.config.get_text_config().use_cache is False
