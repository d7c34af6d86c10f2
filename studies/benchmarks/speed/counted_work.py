"""Counted performance of a pack's step on a GPU, without a GPU and without a clock.

    python -m studies.benchmarks.speed.counted_work [--quick] [--only NAME] [--out FOLDER]

Each case trains a pack of real size on torch's meta device, whose tensors have shapes and no numbers. The counts are
kernels, FLOPs, bytes moved and the peak of live bytes, by phase, for one step of all slots. Nothing here is measured
in seconds, and no speed is assumed. `kernel_counter.py` says what counts as what.

A pass is counted as it runs without CUDA graphs. A recorded pass has the same kernels and one launch.
"""

from __future__ import annotations

from collections import Counter as Multiset
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from autolr.data.batches import CYCLE, IGNORED, TokenSet
from autolr.data.tasks import Classification, Language, Task
from autolr.model.backbone import Backbone, checkpoint_layers
from autolr.model.quiet import quiet
from autolr.pack.pack import MULTIPLE, Pack
from autolr.pack.slots import SlotConfig
from autolr.schema.space import Role
from autolr.schema.training import Training
from studies.benchmarks.common import document, shapes
from studies.benchmarks.common.document import Result
from studies.benchmarks.common.shapes import LLAMA_1B, LLAMA_8B, ROBERTA, Shape
from studies.benchmarks.speed.kernel_counter import PHASES, Counter, Given, Operation, Tally, by_phase, fused, tally

META = torch.device("meta")
RANK, ALPHA = 8, 16.0
SLOTS = (1, 2, 4, 8, 16, 32)
GIB = 2**30
# Examples of a case whose texts all have the same length; every slot draws its batches from them.
EXAMPLES = 512
# Bytes of `Counted`, in the order of the tables.
MEMORY = ("weights", "rows", "activations", "logits", "peak")


@dataclass(frozen=True)
class Case:
    """What is trained, with adapters on W_q and W_v.

    Attributes:
        name: of its figures.
        length: tokens of each example; None: the lengths of the embedded sentences.
        learned: share of each example's tokens that a language model learns; None: a classification.
        checkpointing: keep each layer's input alone, and compute the layer again on the way back.
        slots: sizes of the pack.
        steps: over which counts are averaged.
    """

    name: str
    shape: Shape
    batch_size: int
    length: int | None = None
    learned: float | None = None
    gradient_checkpointing: bool = False
    slots: tuple[int, ...] = SLOTS
    steps: int = 1

    @property
    def vocabulary(self) -> int:
        """Outputs of a language model; 0 of a classification."""
        return 0 if self.learned is None else int(self.shape.sizes["vocab_size"])

    @property
    def roles(self) -> tuple[Role, ...]:
        """What learns."""
        return ("q", "v", "head") if self.learned is None else ("q", "v")

    def data(self) -> TokenSet:
        """Return its examples; their ids do not matter, and are the same."""
        lengths = shapes.natural_lengths() if self.length is None else (self.length,) * EXAMPLES
        ids = [[5] * length for length in lengths]
        if self.learned is None:
            return TokenSet(ids, [row % 2 for row in range(len(ids))], 1)
        kept = [round(length * self.learned) for length in lengths]
        labels = [[IGNORED] * (len(own) - count) + own[:count] for own, count in zip(ids, kept, strict=True)]
        return TokenSet(ids, labels, 1)

    def task(self) -> Task:
        """Return its task."""
        return Classification(("negative", "positive")) if self.learned is None else Language(())

    def base(self, device: torch.device = META, dtype: torch.dtype = torch.bfloat16) -> Backbone:
        """Return its frozen base; in bfloat16 it is what a search holds on a GPU."""
        with Given():  # whether a language model sees ahead is asked of its numbers
            found = shapes.base(self.shape, device, "fp32", language=self.learned is not None)
        found.model.to(dtype)
        if self.gradient_checkpointing:
            with quiet():
                checkpoint_layers(found.model, self.shape.name)
        return found


CASES = (
    Case("roberta_b32_natural", ROBERTA, 32, steps=CYCLE),
    Case("llama_1b_b4x128", LLAMA_1B, 4, 128),
    Case("llama_8b_b1x128", LLAMA_8B, 1, 128),
    Case("sft_1b_b4x128_all", LLAMA_1B, 4, 128, learned=1.0),
    Case("sft_8b_b8x512_half", LLAMA_8B, 8, 512, learned=0.5, slots=(1, 2, 4)),
    Case(
        "sft_8b_b8x512_half_checkpointed",
        LLAMA_8B,
        8,
        512,
        learned=0.5,
        gradient_checkpointing=True,
        slots=(1, 2, 4, 8),
    ),
)


@dataclass
class Counted:
    """The counts of a case with a number of slots.

    Attributes:
        operations: of each step.
        tokens: of the examples, a step.
        padded: places of the batches, a step.
        learned: tokens that are learned, a step; 0 of a classification.
        weights: bytes of the frozen base.
        rows: bytes that the pack holds between steps: adapters and heads, their averages, gradients and moments.
        logits: bytes of tensors as wide as the vocabulary, at the step's peak.
        activations: all other bytes at the step's peak.
        bytes_a_logit: the most bytes of tensors as wide as the vocabulary, by their number of logits; None of a
            classification.
    """

    operations: list[list[Operation]]
    tokens: float
    padded: float
    learned: float
    weights: int
    rows: int
    logits: int
    activations: int
    bytes_a_logit: float | None

    @property
    def peak(self) -> int:
        """Bytes at the highest, all in all."""
        return self.weights + self.rows + self.activations + self.logits

    def phases(self) -> dict[str, Tally]:
        """Return kernels, FLOPs and bytes moved of each phase, a step."""
        each = [by_phase(step) for step in self.operations]
        return {phase: self._mean([own[phase] for own in each]) for phase in PHASES}

    def groups(self) -> dict[str, Tally]:
        """Return those of groups of kernels, a step.

        `products`, `attention` and `other` are disjoint and add up to `all`. Two groups lie across them: `pack` are
        the adapters and heads in the forward and the backward pass, `logits` all that is as wide as the vocabulary.
        """
        own: dict[str, list[list[Operation]]] = {"all": self.operations}
        for name, kind in (("products", "product"), ("attention", "attention"), ("other", "other")):
            own[name] = [[o for o in step if o.kind == kind] for step in self.operations]
        passes = [[o for phase in PHASES[:2] for o in by_phase(step)[phase]] for step in self.operations]
        own["pack"] = [[o for o in step if o.owner == "pack" and not o.logits] for step in passes]
        own["logits"] = [[o for o in step if o.logits] for step in self.operations]
        return {name: self._mean(steps) for name, steps in own.items()}

    def names(self) -> dict[str, dict[str, float]]:
        """Return how often each operation runs in each phase, a step; the most frequent first."""
        found: dict[str, dict[str, float]] = {}
        for phase in PHASES:
            counts = Multiset(o.name for step in self.operations for o in by_phase(step)[phase])
            found[phase] = {name: count / len(self.operations) for name, count in counts.most_common()}
        return found

    def _mean(self, steps: Sequence[Sequence[Operation]]) -> Tally:
        return tally(o for step in steps for o in step) / len(self.operations)


class CountedPack(Pack):
    """A pack that pads as on a GPU, and whose slots start from zeros.

    Drawing first values takes long, and no count depends on them.

    Attributes:
        given: gets the answer that a GPU would read from each batch.
        tokens: of the examples of all batches so far.
        padded: places of all batches so far.
        learned: tokens that were learned so far.
    """

    def __init__(self, given: Given, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._multiple = MULTIPLE
        self.given = given
        self.tokens = self.padded = self.learned = 0

    def initial_values(self, config: SlotConfig) -> dict[str, Tensor]:
        """Return nothing: all of a row is zero."""
        return {}

    def gather(self, data: TokenSet, rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """Return a batch, and note what it holds."""
        batch = super().gather(data, rows)
        places, picked = batch["input_ids"].numel(), [row for own in rows for row in own]
        tokens = sum(len(data.ids[row]) for row in picked)
        self.given.whole = tokens == places
        self.tokens, self.padded = self.tokens + tokens, self.padded + places
        self.learned += sum(data.learned[row] for row in picked) if data.of_language else 0
        return batch


def count(case: Case, slots: int, base: Backbone | None = None) -> Counted:
    """Count the steps of a full pack.

    Args:
        case: what is trained.
        slots: that share the pass, each with its own adapters and batches.
        base: on which device; None: the case's own, on the meta device.
    """
    base = base or case.base()
    device = next(base.model.parameters()).device
    given, counter = Given(), Counter(device, case.vocabulary)
    rates: dict[Role, float] = {role: 1e-4 if role in case.roles else 0.0 for role in ("q", "k", "v", "head")}
    about = (given, base, Training(batch_size=case.batch_size), case.task(), case.data())
    options: dict[str, Any] = {"max_rank": RANK, "lora_alpha": ALPHA, "roles": case.roles, "thrifty": False}
    operations = []
    with counter, CountedPack(*about, capacity=slots, together=slots, **options) as pack:
        for seed in range(slots):
            pack.admit(SlotConfig(rates, RANK, seed, case.steps + 1))
        counter.restart()
        rows = counter.live.total
        for _ in range(case.steps):
            counter.operations.clear()
            with ExitStack() as stack:
                if device == META:
                    stack.enter_context(given)
                    stack.enter_context(fused())
                pack.step()
            operations.append(list(counter.operations))
    learned = pack.learned / case.steps
    return Counted(
        operations,
        tokens=pack.tokens / case.steps,
        padded=pack.padded / case.steps,
        learned=learned,
        weights=sum(tensor.nbytes for tensor in (*base.model.parameters(), *base.model.buffers())),
        rows=rows,
        logits=counter.peak.logits,
        activations=counter.peak.other - rows,
        bytes_a_logit=counter.logits_peak / (learned * case.vocabulary) if case.vocabulary else None,
    )


def measure(result: Result, case: Case) -> None:
    """Count a case with each number of slots, and add rows and figures."""
    counted = {slots: count(case, slots) for slots in case.slots}
    for slots, found in counted.items():
        groups = {name: _plain(own) for name, own in found.groups().items()}
        memory = {name: getattr(found, name) for name in MEMORY}
        result.row(
            "step",
            case=case.name,
            slots=slots,
            kernels=groups["all"]["kernels"],
            tflop=_short(groups["all"]["flops"] / 1e12),
            gigabytes=_short(groups["all"]["bytes"] / 1e9),
            peak_gib=_short(found.peak / GIB),
            tokens=found.tokens,
            padded_tokens=found.padded,
            learned_tokens=found.learned,
            bytes_a_logit=found.bytes_a_logit,
            phases={name: _plain(own) for name, own in found.phases().items()},
            groups=groups,
            memory=memory,
            **({"operations": found.names()} if slots == 1 else {}),
        )
    one, (slots, most) = counted[1], max(counted.items())
    alone, together = one.groups(), most.groups()
    result.figure(f"{case.name}.kernels", alone["all"].kernels)
    result.figure(f"{case.name}.pack_kernel_share", alone["pack"].kernels / alone["all"].kernels)
    result.figure(f"{case.name}.tflop", alone["all"].flops / 1e12)
    result.figure(f"{case.name}.gigabytes", alone["all"].bytes / 1e9)
    result.figure(f"{case.name}.gigabytes_a_trial_{slots}", together["all"].bytes / 1e9 / slots)
    result.figure(f"{case.name}.other_byte_share_{slots}", together["other"].bytes / together["all"].bytes)
    result.figure(f"{case.name}.peak_gib", one.peak / GIB)
    if slots > 1:
        result.figure(f"{case.name}.gib_a_slot", (most.peak - one.peak) / GIB / (slots - 1))
    if case.length is None:
        result.figure(f"{case.name}.padding_1", one.padded / one.tokens)
        result.figure(f"{case.name}.padding_{slots}", most.padded / most.tokens)
    if case.vocabulary:
        result.figure(f"{case.name}.bytes_a_logit", one.bytes_a_logit)


def _plain(own: Tally) -> dict[str, float]:
    return {name: round(value, 2) if name == "kernels" else round(value) for name, value in asdict(own).items()}


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def tables(rows: Sequence[dict[str, Any]]) -> str:
    """Return the tables of the documentation, as Markdown.

    Args:
        rows: of a result.
    """
    steps = [row for row in rows if row["kind"] == "step"]
    most = {row["case"]: row["slots"] for row in steps}
    costs = [
        "| case | slots | kernels | TFLOP | GB moved | tokens | weights | rows | activations | logits | peak |",
        "|---|" + 10 * "--:|",
    ]
    for row in steps:
        own, slots = row["groups"]["all"], row["slots"]
        if slots in (1, 8, most[row["case"]]):
            each = [own["kernels"], own["flops"] / 1e12, own["bytes"] / 1e9, row["padded_tokens"]]
            cells = [f"{value / slots:,.{digits}f}" for value, digits in zip(each, (0, 2, 1, 0), strict=True)]
            cells += [f"{row['memory'][name] / GIB:.2f}" for name in MEMORY]
            costs.append(f"| {row['case']} | {slots} | " + " | ".join(cells) + " |")
    names = ["products", "attention", "other", "pack", "logits"]
    shares = [
        f"| case | slots | percent of | {' | '.join([*PHASES, *names])} |",
        "|---|--:|---|" + (len(PHASES) + len(names)) * "--:|",
    ]
    for row in steps:
        for slots, unit in ((1, "kernels"), (min(8, most[row["case"]]), "bytes")):
            if row["slots"] == slots:
                whole = row["groups"]["all"][unit]
                parts = [row["phases"][phase] for phase in PHASES] + [row["groups"][name] for name in names]
                cells = [f"{100 * part[unit] / whole:.0f}" for part in parts]
                shares.append(f"| {row['case']} | {slots} | {unit} | " + " | ".join(cells) + " |")
    return "\n".join(costs) + "\n\n" + "\n".join(shares)


def main(words: Sequence[str] | None = None) -> None:
    options = document.parser(__doc__)
    options.add_argument("--only", help="cases whose name holds this")
    given = options.parse_args(words)
    if given.device not in (None, "meta"):
        options.error(f"--device {given.device}: this benchmark counts on the meta device. Leave the option out.")
    quick = [replace(case, slots=(1, 2), steps=min(case.steps, 2)) for case in CASES if "8b" not in case.name]
    cases = [case for case in (quick if given.quick else CASES) if not given.only or given.only in case.name]
    result = Result("counted")
    result.settings = {
        "quick": given.quick,
        "rank": RANK,
        "base": "bfloat16",
        "trained": "float32",
        "attn_implementation": "one fused kernel each way",
        "cases": [{**asdict(case), "shape": {"name": case.shape.name, **case.shape.sizes}} for case in cases],
    }
    for case in cases:
        measure(result, case)
    print(tables(result.rows))
    document.deliver(result, torch.device("cpu"), keep=not given.quick and not given.only, out=given.out)


if __name__ == "__main__":
    main()
