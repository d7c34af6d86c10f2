"""Trainings of tiny models in a pack, on a device of choice, and how far two of them are apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from autolr.data.tasks import Classification, Language, Task
from autolr.model import placement
from autolr.model.backbone import Backbone, checkpoint_layers
from autolr.pack.graphs import Graphs
from autolr.pack.pack import Pack
from autolr.pack.slots import SlotConfig
from autolr.schema.space import MethodKind
from autolr.schema.training import Training
from tests import tiny

KINDS: tuple[MethodKind, ...] = ("lora", "rslora", "dora", "full")
RATES = {"q": 1e-2, "k": 0.0, "v": 2e-2, "head": 1e-2}
# Families that compute some things in float32, whatever the model's type: padding changes what is rounded there.
IN_FLOAT32 = {"gemma2", "gemma3_text", "bloom"}
CLASSES = Classification(("a", "b", "c"))


class Trained(NamedTuple):
    """What a training came to: of each slot its values and losses, and how all slots score, [slots, examples]."""

    slots: list[tuple[dict[str, Tensor], list[float]]]
    scores: Tensor


def apart(one: Trained, other: Trained) -> float:
    """Return the largest difference of two trainings: of weights, losses and scores."""
    worst = float((one.scores - other.scores).abs().max())
    for (values, losses), (others, other_losses) in zip(one.slots, other.slots, strict=True):
        assert values.keys() == others.keys()
        worst = max(worst, *(abs(a - b) for a, b in zip(losses, other_losses, strict=True)))
        worst = max(worst, *(float((values[name].double() - others[name].double()).abs().max()) for name in values))
    return worst


def config(seed: int, rank: int = 4, kind: MethodKind = "lora", steps: int = 64) -> SlotConfig:
    """Return a slot's settings; each seed has rates of its own."""
    rates = {role: rate * (1 + seed) for role, rate in RATES.items()}
    return SlotConfig(rates, rank=0 if kind == "full" else rank, seed=seed, steps=steps, kind=kind)  # type: ignore[arg-type]


def tolerance(family: str) -> float:
    """Return how far two trainings in float64 may be apart."""
    return 1e-4 if family.partition("/")[0] in IN_FLOAT32 else 1e-12


def task_of(family: str) -> Task:
    return Language(()) if is_language(family) else CLASSES


def is_language(family: str) -> bool:
    return family.endswith("/lm") or family in tiny.LANGUAGE_ONLY


def kinds_of(family: str) -> tuple[MethodKind, ...]:
    """Return the methods that can train a family: DoRA cannot train some rows of a matrix."""
    return tuple(kind for kind in KINDS if kind != "dora" or family.partition("/")[0] in tiny.SEPARATE)


def base_on(
    family: str, device: str, dtype: torch.dtype = torch.float64, *, gradient_checkpointing: bool = False
) -> Backbone:
    """Return a tiny base on a device; `split`: its layers in turn on two GPUs, as accelerate puts them."""
    base = tiny.base(family, dtype)
    if gradient_checkpointing:
        checkpoint_layers(base.model, family)
    if device == "split":
        placement.spread(base.model, _parts(base.model))
    else:
        base.model.to(device)
    return base


def _parts(model: Any) -> dict[str, int | str]:
    body, inner = model.base_model_prefix, model.get_submodule(model.base_model_prefix)
    parts = {name: 1 for name, _ in model.named_children() if name != body}
    parts |= {f"{body}.{name}": 0 for name, _ in inner.named_children() if name != "layers"} | {f"{body}.norm": 1}
    return parts | {f"{body}.layers.{number}": number % 2 for number in range(len(inner.layers))}


def pack_on(base: Backbone, family: str, *, graphs: bool = False, batch_size: int = 8, **options: Any) -> Pack:
    """Return a pack with room for four slots that train together."""
    data = tiny.tokens(learned=is_language(family))
    given = {"capacity": 4, "max_rank": 8, "lora_alpha": 16.0, "together": 4, **options}
    recorder = Graphs(data.pad_id) if graphs else None
    return Pack(base, Training(batch_size=batch_size), task_of(family), data, graphs=recorder, **given)


def trained(
    family: str,
    device: str,
    kinds: Sequence[MethodKind] = ("lora",),
    *,
    dtype: torch.dtype = torch.float64,
    graphs: bool = False,
    gradient_checkpointing: bool = False,
    steps: int = 3,
    after_step: Callable[[Pack], object] = lambda pack: None,
) -> Trained:
    """Train three slots some steps; then one goes, another comes, a third is saved and restored; and train on."""
    base = base_on(family, device, dtype, gradient_checkpointing=gradient_checkpointing)
    of = [kinds[place % len(kinds)] for place in range(4)]
    with pack_on(base, family, graphs=graphs, kinds=tuple(dict.fromkeys(of))) as pack:
        slots = [pack.admit(config(seed, rank, of[seed])) for seed, rank in enumerate((4, 8, 2))]
        for _ in range(steps):
            pack.step()
            after_step(pack)
        pack.evict(slots[0])
        slots[0] = pack.admit(config(3, 8, of[3]))
        pack.flush()
        kept = slots[1]
        state = {name: value.cpu() for name, value in pack.state(kept).items()}
        pack.evict(kept)
        slots[1] = pack.restore(kept.config, state, kept.step, kept.losses, kept.tokens)
        for _ in range(steps):
            pack.step()
            after_step(pack)
        return result(pack, slots)


def result(pack: Pack, slots: Sequence[Any]) -> Trained:
    """Return what a pack's slots have come to."""
    pack.flush()
    scores, _ = pack.evaluate(list(slots), pack.data, averaged=True)
    values = [{name: value.cpu() for name, value in pack.values(slot).items()} for slot in slots]
    return Trained([(own, list(slot.losses)) for own, slot in zip(values, slots, strict=True)], scores)
