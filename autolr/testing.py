"""The conformance kit: what must hold on a model before a search on it can be trusted.

Each check takes a few steps on a handful of random tokens. Together they say that AutoLR has
found W_q, W_k and W_v where they are, that a packed slot learns what the same adapter learns
alone, that W_k stays as it is, and that what is saved is a stock PEFT adapter.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from autolr.data.batches import TokenSet
from autolr.data.tasks import Classification
from autolr.errors import AutoLRError
from autolr.model import adapters
from autolr.model.backbone import Backbone, fresh_head
from autolr.model.projections import Site, by_module
from autolr.pack.optimizer import schedule_factor
from autolr.pack.pack import Pack, SlotConfig
from autolr.study import Targets, Training
from autolr.train.optimizer import parameter_groups

ALPHA = 16.0
STEPS = 3
TRAINING = Training(batch_size=2, weight_decay=0.1, clip_norm=0.5, betas=(0.9, 0.99))
# Distance of what two ways of computing the same give, relative to its norm.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}
FAR = 2  # tokens between the place that is changed and the place that is watched


class _ProblemError(Exception):
    """What a check has found wrong."""


@dataclass(frozen=True)
class Check:
    """A check that was made.

    Attributes:
        name: what must hold.
        found: what was seen, in words; where the check failed, the problem.
        passed: whether it holds.
        seconds: it took.
    """

    name: str
    found: str
    passed: bool
    seconds: float


@dataclass(frozen=True)
class _ThirdToken(Classification):
    """A loss for language models: the third token's logits are those of the classes."""

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        return super().losses(logits[:, FAR, : len(self.classes)], labels)


@dataclass
class _Bench:
    """A model, what it is trained on here, and what one check leaves for the next."""

    base: Backbone
    data: TokenSet
    task: Classification
    slots: list[tuple[Targets, SlotConfig]]
    packed: list[tuple[dict[str, Tensor], list[float], list[list[int]]]]
    folder: Path
    frozen: str = ""
    stock: Any = None
    logits: Tensor | None = None

    @property
    def dtype(self) -> torch.dtype:
        return next(self.base.model.parameters()).dtype  # type: ignore[no-any-return]

    @property
    def tolerance(self) -> float:
        return TOLERANCE.get(self.dtype, 5e-2)

    def batch(self, rows: list[int]) -> dict[str, Tensor]:
        device = next(self.base.model.parameters()).device
        return {name: value.to(device) for name, value in self.data.collate(rows).items()}


def run(base: Backbone, *, seed: int = 0) -> Iterator[Check]:
    """Check a model, and yield each check when it has been made.

    Args:
        base: the model; its head is what is trained with it, and it may have none (a language
            model). It is given back as it was, but for rounding where weights were merged.
        seed: of the random tokens.
    """
    task = Classification(("a", "b", "c")[: _outputs(base)]) if base.head else _ThirdToken(("a", "b"))
    rank = max(1, min(4, base.projections.largest_rank // 2))
    slots: list[tuple[Targets, SlotConfig]] = [
        ("qv", SlotConfig({"q": 2e-3, "k": 0.0, "v": 8e-3, "head": 1e-2}, rank, 1, STEPS)),
        ("qv", SlotConfig({"q": 5e-2, "k": 0.0, "v": 1e-3, "head": 1e-3}, 2 * rank, 2, STEPS)),
        ("qkv", SlotConfig({"q": 1e-3, "k": 3e-3, "v": 2e-2, "head": 3e-2}, rank, 3, STEPS)),
    ]
    with tempfile.TemporaryDirectory() as folder:
        bench = _Bench(base, random_tokens(base, len(task.classes), seed), task, slots, [], Path(folder))
        checks: dict[str, Callable[[_Bench], str]] = {
            "projections": _projections,
            "roles": _roles,
            "packed equals alone": _packed_equals_alone,
            "rows equal a split by hand": _split_by_hand,
            "frozen weights untouched": _untouched,
            "saved adapter reloads": _reloads,
            "merged equals unmerged": _merged,
        }
        for name, check in checks.items():
            start = time.perf_counter()
            try:
                found, passed = check(bench), True
            except (_ProblemError, AutoLRError) as problem:
                found, passed = str(problem), False
            except (RuntimeError, ValueError, IndexError, KeyError, AttributeError, TypeError) as error:
                found, passed = f"{type(error).__name__}: {str(error)[:300]}", False
            yield Check(name, found, passed, time.perf_counter() - start)
            if not passed and name in ("projections", "packed equals alone"):
                return  # what follows builds on it


def random_tokens(base: Backbone, classes: int, seed: int = 0) -> TokenSet:
    """Return eight examples of 4 to 9 tokens, none of them special."""
    config = base.model.config.get_text_config()
    special = set(getattr(base.tokenizer, "all_special_ids", None) or ())
    special |= {v for v in (config.pad_token_id, config.eos_token_id, config.bos_token_id) if isinstance(v, int)}
    rng = np.random.default_rng(seed)
    usable = np.setdiff1d(np.arange(min(int(config.vocab_size), 5000)), list(special))
    ids = [rng.choice(usable, 4 + number % 6).tolist() for number in range(8)]
    return TokenSet(ids, [number % classes for number in range(8)], int(config.pad_token_id or 0))


def _outputs(base: Backbone) -> int:
    return min(3, int(base.model.config.num_labels))


def _projections(bench: _Bench) -> str:
    found = bench.base.projections
    for name, sites in by_module(found.sites).items():
        index = [row for site in sites for row in (site.rows.index() if site.rows else range(site.d_out))]
        if len(set(index)) != sum(site.d_out for site in sites):
            raise _ProblemError(f"{name}: its roles share rows, or count wrongly")
    return f"{found.coverage}; " + ", ".join(shapes(bench.base))


def shapes(base: Backbone) -> list[str]:
    """Return for each role how many sites of which shape there are: `12 v 384x384 (value)`."""
    kinds: dict[str, int] = {}
    for site in base.projections.sites:
        where = f"{'some rows of ' if site.rows else ''}{site.module.rpartition('.')[2]}"
        kind = f"{site.role} {site.d_out}x{site.d_in} ({where})"
        kinds[kind] = kinds.get(kind, 0) + 1
    return [f"{count} {kind}" for kind, count in kinds.items()]


def _roles(bench: _Bench) -> str:
    """Tell q, k and v apart by what they do in attention, whatever they are called.

    q at one place acts on the output there and nowhere else; with all values zero, neither q nor
    k acts on anything, and v does.
    """
    sites = bench.base.projections.sites
    attentions: dict[str, list[Site]] = {}
    for site in sites:
        attentions.setdefault(site.module.rpartition(".")[0], []).append(site)
    for values in (True, False):
        grads = _attention_gradients(bench, attentions, values)
        for name, own in attentions.items():
            if name not in grads:
                raise _ProblemError(f"{name}: is not called, so adapters on it would learn nothing")
            for site in own:
                near, far = grads[name][site.name]
                expected = {"q": (values, False), "k": (values, values), "v": (True, True)}[site.role]
                for acts, grad, where in ((expected[0], near, "its own"), (expected[1], far, "another")):
                    seen = (grad != 0).any(0)  # [d_out]
                    if acts and not seen.all():
                        raise _ProblemError(
                            f"{site.name}: {int((~seen).sum())} rows do not act on {where} place as {site.role}"
                        )
                    if not acts and seen.any():
                        raise _ProblemError(
                            f"{site.name}: {int(seen.sum())} rows act on {where} place, which no {site.role} does"
                        )
    return f"q, k and v act as such in {len(attentions)} attention layers"


def _attention_gradients(
    bench: _Bench, attentions: dict[str, list[Site]], values: bool
) -> dict[str, dict[str, tuple[Tensor, Tensor]]]:
    """Differentiate each attention's output at one place by its projections there and FAR tokens before.

    Returns:
        For each attention and site, gradients [examples, d_out] at the same place and far from it.
    """
    rows = [number for number, ids in enumerate(bench.data.ids) if len(ids) > FAR + 1]
    batch = bench.batch(rows)
    batch = {"input_ids": batch["input_ids"][:, : FAR + 2], "attention_mask": batch["attention_mask"][:, : FAR + 2]}
    modules = dict(bench.base.model.named_modules())
    leaves: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    handles = []

    def cut(name: str, sites: list[Site]) -> Callable[..., Tensor]:
        def hook(_module: Any, args: Any, output: Tensor) -> Tensor:
            leaf = output.detach().clone()
            for site in sites:
                if site.role == "v" and not values:
                    leaf[..., site.rows.index() if site.rows else slice(None)] = 0
            leaf.requires_grad_()
            if leaf.shape[0] == len(rows):  # not what all examples share
                leaves[name] = leaf
            return leaf

        return hook

    def watch(name: str) -> Callable[..., None]:
        def hook(_module: Any, args: Any, output: Any) -> None:
            outputs[name] = output[0] if isinstance(output, tuple) else output

        return hook

    try:
        for name, sites in attentions.items():
            for module, own in by_module(tuple(sites)).items():
                handles.append(modules[module].register_forward_hook(cut(module, list(own))))
            handles.append(modules[name].register_forward_hook(watch(name)))
        bench.base.model(**batch)
    finally:
        for handle in handles:
            handle.remove()
    found: dict[str, dict[str, tuple[Tensor, Tensor]]] = {}
    for name, sites in attentions.items():
        if name not in outputs or any(site.module not in leaves for site in sites):
            continue
        output = outputs[name][:, FAR]
        weights = torch.linspace(1, 2, output.numel(), device=output.device, dtype=output.dtype).view_as(output)
        wanted = [leaves[site.module] for site in sites]
        grads = torch.autograd.grad((output * weights.cos()).sum(), wanted, allow_unused=True)
        found[name] = {}
        for site, leaf, grad in zip(sites, wanted, grads, strict=True):
            whole = torch.zeros_like(leaf) if grad is None else grad
            part = whole[..., site.rows.index()] if site.rows else whole
            found[name][site.name] = part[:, FAR], part[:, 0]
    return found


def _packed_equals_alone(bench: _Bench) -> str:
    """Train three slots in a pack, and each again alone: PEFT's layers, torch's AdamW."""
    bench.frozen = bench.base.fingerprint()
    configs = [config for _, config in bench.slots]
    largest = max(config.rank for config in configs)
    options: dict[str, Any] = {"capacity": len(configs), "max_rank": largest, "alpha": ALPHA}
    with Pack(bench.base, TRAINING, bench.task, bench.data, together=2, **options) as pack:
        slots = [pack.admit(config) for config in configs]
        for _ in range(STEPS):
            pack.step()
        pack.flush()
        bench.packed = [(pack.values(slot), slot.losses, slot.order) for slot in slots]
    worst = 0.0
    for (targets, config), (values, losses, order) in zip(bench.slots, bench.packed, strict=True):
        with _adapted(bench.base, targets, config) as model:
            alone_losses = _train(bench, model, config, order)
            alone = {name: value.detach().clone() for name, value in adapters.values_of(model).items()}
        if values.keys() != alone.keys():
            raise _ProblemError(f"other tensors are trained alone: {sorted(values.keys() ^ alone.keys())[:4]}")
        worst = max(worst, _distance(values, alone), _distance_of(losses, alone_losses))
    if not worst <= bench.tolerance:
        raise _ProblemError(
            f"slots differ from runs alone by {worst:.1e} of their norm (allowed: {bench.tolerance:g})"
        )
    return f"{len(configs)} slots, {STEPS} steps, relative distance {worst:.1e}"


@contextmanager
def _adapted(base: Backbone, targets: Targets, config: SlotConfig) -> Iterator[Any]:
    """Put an adapter on the base as the full run does, and take it off again."""
    head = {name: p.detach().clone() for name, p in base.head_parameters().items()}
    model = adapters.peft_model(base, targets, config.rank, ALPHA, config.seed)
    for parameter in model.parameters():
        if parameter.requires_grad and base.model.dtype == torch.float64:
            parameter.data = parameter.data.double()
    try:
        yield model
    finally:
        base.model = model.unload().eval().requires_grad_(False)
        with torch.no_grad():
            for name, parameter in base.head_parameters().items():
                parameter.copy_(head[name])


def _train(bench: _Bench, model: Any, config: SlotConfig, order: list[list[int]]) -> list[float]:
    rates = config.rates
    groups = parameter_groups(
        model,
        lr_q=rates["q"],
        ratio=rates["v"] / rates["q"],
        lr_head=rates["head"],
        lr_k=rates["k"] or None,
        weight_decay=TRAINING.weight_decay,
    )
    trained = [p for p in model.parameters() if p.requires_grad]
    return _steps(bench, model, groups, trained, order)


def _steps(
    bench: _Bench, model: Any, groups: list[dict[str, Any]], trained: list[Any], order: list[list[int]]
) -> list[float]:
    optimizer = torch.optim.AdamW(groups, betas=TRAINING.betas, eps=TRAINING.eps)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule_factor(TRAINING, step, STEPS))
    losses = []
    for rows in order:
        batch = bench.batch(rows)
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        loss = bench.task.losses(logits, batch["labels"]).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trained, TRAINING.clip_norm or float("inf"))
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    return losses


def _split_by_hand(bench: _Bench) -> str:
    """Train the first slot of a fused model without PEFT: W's rows are looked up one by one."""
    targets, config = bench.slots[0]
    sites = bench.base.projections.of(targets)
    if not any(site.rows for site in sites):
        return "no fused projections"
    values, losses, order = bench.packed[0]
    modules = dict(bench.base.model.named_modules())
    head = bench.base.head_parameters()
    kept = {name: p.detach().clone() for name, p in head.items()}
    with torch.no_grad():
        for name, value in fresh_head(bench.base, config.seed).items():
            head[name].copy_(value)
    own: dict[str, Tensor] = {}
    handles = []

    def hook_of(site: Site, a: Tensor, b: Tensor) -> Callable[..., Tensor]:
        assert site.rows
        index = torch.tensor(site.rows.index(), device=a.device)

        def hook(_module: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            term = functional.linear(functional.linear(args[0], a), b) * (ALPHA / config.rank)
            return output.index_add(-1, index, term)

        return hook

    for site in sites:
        like = next(bench.base.model.parameters())
        a = adapters.initial_a(site, config.rank, config.seed).to(like).requires_grad_()
        b = a.new_zeros(site.d_out, config.rank).requires_grad_()
        own |= {f"{site.name}.lora_A": a, f"{site.name}.lora_B": b}
        handles.append(modules[site.module].register_forward_hook(hook_of(site, a, b)))
    role = {f"{site.name}.lora_{side}": site.role for site in sites for side in "AB"}
    try:
        for parameter in head.values():
            parameter.requires_grad_()
        own |= head
        groups = [
            {"params": [t], "lr": config.rates[role.get(name, "head")], "weight_decay": TRAINING.weight_decay}
            for name, t in own.items()
        ]
        by_hand = _steps(bench, bench.base.model, groups, list(own.values()), order)
        worst = max(_distance(values, {n: t.detach().clone() for n, t in own.items()}), _distance_of(losses, by_hand))
    finally:
        for handle in handles:
            handle.remove()
        with torch.no_grad():
            for name, parameter in head.items():
                parameter.copy_(kept[name]).requires_grad_(False)
                parameter.grad = None
    if not worst <= bench.tolerance:
        raise _ProblemError(f"the slot differs from a split by hand by {worst:.1e} of its norm")
    return f"relative distance {worst:.1e}"


def _untouched(bench: _Bench) -> str:
    if bench.base.fingerprint() != bench.frozen:
        raise _ProblemError("training changed the base model's frozen weights")
    return "the base model is bit for bit what it was"


def _reloads(bench: _Bench) -> str:
    """Save the first slot's adapter, load it in stock PEFT, and look at what it adds to W_k."""
    from peft import PeftModel

    targets, config = bench.slots[0]
    rows = list(range(len(bench.data)))
    with _adapted(bench.base, targets, config) as model:
        adapters.set_values(model, bench.packed[0][0])
        expected = _logits(bench, model, rows)
        model.save_pretrained(str(bench.folder))
    bare = _logits(bench, bench.base.model, rows)
    stock = PeftModel.from_pretrained(bench.base.model, str(bench.folder), autocast_adapter_dtype=False)
    bench.stock = stock.to(bench.dtype).eval()
    bench.logits = _logits(bench, bench.stock, rows)
    difference = float((bench.logits - expected).abs().max())
    if difference != 0:
        raise _ProblemError(f"logits of the reloaded adapter differ by {difference:.1e}")
    if torch.equal(bare, expected):
        raise _ProblemError("the adapter changes no logit")
    trained = by_module(bench.base.projections.of(targets))
    for name, layer in bench.stock.base_model.model.named_modules():
        if not hasattr(layer, "get_delta_weight") or "lora_A" not in dict(layer.named_children()):
            continue
        if name not in trained:
            raise _ProblemError(f"{name}: carries an adapter, but is neither W_q nor W_v")
        if trained[name][0].rows:
            delta = layer.get_delta_weight("default")
            delta = delta.T if layer.fan_in_fan_out else delta  # [rows, d_in]
            inside = [row for site in trained[name] if site.rows for row in site.rows.index()]
            outside = torch.ones(len(delta), dtype=torch.bool, device=delta.device)
            outside[inside] = False
            if delta[outside].any():
                raise _ProblemError(f"{name}: the adapter changes rows that are neither W_q nor W_v")
            if not delta[inside].any(1).all():
                raise _ProblemError(f"{name}: the adapter leaves rows of W_q or W_v as they are")
    return "identical logits in stock PEFT; W_k unchanged"


def _merged(bench: _Bench) -> str:
    if bench.stock is None or bench.logits is None:
        raise _ProblemError("there is no reloaded adapter to merge")
    merged = bench.stock.merge_and_unload()
    logits = _logits(bench, merged, list(range(len(bench.data))))
    distance = float(torch.linalg.vector_norm(logits - bench.logits) / torch.linalg.vector_norm(bench.logits))
    if not distance <= bench.tolerance:
        raise _ProblemError(f"logits of the merged weights differ by {distance:.1e} of their norm")
    return f"relative distance {distance:.1e}"


@torch.no_grad()
def _logits(bench: _Bench, model: Any, rows: list[int]) -> Tensor:
    batch = bench.batch(rows)
    logits: Tensor = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    # What stands at padding means nothing.
    return logits if logits.dim() == 2 else logits[batch["attention_mask"].bool()]


def _distance(values: dict[str, Tensor], others: dict[str, Tensor]) -> float:
    return max(
        float(
            torch.linalg.vector_norm(value - others[name]) / torch.linalg.vector_norm(others[name]).clamp_min(1e-30)
        )
        for name, value in values.items()
    )


def _distance_of(losses: list[float], others: list[float]) -> float:
    return max(abs(loss - other) / abs(other) for loss, other in zip(losses, others, strict=True))
