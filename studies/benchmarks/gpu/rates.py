"""How fast a GPU trains: its ceilings, packs against PEFT one after another, memory, a search's choice."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import DeviceType

from autolr.data.batches import CYCLE, TokenSet
from autolr.data.tasks import Classification, Language, Task
from autolr.model.backbone import Backbone
from autolr.pack import slot_count
from autolr.pack.graphs import WARM, Graphs
from autolr.pack.pack import Pack
from autolr.pack.slots import SlotConfig
from autolr.schema.space import Role
from autolr.schema.training import Training
from studies.benchmarks.common import peers
from studies.benchmarks.common.shapes import Shape, base, flops, texts, tokens
from studies.benchmarks.gpu.parts import DEVICE, GIB, Run, first_line
from studies.benchmarks.gpu.plain_loops import Loop, differ

RANK = 8
# Operations of a profile that are kept.
TOP = 20


@dataclass(frozen=True)
class Case:
    """What is trained.

    Attributes:
        name: of the case, in lines and figures.
        shape: of the model.
        batch_size: of each slot.
        length: tokens of each example; None: natural sentence lengths.
        slots: the packs' sizes; 1 is ours one trial after another.
        seconds: the case may take, loading not counted.
        learned: share of each text that a language model learns; None: two classes.
        count: examples, where their length is given.
        rounds: timed blocks of each contender.
        block: steps of a block, in which all lengths come round, and of the warm-up.
    """

    name: str
    shape: Shape
    batch_size: int
    length: int | None
    slots: tuple[int, ...]
    seconds: float
    learned: float | None = None
    count: int = 4096
    rounds: int = 3
    block: int = CYCLE

    @property
    def task(self) -> Task:
        """What the model is asked to do."""
        return Classification(("negative", "positive")) if self.learned is None else Language(())

    @property
    def roles(self) -> tuple[Role, ...]:
        """The roles that are trained; a language model has no head."""
        return ("q", "v", "head") if self.learned is None else ("q", "v")

    def load(self, wanted: Any = "auto") -> Backbone:
        """Return the frozen base."""
        return base(self.shape, DEVICE, wanted, language=self.learned is not None)

    def data(self, learned: float | None = None) -> TokenSet:
        """Return the examples; `learned` stands for the case's own share."""
        if self.learned is None:
            return tokens(self.shape, self.length, self.count)
        assert self.length is not None
        return texts(self.shape, self.length, self.count, learned or self.learned)

    def pack(
        self, built: Backbone, data: TokenSet, slots: int, *, graphs: bool = False, thrifty: bool = False
    ) -> Pack:
        """Return an empty pack."""
        return Pack(
            built,
            Training(batch_size=self.batch_size),
            self.task,
            data,
            capacity=slots,
            max_rank=RANK,
            lora_alpha=peers.ALPHA,
            roles=self.roles,
            graphs=Graphs(data.pad_id) if graphs else None,
            thrifty=thrifty,
        )

    @contextmanager
    def filled(
        self, built: Backbone, data: TokenSet, slots: int, steps: int, *, graphs: bool = False
    ) -> Iterator[Pack]:
        """Open a pack with a trial in every slot, each of its own seed."""
        with self.pack(built, data, slots, graphs=graphs) as pack:
            for seed in range(slots):
                pack.admit(SlotConfig({role: peers.RATES[role] for role in self.roles}, RANK, seed, steps))
            yield pack


def ceilings(run: Run) -> None:
    """Measure the largest rates of the GPU: a bf16 product, and a copy, bytes read and written."""
    n, size = (256, 2**22) if run.simulated else (8192, 2**30)
    one, two = (torch.randn(n, n, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(one)
    product = 2.0 * n**3 / run.timed(lambda: torch.mm(one, two, out=out)) / 1e12
    source = torch.randint(0, 256, (size,), device=DEVICE, dtype=torch.uint8)
    target = torch.empty_like(source)
    copy = 2.0 * size / run.timed(lambda: target.copy_(source)) / 1e12
    run.row("ceilings", bf16_tflops=digits(product), copy_tb_per_s=digits(copy))
    run.figure("bf16_tflops", product)
    run.figure("copy_tb_per_s", copy)


def measure(run: Run, case: Case) -> None:
    """Measure packs of all sizes, eager and recorded, against PEFT trainings; peers before and after the packs."""
    data = case.data()
    model = peers.peft_model(case.load("bf16"), RANK)
    rivals = _Rivals(run, case, model, data)
    rivals.measure()
    built = case.load()
    until = time.perf_counter() + min(case.seconds, run.left)
    rates: dict[str, list[float]] = {}
    for graphs in (False, True):
        peaks: dict[int, int] = {}
        for slots in case.slots:
            name = f"pack x{slots}" + (" recorded" if graphs else "")
            if time.perf_counter() > until:
                run.left_out(f"{case.name} {name}", "the case's time is over")
                continue
            said = ""
            try:
                rates[name] = _pack(run, case, built, data, slots, graphs, peaks)
            except RuntimeError as error:  # out of memory, or an operation that cannot be recorded
                said = first_line(error)
            run.release()  # after the error and what it holds is gone
            if said:
                run.row("not possible", case=case.name, contender=name, reason=said)
                break
    rivals.measure()
    rates |= rivals.rates
    del rivals, model
    run.release()
    _compare(run, case, built, data, rates)


class _Rivals:
    """PEFT trainings of a case, one after another: the plain loop, and the captured one."""

    def __init__(self, run: Run, case: Case, model: Any, data: TokenSet) -> None:
        self.run, self.case, self.rates = run, case, dict[str, list[float]]()
        self.loops: dict[str, Loop] = {"loop": Loop(run, model, data, case.batch_size)}
        self.difference: float | None = None
        try:
            self.difference = differ(run, model, data, case.batch_size, case.block)
            self.loops["captured loop"] = Loop(run, model, data, case.batch_size, graphs=True)
        except RuntimeError as error:
            run.row("not possible", case=case.name, contender="captured loop", reason=first_line(error))

    def measure(self) -> None:
        """Time each of them, after a cycle of lengths that warms up."""
        block = self.case.block
        for name in list(self.loops):
            try:
                self.loops[name].rate(block)
                found = [self.loops[name].rate(block, seed) for seed in range(self.case.rounds)]
            except RuntimeError as error:
                self.run.row("not possible", case=self.case.name, contender=name, reason=first_line(error))
                del self.loops[name]
                continue
            self.rates.setdefault(name, []).extend(found)
            more = {"loss_difference": self.difference} if name == "captured loop" else {}
            _rate_row(self.run, self.case, name, self.rates[name], **more)


def _pack(
    run: Run, case: Case, built: Backbone, data: TokenSet, slots: int, graphs: bool, peaks: dict[int, int]
) -> list[float]:
    """Time a pack and write a line; add the peak of its memory to those of smaller ones."""
    warm = case.block * (WARM + 1) if graphs else case.block
    before = torch.cuda.memory_allocated()
    predicted = slot_count.predict(peaks, slots) if peaks else None
    torch.cuda.reset_peak_memory_stats()
    with case.filled(built, data, slots, warm + case.rounds * case.block, graphs=graphs) as pack:
        if graphs and pack.graphs is None:
            raise RuntimeError("this pack records nothing")
        for _ in range(warm):
            pack.step()
        pack.flush()
        rates = []
        for _ in range(case.rounds):
            start = time.perf_counter()
            for _ in range(case.block):
                pack.step()
            pack.flush()  # waits for the GPU
            rates.append(slots * case.block / (time.perf_counter() - start))
        passes = pack.graphs.shapes if pack.graphs else 0
    peaks[slots] = torch.cuda.max_memory_allocated() - before
    _rate_row(
        run,
        case,
        f"pack x{slots}" + (" recorded" if graphs else ""),
        rates,
        step_ms=digits(1e3 * slots / statistics.median(rates)),
        passes=passes,
        pack_gib=digits(peaks[slots] / GIB),
        predicted_gib=None if predicted is None else digits(predicted / GIB),
        base_gib=digits(before / GIB),
        reserved_gib=digits(torch.cuda.max_memory_reserved() / GIB),
    )
    return rates


def _rate_row(run: Run, case: Case, contender: str, rates: list[float], **more: Any) -> None:
    median = digits(statistics.median(rates))
    about = {"case": case.name, "contender": contender}
    run.row("rate", **about, trial_steps_per_second=median, each=[digits(rate) for rate in rates], **more)


def _compare(run: Run, case: Case, built: Backbone, data: TokenSet, rates: dict[str, list[float]]) -> None:
    """Write ratios of medians, the share of the GPU's rate, and where the time of the best pack goes."""
    medians = {name: statistics.median(each) for name, each in rates.items()}
    packs = {name: value for name, value in medians.items() if name.startswith("pack")}
    if not packs:
        return
    best = max(packs, key=packs.__getitem__)
    others = {
        "to_loop": medians.get("loop"),
        "to_captured_loop": medians.get("captured loop"),
        "to_own_one": packs.get("pack x1"),
        "to_own_one_recorded": packs.get("pack x1 recorded"),
    }
    ratios = {name: digits(packs[best] / value) for name, value in others.items() if value}
    length = statistics.fmean(data.lengths())
    rate = packs[best] * flops(built, length, RANK) * length * case.batch_size / 1e12
    ceiling = run.result.figures.get("bf16_tflops")
    share = {"share_of_ceiling": digits(rate / ceiling)} if ceiling else {}
    run.row("ratio", case=case.name, best=best, **ratios, tflops=digits(rate), **share)
    run.figure(f"{case.name}_best_trial_steps_per_second", packs[best])
    for name, value in {**ratios, **share}.items():
        run.figure(f"{case.name}_{name}", value)
    _profile(run, case, built, data, int(best.split()[1].removeprefix("x")))


def _profile(run: Run, case: Case, built: Backbone, data: TokenSet, slots: int, steps: int = 2) -> None:
    """Write where the GPU's time of a pack's eager steps goes."""
    own = "self_cpu_time_total" if run.simulated else "self_device_time_total"
    with case.filled(built, data, slots, case.block + steps) as pack:
        profiler = peers.profiled(pack, case.block, steps, on_gpu=not run.simulated)
    # A kernel's time counts for the operation that launched it as well: on a GPU kernels alone are taken.
    kind = DeviceType.CPU if run.simulated else DeviceType.CUDA
    events = [event for event in profiler.key_averages() if event.device_type == kind]
    events.sort(key=lambda event: getattr(event, own), reverse=True)
    milliseconds = digits(sum(getattr(event, own) for event in events) / 1e3 / steps)
    top = [
        {"operation": e.key[:90], "calls": e.count // steps, "ms": digits(getattr(e, own) / 1e3 / steps)}
        for e in events[:TOP]
    ]
    run.row("profile", case=case.name, slots=slots, milliseconds=milliseconds, top=top)


def logits(run: Run, case: Case, slots: int = 1) -> None:
    """Measure what a logit costs: peaks of a step that learns all tokens, and of one that learns a quarter."""
    built, peaks, learned = case.load(), [], []
    vocabulary = case.shape.sizes["vocab_size"]
    for share in (1.0, 0.25):
        data = case.data(share)
        run.release()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        with case.filled(built, data, slots, 2) as pack:
            pack.step()
            pack.flush()
        peaks.append(torch.cuda.max_memory_allocated() - before)
        assert case.length is not None
        learned.append(slots * case.batch_size * min(case.length - 1, round(share * case.length)))
    each = (peaks[0] - peaks[1]) / (learned[0] - learned[1]) / vocabulary
    run.row("logits", case=case.name, learned=learned, peak_gib=[digits(p / GIB) for p in peaks], bytes_a_logit=each)
    run.figure(f"{case.name}_bytes_a_logit", each)


def chosen(run: Run, case: Case, most: int = 64) -> None:
    """Let a search's own probe choose, and compare the memory it predicts with what its choice reaches."""
    built, data = case.load(), case.data()
    config = SlotConfig({role: peers.RATES[role] for role in case.roles}, RANK, 0, 64)

    def make(count: int, passes: int | None = None, graphs: bool = False) -> Pack:
        return case.pack(built, data, count, graphs=graphs)

    start = time.perf_counter()
    found = slot_count.measure(make, config, most)
    seconds = time.perf_counter() - start
    run.release()
    torch.cuda.reset_peak_memory_stats()
    steps = case.block * (WARM + 1)
    with case.filled(built, data, found.slots, steps, graphs=found.graphs) as pack:
        for _ in range(steps):
            pack.step()
        pack.flush()
        pack.evaluate(pack.slots, data.take(range(min(len(data), 512))), averaged=True)
    peak = torch.cuda.max_memory_allocated()
    run.row(
        "capacity",
        case=case.name,
        seconds=digits(seconds),
        slots=found.slots,
        reason=found.reason,
        rates={str(slots): digits(rate) for slots, rate in found.rates.items()},
        graphs=found.graphs,
        graphs_reason=found.graphs_reason,
        predicted_gib=digits(found.peak_bytes / GIB),
        allocated_gib=digits(peak / GIB),
        reserved_gib=digits(torch.cuda.max_memory_reserved() / GIB),
    )
    run.figure(f"{case.name}_chosen_slots", found.slots)
    run.figure(f"{case.name}_peak_memory_error_pct", 100 * (found.peak_bytes - peak) / peak)


def with_room(run: Run, case: Case, slots: Sequence[int]) -> None:
    """Step packs of a large case once warm, as far as they fit; sizes that do not are named."""
    built, data = case.load(), case.data()
    peaks: dict[int, int] = {}
    for count in slots:
        said = ""
        try:
            _pack(run, case, built, data, count, False, peaks)
        except RuntimeError as error:
            said = first_line(error)
        run.release()
        if said:
            run.row("not possible", case=case.name, contender=f"pack x{count}", reason=said)
            return


def digits(value: float) -> float:
    """Return a number with four digits."""
    return float(f"{value:.4g}")
