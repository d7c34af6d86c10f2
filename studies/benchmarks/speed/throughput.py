"""Trial-steps per second: our packs against one trial after another, and against time-slicing.

    python -m studies.benchmarks.speed.throughput [--quick] [--device cuda:0] [--compile] [--out FOLDER]

All contenders of a configuration share model shape, data, batch size and length, and take turns in one call. A
trial-step is one optimizer step of one trial. `packed` figures take the number of slots that was fastest.
"""

from __future__ import annotations

import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.trainer_pt_utils import get_length_grouped_indices

from autolr.data.batches import CYCLE, TokenSet, batch_order
from autolr.data.tasks import Classification
from autolr.model.backbone import Backbone
from autolr.pack.graphs import WARM, Graphs
from autolr.pack.pack import Pack
from autolr.pack.slots import SlotConfig
from autolr.schema.study import Study
from autolr.schema.training import Training
from autolr.tuner.setting import choose_device
from studies import SENTIMENT
from studies.benchmarks.common import document, peers
from studies.benchmarks.common.document import Result
from studies.benchmarks.common.shapes import (
    LLAMA_1B,
    LLAMA_8B,
    MINILM,
    ROBERTA,
    SMOLLM2,
    TINY_ROBERTA,
    Shape,
    base,
    flops,
    tokens,
)

TASK = Classification(("negative", "positive"))
WARM_UP = 2
ERROR_STEPS = 30


@dataclass(frozen=True)
class Configuration:
    """What is trained, and how often it is measured.

    Attributes:
        figure: names the figures of this configuration; empty: it is for the rows alone.
        length: tokens of each example; None: natural sentence lengths.
        slots: the packs' sizes; 1 is ours one trial after another.
        ranks: of the slots in turn; the peers take the one nearest the mean.
        steps: timed steps of each pack in a round, whole cycles of lengths.
        peer_steps: timed steps of the Trainer in a round; it sorts so many batches by length at a time.
        tuning_steps: timed steps of each of the Trainer's options before.
        examples: of the data that are used; None: all.
        slices: trials that take turns in time-slicing; 0: it is left out.
    """

    shape: Shape
    batch_size: int
    length: int | None = None
    slots: tuple[int, ...] = (1, 8)
    ranks: tuple[int, ...] = (8,)
    rounds: int = 3
    steps: int = CYCLE
    peer_steps: int = peers.GROUPED
    tuning_steps: int = 16
    examples: int | None = None
    slices: int = 0
    figure: str = ""

    @property
    def about(self) -> dict[str, Any]:
        """What rows say about it."""
        return {"model": self.shape.name, "batch_size": self.batch_size, "length": self.length or "natural"}

    @property
    def peer_rank(self) -> int:
        """The rank whose cost is nearest the slots' mean."""
        mean = statistics.mean(self.ranks)
        return min(self.ranks, key=lambda rank: abs(rank - mean))


def cpu_plan() -> list[Configuration]:
    """Return the CPU's full measurement; its first is the embedded study's own shape."""
    study = Study.load(SENTIMENT)
    own = Configuration(
        MINILM,
        study.training.batch_size,
        slots=(1, 2, 4, 8),
        ranks=tuple(study.space.rank),
        rounds=7,
        steps=2 * CYCLE,
        slices=2,
        figure="cpu",
    )
    small = Configuration(TINY_ROBERTA, 8, rounds=5, slots=(1, 2, 4, 8), steps=2 * CYCLE)
    sizes = [replace(own, batch_size=batch, slots=(1, 8), steps=CYCLE, slices=0, figure="") for batch in (4, 8, 32)]
    lengths = [replace(sizes[0], batch_size=16, length=length, peer_steps=CYCLE) for length in (32, 128)]
    return [own, small, *sizes, *lengths]


def gpu_plan() -> list[Configuration]:
    """Return the GPU's full measurement; the figures' configurations first."""
    many = (1, 2, 4, 8, 16, 32, 64)
    fixed = {"length": 128, "peer_steps": 24}
    few = {"slots": (1, 8, 32), "rounds": 2}
    return [
        Configuration(ROBERTA, 32, slots=many, slices=2, figure="gpu.roberta_b32"),
        Configuration(LLAMA_1B, 4, slots=many, slices=2, figure="gpu.llama_1b_b4", **fixed),
        Configuration(LLAMA_8B, 1, slots=many, slices=2, figure="gpu.llama_8b_b1", **fixed),
        *(Configuration(ROBERTA, batch, **few) for batch in (1, 4, 8)),
        *(Configuration(ROBERTA, 8, length=length, **few, peer_steps=24) for length in (32, 128, 512, 1024)),
        Configuration(MINILM, 16, **few),
        Configuration(SMOLLM2, 8, **few),
    ]


def quick_plan(device: torch.device) -> list[Configuration]:
    """Return a plan of a few seconds on two cores."""
    # Of 64 batches the Trainer sorts 16 at a time.
    own = replace(cpu_plan()[0], slots=(1, 2), rounds=1, steps=CYCLE, peer_steps=16, slices=1, examples=1024)
    tiny = Configuration(TINY_ROBERTA, 8, slots=(1, 4), rounds=1, peer_steps=16, examples=512)
    return [replace(c, tuning_steps=4, figure=c.figure if device.type == "cpu" else "") for c in (own, tiny)]


def measure(result: Result, configuration: Configuration, device: torch.device, *, compiled: bool = False) -> None:
    """Measure all contenders of a configuration in turns, and add rows and figures."""
    c = configuration
    backbone, data = base(c.shape, device), tokens(c.shape, c.length)
    data = data if c.examples is None else data.take(range(c.examples))
    peer = peers.peft_model(base(c.shape, device, "bf16" if device.type == "cuda" else "fp32"), c.peer_rank)
    options, tried = peers.tune(peer, data, c.batch_size, device, steps=c.tuning_steps, compiled=compiled)
    result.row("tuning", **c.about, chosen=options, steps_per_second=rounded(tried))
    sequential = peers.Sequential(peer, data, c.batch_size, device, options)
    contenders: dict[str, Callable[[int], float]] = {
        f"pack {slots}": partial(pack_rate, c, backbone, data, slots) for slots in c.slots
    }
    if device.type == "cuda":
        contenders |= {
            f"pack {slots} graphs": partial(pack_rate, c, backbone, data, slots, graphs=True) for slots in c.slots
        }
    contenders["trainer"] = partial(sequential.rate, c.peer_steps)
    if c.slices:
        contenders["time slicing"] = partial(_sliced, c, peer, data, options)
    measured = document.alternate(_possible(result, c, contenders, backbone, data), c.rounds)
    for name, rates in measured.items():
        result.row("rate", **c.about, contender=name, trial_steps_per_second=rounded(rates), median=median(rates))
    best = max((name for name in measured if name.startswith("pack")), key=lambda name: median(measured[name]))
    _figures(result, c, measured, best)
    padded = padding(data, c.batch_size, int(best.split()[1]), device)
    result.row("padding", **c.about, **padded)
    if c.figure in ("cpu", "gpu.roberta_b32"):
        for way, share in padded.items():
            result.figure(f"padding_{way}", share)
    _utilisation(result, c, backbone, data, best, median(measured[best]))


def pack_rate(
    c: Configuration, backbone: Backbone, data: TokenSet, slots: int, seed: int, *, graphs: bool = False
) -> float:
    """Return trial-steps per second of a full pack."""
    warm_up = CYCLE * (WARM + 1) if graphs else WARM_UP
    with full_pack(c, backbone, data, slots, warm_up + c.steps, seed, graphs=graphs) as pack:
        for _ in range(warm_up):
            pack.step()
        pack.flush()
        start = time.perf_counter()
        for _ in range(c.steps):
            pack.step()
        pack.flush()  # waits for the device
        return slots * c.steps / (time.perf_counter() - start)


def full_pack(
    c: Configuration,
    backbone: Backbone,
    data: TokenSet,
    slots: int,
    steps: int,
    seed: int = 0,
    passes: int | None = None,
    graphs: bool = False,
) -> Pack:
    """Return a pack with a trial in every slot, each of its own seed."""
    training = Training(batch_size=c.batch_size)
    options: dict[str, Any] = {"max_rank": max(c.ranks), "lora_alpha": peers.ALPHA, "roles": ("q", "v", "head")}
    if graphs:
        options["graphs"] = Graphs(data.pad_id)
    pack = Pack(backbone, training, TASK, data, capacity=slots, passes=passes, **options)
    for slot in range(slots):
        pack.admit(SlotConfig(peers.RATES, c.ranks[slot % len(c.ranks)], seed + slot, steps))
    return pack


def _sliced(c: Configuration, model: Any, data: TokenSet, options: dict[str, Any], seed: int) -> float:
    if not options.get("torch_compile"):  # it would be compiled anew
        peers.unwrap(model)
    return peers.time_slicing(model, data, c.batch_size, c.slices, bool(options.get("bf16")), seed=seed)


def _possible(
    result: Result,
    c: Configuration,
    contenders: dict[str, Callable[[int], float]],
    backbone: Backbone,
    data: TokenSet,
) -> dict[str, Callable[[int], float]]:
    """Return the contenders the device can run; on a GPU each pack takes a step to find out."""
    if next(backbone.model.parameters()).device.type == "cpu":
        return contenders
    for graphs in (False, True):
        possible = True
        for slots in c.slots:
            name = f"pack {slots} graphs" if graphs else f"pack {slots}"
            try:
                if possible:
                    pack_rate(replace(c, steps=1), backbone, data, slots, 0, graphs=graphs)
            except RuntimeError as error:  # out of memory, or an operation that cannot be recorded
                possible = False
                result.row("not possible", **c.about, contender=name, reason=str(error).strip().splitlines()[0][:160])
            if not possible:
                del contenders[name]
    torch.cuda.empty_cache()
    return contenders


def _figures(result: Result, c: Configuration, measured: dict[str, list[float]], best: str) -> None:
    if c.figure == "cpu":
        packed = f"pack {max(c.slots)}"  # what a search takes on a CPU
        result.figure("cpu_packing", document.ratio(measured, packed, "pack 1"))
        result.figure("cpu_vs_trainer", document.ratio(measured, packed, "trainer"))
        result.figure("cpu_vs_time_slicing", document.ratio(measured, packed, "time slicing"))
    elif c.figure:
        result.figure(c.figure, document.ratio(measured, best, "trainer"))


def padding(data: TokenSet, batch_size: int, slots: int, device: torch.device) -> dict[str, float]:
    """Return tokens in batches over tokens in examples: ours, the Trainer's ways, and padded to 128.

    Slots that share a forward pass are padded to the longest of them all; on a CPU none share one.
    """
    lengths = np.asarray(data.lengths())
    steps = len(lengths) // batch_size
    together = 1 if device.type == "cpu" else slots
    orders = [batch_order(lengths, batch_size, steps, seed) for seed in range(together)]
    ours = [[row for order in orders for row in order[step]] for step in range(steps)]
    torch.manual_seed(0)
    grouped = get_length_grouped_indices(lengths.tolist(), batch_size)
    random = np.random.default_rng(0).permutation(len(lengths)).tolist()
    orders_of = {
        "ours": ours,
        "trainer_grouped": [grouped[at : at + batch_size] for at in range(0, len(grouped), batch_size)],
        "trainer_random": [random[at : at + batch_size] for at in range(0, len(random), batch_size)],
    }
    found = {
        name: sum(len(rows) * lengths[rows].max() for rows in batches) / sum(lengths[rows].sum() for rows in batches)
        for name, batches in orders_of.items()
    }
    found["to_128"] = 128 / float(np.minimum(lengths, 128).mean())
    return {name: round(float(value), 4) for name, value in found.items()}


def _utilisation(
    result: Result, c: Configuration, backbone: Backbone, data: TokenSet, best: str, rate: float
) -> None:
    """Compare the operations of the steps with the matmul rate of the same minute."""
    length = float(np.mean(data.lengths()))
    device = next(backbone.model.parameters()).device
    together = 1 if device.type == "cpu" else int(best.split()[1])
    per_step = flops(backbone, length, c.peer_rank) * length * c.batch_size
    config = backbone.model.config
    rows = max(1, round(together * c.batch_size * length))
    peak = matmul_rate(rows, config.hidden_size, config.intermediate_size, device, backbone.precision == "bf16")
    share = rate * per_step / peak
    row = {"contender": best, "gflops": round(rate * per_step / 1e9, 1), "matmul_gflops": round(peak / 1e9, 1)}
    result.row("utilisation", **c.about, **row, share=round(share, 4))
    if c.figure == "gpu.llama_8b_b1":
        result.figure("gpu.mfu_8b", share)


def matmul_rate(rows: int, inner: int, columns: int, device: torch.device, bf16: bool, seconds: float = 0.3) -> float:
    """Return operations per second of products [rows, inner] x [inner, columns]; the best of three tries."""
    dtype = torch.bfloat16 if bf16 else torch.float32
    x = torch.randn(rows, inner, device=device, dtype=dtype)
    weight = torch.randn(inner, columns, device=device, dtype=dtype)
    out = x @ weight
    best, count = 0.0, 1
    for _ in range(3):
        took = 0.0
        while True:
            peers.wait()
            start = time.perf_counter()
            for _ in range(count):
                torch.mm(x, weight, out=out)
            peers.wait()
            took = time.perf_counter() - start
            if took >= seconds / 3:
                break
            count *= 2
        best = max(best, 2.0 * rows * inner * columns * count / took)
    return best


def precision_error(result: Result, device: torch.device, steps: int = ERROR_STEPS) -> None:
    """Train the same slot with bf16 and with fp32 products, and compare the losses of its steps."""
    c = Configuration(MINILM, 16)
    data, losses = tokens(c.shape, c.length), {}
    for wanted in ("fp32", "bf16"):
        with full_pack(c, base(c.shape, device, wanted), data, 1, steps) as pack:  # type: ignore[arg-type]
            for _ in range(steps):
                pack.step()
            pack.flush()
            losses[wanted] = np.array(pack.slots[0].losses)
    difference = np.abs(losses["bf16"] - losses["fp32"])
    worst, mean = float(difference.max()), float(difference.mean())
    result.row("precision", **c.about, steps=steps, largest_difference=worst, mean_difference=mean)
    result.figure("bf16_loss_difference", worst)


def profiled(result: Result, configuration: Configuration, device: torch.device, slots: int, steps: int = 2) -> None:
    """Add where the time of a pack's step goes: the 15 dearest operations.

    On a CPU the passes run one after another here, since the profiler sees the caller's thread alone.
    """
    c, on_gpu = configuration, device.type == "cuda"
    with full_pack(c, base(c.shape, device), tokens(c.shape, c.length), slots, WARM_UP + steps, passes=1) as pack:
        profiler = peers.profiled(pack, WARM_UP, steps, on_gpu=on_gpu)
    own = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    events = sorted(profiler.key_averages(), key=lambda event: getattr(event, own), reverse=True)
    total = sum(getattr(event, own) for event in events) or 1
    top = [
        {
            "operation": event.key[:80],
            "calls": event.count // steps,
            "milliseconds": round(getattr(event, own) / 1e3 / steps, 3),
            "share": round(getattr(event, own) / total, 4),
        }
        for event in events[:15]
    ]
    result.row("profile", **c.about, slots=slots, milliseconds=round(total / 1e3 / steps, 2), profile=top)


def memory_error(result: Result, device: torch.device, *, quick: bool) -> None:
    """Compare the peak memory that a search predicts with the one it reaches, in a process of its own."""
    length = 4 if quick else 64
    words = [
        f"search.stages=[{{to: {length}}}]",
        f"search.rungs=[{2 if quick else 4}]",
        "search.seeds=2",
        "baselines=[default]",
    ]
    words += [
        "training.horizon={steps: 8}",
        "training.batch_size=8",
        "data.validation=0.005",
        "data.test=0.005",
    ] * quick
    trials = 2 if quick else 8
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "autolr", "search", *words, "--no-train", "--plain"]
        command += ["--trials", str(trials), "--out", folder + "/run", "--device", str(device)]
        subprocess.run(command, check=True, capture_output=True)
        found = json.loads(Path(folder, "run", "machine.json").read_text(encoding="utf-8"))
    error = 100 * abs(found["predicted_bytes"] - found["peak_bytes"]) / found["peak_bytes"]
    result.row("memory", trials=trials, length=length, **found)
    result.figure("peak_memory_error_pct", float(f"{error:.3g}"))


def median(values: list[float]) -> float:
    return float(f"{statistics.median(values):.4g}")


def rounded(values: Any) -> Any:
    """Return numbers, alone, in a list or in a mapping, with four digits."""
    if isinstance(values, dict):
        return {key: rounded(value) for key, value in values.items()}
    return [rounded(value) for value in values] if isinstance(values, list) else float(f"{values:.4g}")


def main() -> None:
    options = document.parser(__doc__)
    options.add_argument("--compile", action="store_true", help="try torch.compile for the Trainer; takes minutes")
    options.add_argument("--only", help="configurations whose model's name holds this")
    given = options.parse_args()
    device = choose_device(given.device)
    full = gpu_plan() if device.type == "cuda" else cpu_plan()
    plan = quick_plan(device) if given.quick else full
    plan = [c for c in plan if not given.only or given.only in c.shape.name]
    result = Result("throughput")
    result.settings = {"quick": given.quick, "compile": given.compile, "chunk": peers.CHUNK, "warm_up": WARM_UP}
    result.settings["configurations"] = [{**asdict(c), **c.about} | {"shape": c.shape.sizes} for c in plan]
    start = time.perf_counter()
    for configuration in plan:
        measure(result, configuration, device, compiled=given.compile)
        if configuration.figure:
            profiled(result, configuration, device, min(8, max(configuration.slots)))
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    precision_error(result, device, 8 if given.quick else ERROR_STEPS)
    memory_error(result, device, quick=given.quick)
    result.settings["seconds"] = round(time.perf_counter() - start)
    document.deliver(result, device, keep=not given.quick and not given.only, out=given.out)


if __name__ == "__main__":
    main()
