"""What theory says of a model: costs and bounds of each choice of matrices, and the terms of its first steps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from autolr import display
from autolr.data.batches import IGNORED, TokenSet
from autolr.data.tasks import Task
from autolr.errors import AutoLRError
from autolr.finetune.param_groups import grouped
from autolr.insight import bounds, first_steps, peak_memory
from autolr.insight.bounds import Cost
from autolr.insight.first_steps import Step
from autolr.model import adapters
from autolr.model.backbone import Backbone
from autolr.model.device import choose_device
from autolr.model.quiet import quiet
from autolr.model.sparse_logits import forward
from autolr.pack.optimizers import row_optimizer
from autolr.problem import load_bare
from autolr.rundir import provenance
from autolr.schema.candidate import Candidate
from autolr.schema.data import Data, TaskName
from autolr.schema.space import MethodKind, Role, Targets
from autolr.schema.study import Study
from autolr.schema.training import Training
from autolr.tuner.propose import baselines
from autolr.tuner.setting import read_setting

DEFAULT_EXAMPLES = 10_000
BATCH_SIZE, TOKENS = 16, 64


@dataclass(frozen=True)
class Choice:
    """A choice of matrices, and what it costs.

    Attributes:
        cost: parameters, bytes and the bound.
        ratio: the bound by that of the first choice.
        predicted_peak: base, weight, gradient and optimizer state of each trained parameter, and the first choice's
            activations; None unless the peak was measured.
        peak: of training steps, in bytes, the base counted.
    """

    cost: Cost
    ratio: float
    predicted_peak: int | None = None
    peak: int | None = None


@dataclass(frozen=True)
class Theory:
    """What `theory` has found.

    Attributes:
        choices: in the order of targets and ranks.
        examples: N of the bounds.
        coverage: what of the model is tuned.
        base_bytes: of the frozen base.
        steps: terms of the first steps; empty where no data were given.
        candidate: that the steps were taken with.
    """

    model: str
    coverage: str
    base_bytes: int
    examples: int
    choices: list[Choice]
    steps: list[Step]
    candidate: Candidate | None = None

    @property
    def balance(self) -> float | None:
        """The λ at which W_q and W_v would change the attention's output alike: the geometric mean over steps."""
        if not self.steps or self.candidate is None:
            return None
        logs = [math.log(step.balance(self.candidate.ratio)) for step in self.steps]
        return math.exp(sum(logs) / len(logs))

    def summary(self) -> dict[str, Any]:
        """Return all figures as plain numbers."""
        return {
            "model": self.model,
            "coverage": self.coverage,
            "base_bytes": self.base_bytes,
            "examples": self.examples,
            "choices": [
                {
                    **asdict(one.cost),
                    "ratio": one.ratio,
                    **({"predicted_peak": one.predicted_peak, "peak": one.peak} if one.peak is not None else {}),
                }
                for one in self.choices
            ],
            **({"candidate": self.candidate.model_dump(), "balance": self.balance} if self.candidate else {}),
            "steps": [{**step._asdict(), "balance": step.balance(self.candidate.ratio)} for step in self.steps]
            if self.candidate
            else [],
            "versions": provenance.versions(),
            "commit": provenance.commit(),
        }

    def _repr_html_(self) -> str:
        """Return the choices as a notebook shows them."""
        heads = ("targets", "kind", "rank", "parameters", "optimizer bytes", "bound, by the first")
        rows = [
            (
                c.cost.targets,
                c.cost.kind,
                c.cost.rank,
                f"{c.cost.adapter:,}",
                f"{c.cost.optimizer_bytes:,}",
                f"{c.ratio:.4f}",
            )
            for c in self.choices
        ]
        return display.grid(heads, rows)


def theory(
    model: str,
    *,
    targets: Sequence[Targets] = ("qv", "qkv"),
    ranks: Sequence[int] = (8,),
    kinds: Sequence[MethodKind] = ("lora",),
    examples: int | None = None,
    classes: int = 2,
    task: TaskName = "classification",
    measure: bool = False,
    batch_size: int = BATCH_SIZE,
    tokens: int = TOKENS,
    data: str | Data | None = None,
    lr_v: float | None = None,
    ratio: float = 1.0,
    at: Sequence[int] = first_steps.LOOKED_AT_STEPS,
    seed: int = 0,
    device: str | None = None,
) -> Theory:
    """Compute what each choice of matrices costs and how Theorem 1 ranks it; with data, what the first steps do.

    Without data and `measure` the model's config.json is enough, and no weights are read.

    Args:
        model: local folder, hub id, or an embedded model.
        targets: choices of matrices; the first is what the others are measured by.
        ranks: of adapters.
        kinds: methods.
        examples: N of the bound; None: of the data, or 10,000.
        classes: outputs of the head, where no data say.
        task: what the model is for.
        measure: measure the peak memory of training steps as well.
        batch_size: examples of such a step.
        tokens: of each example.
        data: to train the first steps on; None: none are.
        lr_v: rate of W_v in these steps; None: the rule of thumb's.
        ratio: λ of these steps.
        at: steps that are looked into.
        seed: of adapter, head and data.
        device: such as `cpu` or `cuda:0`; None: the GPU where there is one.

    Raises:
        AutoLRError: something of this is at fault.
    """
    problems = [f"rank {rank}: must be at least 1" for rank in ranks if rank < 1]
    least = (("examples", examples, 1), ("batch_size", batch_size, 1), ("tokens", tokens, 2))
    problems += [f"{name} {n}: must be at least {low}" for name, n, low in least if n is not None and n < low]
    if problems or not targets or not ranks:
        raise AutoLRError("; ".join(problems) or "theory needs at least one of targets and one of ranks")
    where = choose_device(device)
    found: list[Step] = []
    candidate, base = None, None
    with quiet():
        if data is not None:
            source = Data(source=data) if isinstance(data, str) else data
            study = Study(model=model, data=source, task=task, training=Training(precision="fp32"), seed=seed)
            setting = read_setting(study, where)
            base, judge = setting.backbone, setting.task
            examples = examples or len(setting.data.train)
        else:
            outputs = 1 if task == "regression" else classes
            base, judge = load_bare(model, outputs, where if measure else None, task)
        costs = [
            bounds.cost(base, one, rank, kind, examples or DEFAULT_EXAMPLES)
            for one, kind in itertools.product(targets, kinds)
            for rank in (ranks if kind != "full" else ranks[:1])
        ]
        for one in costs:
            adapters.check(base, base.projections.of(one.targets), one.kind)
            if one.rank > base.projections.largest_rank:
                raise AutoLRError(
                    f"--ranks {one.rank}: the matrices of {model!r} allow at most {base.projections.largest_rank}"
                )
        held = sum(p.numel() * p.element_size() for p in base.model.parameters())
        choices = [Choice(one, r) for one, r in zip(costs, bounds.ratios(costs), strict=True)]
        if measure:
            choices = _peaks(base, judge, choices, held, batch_size, tokens, seed)
        if data is not None:
            default = baselines.default(setting.space)
            candidate = default.model_copy(update={"lr_v": lr_v or default.lr_v, "ratio": ratio, "rank": ranks[0]})
            found = first_steps.measure(
                base,
                judge,
                setting.data.train,
                study.training,
                candidate,
                lr_head=setting.space.lr_head,
                alpha=study.method.lora_alpha,
                at=at,
                seed=seed,
            )
    return Theory(model, base.projections.coverage, held, examples or DEFAULT_EXAMPLES, choices, found, candidate)


def _peaks(
    base: Backbone, task: Task, choices: list[Choice], held: int, batch_size: int, tokens: int, seed: int
) -> list[Choice]:
    """Measure the peak of each choice, and predict it from the first one's activations."""
    limit = min(tokens, base.max_length or tokens)
    data = _tokens(base, task, batch_size, limit, seed)
    found = []
    activations = 0
    for place, choice in enumerate(choices):
        peak = held + _peak(base, task, data, choice.cost, seed)
        if not place:
            activations = peak - held - choice.cost.optimizer_bytes
        predicted = held + choice.cost.optimizer_bytes + activations
        found.append(replace(choice, predicted_peak=predicted, peak=peak))
    return found


def _peak(base: Backbone, task: Task, data: TokenSet, cost: Cost, seed: int) -> int:
    """Return the bytes that two training steps have in use at the highest, beside the frozen base."""
    device = next(base.model.parameters()).device
    rates: dict[Role, float] = dict.fromkeys(("q", "k", "v", "o", "mlp", "head"), 1e-4)

    def work() -> None:
        with adapters.adapted(base, cost.targets, cost.rank, 16.0, seed, cost.kind) as model:
            optimizer = row_optimizer().alone(grouped(model, rates), Training())
            batch = {key: value.to(device) for key, value in data.collate(range(len(data))).items()}
            for _ in range(2):  # the second has the optimizer's state
                optimizer.zero_grad()
                task.batch_losses(forward(model, batch), batch["labels"])[0].backward()  # type: ignore[no-untyped-call]
                optimizer.step()

    return peak_memory.peak(work, device)


def _tokens(base: Backbone, task: Task, count: int, length: int, seed: int) -> TokenSet:
    """Return examples of one length with random tokens; of a language model the last one is learned."""
    size = int(base.model.config.get_text_config().vocab_size)
    drawn = torch.randint(0, size, (count, length), generator=torch.Generator().manual_seed(seed)).tolist()
    pad = int(base.model.config.get_text_config().pad_token_id or 0)
    if not base.head:
        return TokenSet(drawn, [[*[IGNORED] * (length - 1), own[-1]] for own in drawn], pad)
    return TokenSet(drawn, [number % max(1, len(task.classes)) for number in range(count)], pad)
