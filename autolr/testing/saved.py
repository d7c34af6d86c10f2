"""Is what is saved a stock PEFT adapter on W_q and W_v, and nothing else?"""

from __future__ import annotations

import torch

from autolr.model import adapters
from autolr.model.projections import by_module
from autolr.testing.bench import Bench, ProblemError, logits_of
from autolr.testing.equal import adapted


def untouched(bench: Bench) -> str:
    """Compare the frozen weights with what they were before training."""
    if bench.base.fingerprint() != bench.frozen:
        raise ProblemError("training changed the base model's frozen weights")
    return "the base model is bit for bit what it was"


def reloads(bench: Bench) -> str:
    """Save the first slot's adapter, load it in stock PEFT, and look at what it adds to W_k."""
    from peft import PeftModel

    targets, config = bench.slots[0]
    rows = list(range(len(bench.data)))
    with adapted(bench.base, targets, config) as model:
        adapters.set_values(model, bench.packed[0][0])
        expected = logits_of(bench, model, rows)
        model.save_pretrained(str(bench.folder))
    bare = logits_of(bench, bench.base.model, rows)
    stock = PeftModel.from_pretrained(bench.base.model, str(bench.folder), autocast_adapter_dtype=False)
    bench.stock = stock.to(bench.dtype).eval()
    bench.logits = logits_of(bench, bench.stock, rows)
    difference = float((bench.logits - expected).abs().max())
    if difference != 0:
        raise ProblemError(f"logits of the reloaded adapter differ by {difference:.1e}")
    if torch.equal(bare, expected):
        raise ProblemError("the adapter changes no logit")
    trained = by_module(bench.base.projections.of(targets))
    for name, layer in bench.stock.base_model.model.named_modules():
        if not hasattr(layer, "get_delta_weight") or "lora_A" not in dict(layer.named_children()):
            continue
        if name not in trained:
            raise ProblemError(f"{name}: carries an adapter, but is neither W_q nor W_v")
        if trained[name][0].rows:
            delta = layer.get_delta_weight("default")
            delta = delta.T if layer.fan_in_fan_out else delta  # [rows, d_in]
            inside = [row for site in trained[name] if site.rows for row in site.rows.index()]
            outside = torch.ones(len(delta), dtype=torch.bool, device=delta.device)
            outside[inside] = False
            if delta[outside].any():
                raise ProblemError(f"{name}: the adapter changes rows that are neither W_q nor W_v")
            if not delta[inside].any(1).all():
                raise ProblemError(f"{name}: the adapter leaves rows of W_q or W_v as they are")
    return "identical logits in stock PEFT; W_k unchanged"


def merged(bench: Bench) -> str:
    """Merge the reloaded adapter into the weights; the last check, since it changes them."""
    if bench.stock is None or bench.logits is None:
        raise ProblemError("there is no reloaded adapter to merge")
    merged = bench.stock.merge_and_unload()
    logits = logits_of(bench, merged, list(range(len(bench.data))))
    distance = float(torch.linalg.vector_norm(logits - bench.logits) / torch.linalg.vector_norm(bench.logits))
    if not distance <= bench.tolerance:
        raise ProblemError(f"logits of the merged weights differ by {distance:.1e} of their norm")
    return f"relative distance {distance:.1e}"
