"""How a model is loaded: half-precision checkpoints, the attention backend, checkpointed layers."""

from __future__ import annotations

import pytest
import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from autolr.data.tasks import Classification
from autolr.errors import ModelError
from autolr.finetune.run import train
from autolr.model import backbone
from autolr.pack.pack import Pack
from autolr.pack.slots import SlotConfig
from autolr.schema.candidate import Candidate
from autolr.schema.recipe import Rates, Recipe
from autolr.schema.training import Training
from tests import tiny

TASK = Classification(("0", "1"))


def trained(base, steps: int = 6, kind: str = "lora", passes: int = 1):
    """Return what two slots learn, and their losses."""
    data = tiny.tokens()
    data = type(data)(data.ids, [label % 2 for label in data.labels], data.pad_id)
    rank = 0 if kind == "full" else 4
    with Pack(
        base,
        Training(batch_size=4),
        TASK,
        data,
        capacity=2,
        max_rank=rank,
        lora_alpha=16,
        kinds=[kind],
        passes=passes,
    ) as pack:
        rates = {"q": 1e-3, "v": 4e-3, "head": 1e-2}
        slots = [pack.admit(SlotConfig(rates, rank, seed, steps, kind=kind)) for seed in range(2)]
        for _ in range(steps):
            pack.step()
        return [pack.values(slot) for slot in slots], [slot.losses for slot in slots]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_checkpoint_trains_as_its_weights_in_float32_do(model_folders, tmp_path, dtype):
    half = tiny.model("llama").to(dtype)
    half.save_pretrained(tmp_path / "half")
    half.float().save_pretrained(tmp_path / "whole")
    for folder in ("half", "whole"):
        tokenizer = backbone.load(model_folders["llama"], ["0", "1"]).tokenizer
        tokenizer.save_pretrained(tmp_path / folder)
    (one, losses), (other, expected) = (
        trained(backbone.load(str(tmp_path / folder), ["0", "1"])) for folder in ("half", "whole")
    )
    assert losses == expected
    for values, others in zip(one, other, strict=True):
        assert all(
            value.dtype == torch.float32 and torch.equal(value, others[name]) for name, value in values.items()
        )


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("family", ["bert", "llama", "gpt2"])
def test_checkpointed_layers_compute_twice_and_learn_the_same(model_folders, family, kind):
    plain, checkpointed = (
        backbone.load(model_folders[family], ["0", "1"], gradient_checkpointing=wanted) for wanted in (False, True)
    )
    layers = [m for m in checkpointed.model.modules() if isinstance(m, GradientCheckpointingLayer)]
    inside = next(child for child in layers[0].modules() if isinstance(child, torch.nn.LayerNorm | torch.nn.Linear))
    calls = []
    inside.register_forward_hook(lambda *_: calls.append(1))
    values, losses = trained(checkpointed, passes=2, kind=kind)
    expected, expected_losses = trained(plain, passes=2, kind=kind)
    assert len(calls) == 2 * 2 * 6  # two slots, six steps, forward and once more on the way back
    assert losses == expected_losses
    for one, other in zip(values, expected, strict=True):
        assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_full_run_with_checkpointed_layers_gives_the_same_adapter(small_study, model_folders, tmp_path):
    candidate = Candidate(lr_v=1e-2, ratio=4, rank=4)
    recipe = Recipe(
        name="small",
        model=model_folders["bert"],
        data=small_study.data,
        classes=["bad", "good"],
        method=small_study.method,
        candidate=candidate,
        rates=Rates(q=candidate.lr_q, v=candidate.lr_v, head=1e-2),
        training=small_study.training,
        steps=8,
    )
    checkpointed = recipe.training.model_copy(update={"gradient_checkpointing": True})
    plain = train(recipe, tmp_path / "plain", device="cpu")
    again = train(recipe.model_copy(update={"training": checkpointed}), tmp_path / "again", device="cpu")
    assert again.test == pytest.approx(plain.test, rel=1e-6)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_attention_backend_is_transformers_own(model_folders, attention):
    base = backbone.load(model_folders["bert"], ["0", "1"], attention=attention)
    assert base.model.config._attn_implementation == attention


def test_what_cannot_be_is_said(model_folders, monkeypatch):
    with pytest.raises(ModelError, match="flash_attention_2: runs on a GPU alone.*take sdpa or auto"):
        backbone.load(model_folders["bert"], ["0", "1"], attention="flash_attention_2")
    model = tiny.model("bert")
    monkeypatch.setattr(type(model), "supports_gradient_checkpointing", False)
    with pytest.raises(ModelError, match="set training.gradient_checkpointing=false"):
        backbone.checkpoint_layers(model, "x")
