"""The pattern against attention that is computed in plain steps, on every family of the conformance kit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from autolr.data.tasks import Classification, Language
from autolr.errors import ModelError, RunError
from autolr.insight import activations, attention_probs
from autolr.model import adapters
from autolr.model.sparse_logits import forward
from tests import tiny

pytestmark = pytest.mark.usefixtures("one_thread")


def subject(family, dtype=torch.float32):
    base = tiny.base(family, dtype)
    task = Classification(("a", "b", "c")) if base.head else Language(())
    return base, task, tiny.tokens(6, learned=not base.head)


def by_definition(base, task, data, model=None):
    """sum_jk Γ_jk dL/dΓ_jk of each sample, one by one: [samples, layers, heads]."""
    model = model or base.model
    samples = []
    for row in range(len(data)):
        seen = []
        batch = data.collate([row])
        with attention_probs.probabilities(base, seen.append, model):
            # The graph must begin somewhere, since all is frozen.
            weights = model.get_input_embeddings().weight.requires_grad_()
            loss = task.losses(forward(model, batch).float(), batch["labels"])[0]
        grads = torch.autograd.grad(loss, seen)
        weights.requires_grad_(False)
        samples.append(torch.stack([(p * g).sum((0, 2, 3)) for p, g in zip(seen, grads, strict=True)]))
    return torch.stack(samples).detach().double().numpy()


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_identity_holds_on_every_family(family):
    base, task, data = subject(family)
    if family == "falcon:mha":  # with alibi, transformers' SDPA computes another attention than its plain steps
        base.model.config._attn_implementation = "eager"
    found = activations.measure(base, task, data, batch_size=4)
    truth = by_definition(base, task, data)
    assert found.activations.shape == (6, 2, 4)
    assert np.abs(truth).max(axis=(0, 2)).min() > 0  # in every layer there is something to compare
    assert np.abs(found.activations - truth).max() <= 1e-5 * max(1.0, np.abs(truth).max())
    np.testing.assert_allclose(found.of("absolute"), np.abs(truth).mean(0), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found.of("signed"), truth.mean(0), rtol=1e-3, atol=1e-5)


def test_it_holds_with_a_gate_between_attention_and_output():
    shape = {**tiny.GROUPED, "layer_types": ["full_attention"] * 2, "num_experts": 0, "intermediate_size": 48}
    tiny.SHAPES["qwen3_next"] = shape
    try:
        base, task, data = subject("qwen3_next", torch.float64)
    finally:
        del tiny.SHAPES["qwen3_next"]
    truth = by_definition(base, task, data)
    found = activations.measure(base, task, data).activations
    assert np.abs(found - truth).max() <= 1e-5 * max(1.0, np.abs(truth).max())


def test_values_do_not_depend_on_who_shares_the_batch():
    base, task, data = subject("llama", torch.float64)
    one, all_ = (activations.measure(base, task, data, batch_size=size) for size in (1, 6))
    np.testing.assert_allclose(one.activations, all_.activations, atol=1e-12)
    np.testing.assert_allclose(one.losses, all_.losses, atol=1e-7)


def test_an_adapter_is_seen_and_left_as_it_was():
    base, task, data = subject("bert", torch.float64)
    before = activations.measure(base, task, data)
    model = adapters.peft_model(base, "all-linear", 2, 16.0, 0)
    asking = [name for name, p in model.named_parameters() if p.requires_grad]
    with torch.no_grad():
        for name, value in adapters.values_of(model).items():
            if name.endswith("lora_B"):
                value.normal_(generator=torch.Generator().manual_seed(0))
    model.train()
    after = activations.measure(base, task, data, model)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == asking
    assert model.training and all(p.grad is None for p in model.parameters())
    truth = by_definition(base, task, data, model)
    assert np.abs(after.activations - truth).max() <= 1e-5 * max(1.0, np.abs(truth).max())
    assert np.abs(after.activations - before.activations).max() > 1e-2
    assert after.layers == before.layers


def test_a_model_whose_output_projection_is_not_called_is_refused(monkeypatch):
    base, task, data = subject("bert")
    first = base.model.get_submodule(activations.output_sites(base)[0].module)
    owner = base.model.bert.encoder.layer[0].attention.output
    monkeypatch.setattr(owner, "forward", lambda x, y: torch.nn.functional.linear(x, first.weight) + y)
    with pytest.raises(ModelError, match="computed without its module"):
        activations.measure(base, task, data)


def test_saved_and_read(tmp_path):
    base, task, data = subject("gpt2/lm")
    found = activations.measure(base, task, data)
    found.save(tmp_path / "pattern.safetensors")
    again = activations.Pattern.load(tmp_path / "pattern.safetensors")
    np.testing.assert_array_equal(again.activations, found.activations)
    assert again.layers == found.layers
    (tmp_path / "other.safetensors").write_bytes(b"nothing")
    with pytest.raises(RunError, match="no activation pattern"):
        activations.Pattern.load(tmp_path / "other.safetensors")


def test_entropy_is_that_of_the_probabilities():
    base, _, data = subject("llama", torch.float64)
    nats, shares = attention_probs.entropies(base, data, batch_size=4)
    assert base.model.config._attn_implementation == "sdpa"
    assert nats.shape == (6, 2, 4)
    base.model.config._attn_implementation = "eager"
    batch = data.collate([2])
    seen = base.model(**{**batch, "labels": None}, output_attentions=True).attentions
    for layer, p in enumerate(seen):
        p = p[0].double()
        # A causal query sees itself and what lies before it; the first sees nothing else.
        own = -(p * p.clamp_min(1e-300).log()).sum(2)[:, 1:]
        most = torch.arange(2, p.shape[1] + 1).double().log()
        torch.testing.assert_close(nats[2, layer], own.mean(1), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(shares[2, layer], (own / most).mean(1), rtol=1e-5, atol=1e-6)


def test_even_attention_has_all_the_entropy_there_is():
    base, _, data = subject("bert", torch.float64)
    for site in base.projections.sites:
        if site.role == "q":
            module = base.model.get_submodule(site.module)
            module.weight.data.zero_()
            module.bias.data.zero_()
    nats, shares = attention_probs.entropies(base, data)
    torch.testing.assert_close(shares, torch.ones_like(shares))
    assert nats[0, 0, 0].item() == pytest.approx(np.log(len(data.ids[0])))
