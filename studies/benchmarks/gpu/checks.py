"""Whether a pack is right on a GPU: the CPU's numbers, no needless waits, shortages, more devices, few bits."""

from __future__ import annotations

import importlib.util
import math
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from autolr.data.batches import batch_order
from autolr.data.tasks import Classification, Language
from autolr.model import backbone, placement
from autolr.model.backbone import Backbone
from autolr.model.quiet import quiet
from autolr.pack.graphs import Graphs
from autolr.pack.pack import Pack
from autolr.pack.slots import SlotConfig
from autolr.schema.space import MethodKind, Role
from autolr.schema.training import Training
from studies.benchmarks.common.shapes import ROBERTA, TINIEST_ROBERTA, base, tokens
from studies.benchmarks.gpu.models import save
from studies.benchmarks.gpu.parts import DEVICE, Run, first_line
from tests import tiny

# Families and methods that are compared with the CPU.
COMPARED: tuple[tuple[str, MethodKind], ...] = (
    ("bert", "lora"),
    ("llama", "dora"),
    ("roberta", "full"),
    ("llama/lm", "lora"),
    ("gpt2", "lora"),
    ("modernbert", "lora"),
    ("qwen3", "rslora"),
)
# As many of them run on the simulated GPU, on which tests/gpu compares them all.
SIMULATED = 4
# Families whose steps are searched for waits.
WATCHED = ("bert", "llama", "llama/lm")
# A float64 training on a GPU differs from the CPU's by the order of sums alone.
CLOSE = 1e-8
# With less memory the same steps are taken, in float32 sums of another order.
CLOSE_FLOAT = 1e-3
# bf16 keeps 8 bits; a mean of losses is closer.
CLOSE_HALF = 2e-2
RATES: dict[Role, float] = {"q": 1e-3, "k": 0.0, "v": 2e-3, "head": 1e-3}
RANKS = (4, 8, 2)
# A family whose pass waits for the device, so that it cannot be recorded.
UNRECORDABLE = "qwen3_moe"


class Trained(NamedTuple):
    """What a small pack has learned.

    Attributes:
        values: the tensors of each slot, on the CPU.
        losses: of each slot on each example.
        recorded: passes that were recorded.
    """

    values: list[dict[str, Tensor]]
    losses: Tensor
    recorded: int

    def apart(self, other: Trained) -> float:
        """Return the largest difference of any number."""
        pairs = [(self.losses, other.losses)]
        for own, theirs in zip(self.values, other.values, strict=True):
            pairs += [(own[name], theirs[name]) for name in own]
        return max(float((one - two).abs().max()) for one, two in pairs)


def train(built: Backbone, kind: MethodKind = "lora", *, steps: int, graphs: bool = False) -> Trained:
    """Train three slots of a tiny base, the first of which makes way for another in the middle.

    Args:
        built: the base, on its device.
        kind: the method.
        steps: before and after the change.
        graphs: whether passes are recorded.
    """
    language = not built.head
    data = tiny.tokens(learned=language)
    full = kind == "full"
    with Pack(
        built,
        Training(batch_size=8),
        Language(()) if language else Classification(("a", "b", "c")),
        data,
        capacity=4,
        max_rank=0 if full else max(RANKS),
        lora_alpha=16.0,
        kinds=(kind,),
        together=4,
        graphs=Graphs(data.pad_id) if graphs else None,
    ) as pack:

        def config(seed: int, rank: int) -> SlotConfig:
            return SlotConfig(RATES, 0 if full else rank, seed, 64, kind=kind)

        slots = [pack.admit(config(seed, rank)) for seed, rank in enumerate(RANKS)]
        for _ in range(steps):
            pack.step()
        pack.evict(slots[0])
        slots[0] = pack.admit(config(7, max(RANKS)))
        for _ in range(steps):
            pack.step()
        pack.flush()
        losses, _ = pack.evaluate(slots, data, averaged=True)
        values = [{name: value.double().cpu() for name, value in pack.values(slot).items()} for slot in slots]
        return Trained(values, losses, pack.graphs.shapes if pack.graphs else 0)


@cache
def on_cpu(family: str, kind: MethodKind = "lora", *, steps: int) -> Trained:
    """Return what the CPU learns in the same training."""
    return train(small(family, "cpu"), kind, steps=steps)


def steps_of(run: Run) -> int:
    """Return the steps of a small training, before and after the change."""
    return 4 if run.simulated else 12


def small(family: str, device: str | torch.device, dtype: torch.dtype = torch.float64) -> Backbone:
    """Return a tiny base of a family on a device."""
    built = tiny.base(family, dtype)
    built.model.to(device)
    return built


def equality(run: Run) -> None:
    """Compare trainings with the CPU's in float64, eager and recorded."""
    worst: dict[str, float] = {}
    steps = steps_of(run)
    for family, kind in COMPARED[: SIMULATED if run.simulated else None]:
        expected = on_cpu(family, kind, steps=steps)
        eager = expected.apart(train(small(family, DEVICE), kind, steps=steps))
        row: dict[str, Any] = {"family": family, "method": kind, "eager": eager}
        worst["eager"] = max(worst.get("eager", 0.0), eager)
        try:
            recorded = train(small(family, DEVICE), kind, steps=steps, graphs=True)
        except RuntimeError as error:
            row["not_recorded"] = first_line(error)
        else:
            row |= {"recorded": expected.apart(recorded), "passes": recorded.recorded}
            worst["recorded"] = max(worst.get("recorded", 0.0), row["recorded"])
        run.row("equality", good=max(eager, row.get("recorded", 0.0)) < CLOSE, **row)
    for way, difference in worst.items():
        run.figure(f"equality_{way}", difference)


def waits(run: Run) -> None:
    """Count where the host waits for the GPU in a training step."""
    for family in WATCHED:
        built, language = small(family, DEVICE, torch.float32), family.endswith("/lm")
        task = Language(()) if language else Classification(("a", "b", "c"))
        data = tiny.tokens(learned=language)
        with Pack(built, Training(batch_size=8), task, data, capacity=2, max_rank=8, lora_alpha=16.0) as pack:
            for seed in range(2):
                pack.admit(SlotConfig(RATES, 8, seed, 64))
            pack.step()
            with run.waits() as where:
                pack.step()
        run.row("waits", family=family, count=where.total(), where=dict(where))
        run.figure(f"waits_{family.replace('/', '_')}", where.total())


def shortage(run: Run) -> None:
    """Train with less memory than all slots need: fewer share a pass, and the steps stay the same."""
    shape = TINIEST_ROBERTA if run.simulated else ROBERTA
    length, batch, slots = (16, 8, 4) if run.simulated else (64, 32, 8)
    data, steps = tokens(shape, length, 8 * batch), 2 if run.simulated else 4

    def attempt(memory: int | None) -> dict[str, Any]:
        built = base(shape, DEVICE, "fp32")
        run.release()
        torch.cuda.reset_peak_memory_stats()
        with (
            run.limited(memory or torch.cuda.get_device_properties(DEVICE).total_memory),
            Pack(
                built,
                Training(batch_size=batch),
                Classification(("a", "b")),
                data,
                capacity=slots,
                max_rank=8,
                lora_alpha=16.0,
                roles=("q", "v", "head"),
            ) as pack,
        ):
            for seed in range(slots):
                pack.admit(SlotConfig(RATES, 8, seed, 64))
            ready = torch.cuda.memory_allocated()
            for _ in range(steps):
                pack.step()
            pack.flush()
            losses = torch.tensor([slot.losses for slot in pack.slots])
            parts, together = max(slot.parts for slot in pack.slots), pack.together
        peak = torch.cuda.max_memory_allocated()
        return {"losses": losses, "parts": parts, "together": together, "peak": peak, "ready": ready}

    free = attempt(None)
    for share in (0.6, 0.3, 0.1):
        # Of the activations' memory this share is left.
        found = attempt(int(free["ready"] + share * (free["peak"] - free["ready"])))
        worst = float((free["losses"] - found["losses"]).abs().max())
        fitted = found["together"] < free["together"] or found["parts"] > 1
        run.row(
            "shortage",
            share=share,
            together=found["together"],
            parts=found["parts"],
            largest_loss_difference=worst,
            good=fitted and worst < CLOSE_FLOAT,
        )


def two_devices(run: Run) -> None:
    """Train on the second GPU, and on a base that is split over two."""
    if torch.cuda.device_count() < 2:
        run.left_out("two devices", "one GPU is in sight")
        return
    other = torch.device("cuda", 1)
    steps = steps_of(run)
    for graphs in (False, True):
        torch.cuda.set_device(other)
        try:
            found = on_cpu("bert", steps=steps).apart(train(small("bert", other), steps=steps, graphs=graphs))
        finally:
            torch.cuda.set_device(DEVICE)
        run.row("other device", graphs=graphs, difference=found, good=found < CLOSE)
    for family in ("llama", "llama/lm"):
        built = tiny.base(family, torch.float64)
        placement.spread(built.model, _halves(built.model))
        found = on_cpu(family, steps=steps).apart(train(built, steps=steps))
        run.row("split base", family=family, difference=found, good=found < CLOSE)


def _halves(model: Any) -> dict[str, int | str]:
    """Return a device map of a tiny llama: the first layer on GPU 0, the rest on GPU 1."""
    found: dict[str, int | str] = {"model.embed_tokens": 0, "model.rotary_emb": 0, "model.layers.0": 0}
    found |= {f"model.layers.{number}": 1 for number in range(1, len(model.model.layers))}
    found |= {f"model.{name}": 1 for name, _ in model.model.named_children() if name == "norm"}
    return found | {name: 1 for name, _ in model.named_children() if name != "model"}


def few_bits(run: Run) -> None:
    """Train on a base in 4 bits; the first losses must be those of the same model in stock transformers."""
    if importlib.util.find_spec("bitsandbytes") is None:
        run.left_out("nf4", "bitsandbytes is not installed")
        return
    data = tiny.tokens(learned=True)
    with tempfile.TemporaryDirectory() as folder:
        save(tiny.model("llama/lm"), Path(folder), tiny.VOCABULARY)
        with quiet():
            built = backbone.load(folder, [], DEVICE, "nf4", "lm")
    stock = []
    with torch.no_grad():
        for seed in range(2):
            rows = batch_order(data.lengths(), 8, 1, seed)[0]
            batch = {name: value.to(DEVICE) for name, value in data.collate(rows).items()}
            stock.append(float(built.model(**batch).loss))
    with Pack(built, Training(batch_size=8), Language(()), data, capacity=2, max_rank=8, lora_alpha=16.0) as pack:
        for seed in range(2):
            pack.admit(SlotConfig(RATES, 8, seed, 64))
        for _ in range(12):
            pack.step()
        pack.flush()
        losses = [slot.losses for slot in pack.slots]
    apart = max(abs(own[0] - theirs) for own, theirs in zip(losses, stock, strict=True))
    finite = all(math.isfinite(loss) for own in losses for loss in own)
    run.row("nf4", stock=stock, losses=losses, largest_difference=apart, good=finite and apart < CLOSE_HALF)


def failed_recording(run: Run) -> None:
    """Record what cannot be recorded, and use the GPU afterwards; the last part, since it may break the process."""
    before, stream, steps = torch.cuda.memory_reserved(), torch.cuda.current_stream(), steps_of(run)
    about = {"family": UNRECORDABLE, "method": "lora"}
    try:
        eager = on_cpu(UNRECORDABLE, steps=steps).apart(train(small(UNRECORDABLE, DEVICE), steps=steps))
        run.row("equality", **about, eager=eager, good=eager < CLOSE)
    except RuntimeError as error:  # what follows is asked all the same
        run.row("equality", **about, error=first_line(error), good=False)
    try:
        train(small(UNRECORDABLE, DEVICE), steps=steps, graphs=True)
    except RuntimeError as error:
        said = first_line(error)
    else:
        run.row("failed recording", happened=False, good=True)
        return
    run.release()
    same = torch.cuda.current_stream() == stream
    block = torch.empty(2**20 if run.simulated else 2**30, dtype=torch.uint8, device=DEVICE)
    del block
    run.release()
    kept = torch.cuda.memory_reserved() - before
    expected = on_cpu("bert", steps=steps)
    eager = expected.apart(train(small("bert", DEVICE), steps=steps))
    recorded = expected.apart(train(small("bert", DEVICE), steps=steps, graphs=True))
    run.row(
        "failed recording",
        happened=True,
        said=said,
        on_its_stream=same,
        bytes_kept=kept,
        eager_after=eager,
        recorded_after=recorded,
        good=same and max(eager, recorded) < CLOSE,
    )
