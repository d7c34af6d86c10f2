"""Is what is saved a stock PEFT adapter on W_q and W_v, and nothing else?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from autolr.conformance.bench import Bench, ProblemError, logits_of
from autolr.conformance.equal import adapted
from autolr.model import adapters
from autolr.model.projections import by_module
from autolr.schema.space import MethodKind


def untouched(bench: Bench) -> str:
    """Compare the frozen weights with what they were before training."""
    if bench.base.fingerprint() != bench.frozen:
        raise ProblemError("training changed the base model's frozen weights")
    return "the base model is bit for bit what it was"


def reloads(bench: Bench, kind: MethodKind) -> str:
    """Save the first slot of a method, load it in stock PEFT, and look at what it adds to W_k."""
    from peft import PeftModel

    if bench.stock is not None:
        bench.base.model = bench.stock.unload()
    number, folder = bench.first(kind), str(bench.folder / kind)
    targets, config = bench.slots[number]
    rows = list(range(len(bench.data)))
    with adapted(bench.base, targets, config) as model:
        adapters.set_values(model, bench.packed[number][0])
        expected = logits_of(bench, model, rows)
        model.save_pretrained(folder)
    bare = logits_of(bench, bench.base.model, rows)
    stock = PeftModel.from_pretrained(bench.base.model, folder, autocast_adapter_dtype=False)
    bench.stock = stock.to(bench.dtype).eval()
    bench.logits = logits_of(bench, bench.stock, rows)
    difference = float((bench.logits - expected).abs().max())
    if difference != 0:
        raise ProblemError(f"logits of the reloaded adapter differ by {difference:.1e}")
    if torch.equal(bare, expected):
        raise ProblemError("the adapter changes no logit")
    trained = by_module(bench.base.projections.of(targets))
    seen = 0
    for name, layer in bench.stock.base_model.model.named_modules():
        delta = _delta(layer)
        if delta is None or f"{name}.".startswith(tuple(f"{owner}." for owner in bench.base.head)):
            continue
        seen += 1
        if name not in trained:
            raise ProblemError(f"{name}: carries an adapter, but is neither W_q nor W_v")
        if trained[name][0].rows:
            inside = [row for site in trained[name] if site.rows for row in site.rows.index()]
            outside = torch.ones(len(delta), dtype=torch.bool, device=delta.device)
            outside[inside] = False
            if delta[outside].any():
                raise ProblemError(f"{name}: the adapter changes rows that are neither W_q nor W_v")
            if not delta[inside].any(1).all():
                raise ProblemError(f"{name}: the adapter leaves rows of W_q or W_v as they are")
    if seen != len(trained):
        raise ProblemError(f"the reloaded adapter is on {seen} modules, trained were {len(trained)}")
    return "identical logits in stock PEFT; W_k unchanged"


def _delta(layer: Any) -> Tensor | None:
    """Return what a stock PEFT layer adds to W, [d_out, d_in]; None where a module is none."""
    if hasattr(layer, "get_delta_weight") and "lora_A" in dict(layer.named_children()):
        delta: Tensor = layer.get_delta_weight("default")
        turned = layer.fan_in_fan_out
    elif isinstance(getattr(layer, "base_layer", None), (nn.Linear, Conv1D)):
        delta = layer.ln_tuning_layers["default"].weight - layer.base_layer.weight
        turned = isinstance(layer.base_layer, Conv1D)
    else:
        return None
    return delta.T if turned else delta


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
