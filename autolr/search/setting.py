"""What a search works with: study, data, model and space, read and checked against each other."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from autolr.candidate import Candidate
from autolr.data import sources
from autolr.data.batches import CYCLE
from autolr.data.prepared import Prepared, prepare
from autolr.data.sources import Examples
from autolr.data.tasks import Task, task_of
from autolr.model import backbone, remote
from autolr.model.backbone import Backbone
from autolr.model.device import choose_device as choose_device  # the one way to name a device
from autolr.model.quiet import quiet
from autolr.pack.factory import PackFactory
from autolr.pack.slots import SlotConfig
from autolr.search.space import SearchSpace
from autolr.study import MethodKind, Role, Study, Targets, roles_of

# A trial is this part of the full run. Measured on the embedded study (studies/oracle): after a quarter, averaged
# weights rank candidates as the end does (Spearman 0.96); after an eighth they do so less well (0.77).
PART = 0.25
# Long enough for all that is tried out on a device before a search, however short the full run is.
PROBE_STEPS = 64


@dataclass(frozen=True)
class Setting:
    """Everything a search needs, read and checked.

    Attributes:
        steps: the horizon, in optimizer steps.
        length: steps of a trial; never more than the horizon.
    """

    study: Study
    examples: Examples
    backbone: Backbone
    data: Prepared
    space: SearchSpace
    task: Task
    steps: int
    length: int

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        found: torch.device = next(self.backbone.model.parameters()).device
        return found

    @property
    def full_run_tokens(self) -> float:
        """Tokens a full run trains on, padding not counted."""
        mean = self.data.tokens_per_epoch() / len(self.data.train)
        return mean * self.study.training.batch_size * self.steps

    @property
    def has_finals(self) -> bool:
        """Whether the winner is chosen at the end of the full run."""
        return self.study.search.has_finals(self.length, self.steps)

    @property
    def semifinal_steps(self) -> int:
        """Where semifinals end, in steps of the full run; 0 where there are none."""
        half, search = round(self.steps / 2 / CYCLE) * CYCLE, self.study.search
        return half if self.has_finals and search.semifinalists > search.finalists and half > self.length else 0

    @property
    def largest(self) -> SlotConfig:
        """A trial that takes as much memory as any of the study."""
        targets = max(self._targets, key=lambda targets: len(roles_of(targets)))
        kinds = self.study.method.kind
        return self._probe(self._max_rank, targets, "dora" if "dora" in kinds else kinds[0])

    @property
    def smallest(self) -> SlotConfig:
        """A trial that takes as little memory as any of the study."""
        targets = min(self.study.space.targets, key=lambda targets: len(roles_of(targets)))
        kind: MethodKind = next((kind for kind in self.study.method.kind if kind != "dora"), "dora")
        return self._probe(min(self._max_rank, *self.study.space.rank), targets, kind)

    def _probe(self, rank: int, targets: Targets, kind: MethodKind) -> SlotConfig:
        candidate = Candidate(lr_v=self.space.rate, ratio=1.0, rank=rank, targets=targets, kind=kind)
        return replace(self.space.slot(candidate, 0, PROBE_STEPS), steps=max(self.steps, PROBE_STEPS), stop=None)

    @property
    def _max_rank(self) -> int:
        return 0 if self.study.method.full else max(self.study.space.rank)

    @property
    def _targets(self) -> list[Targets]:
        """What any candidate trains."""
        return [*self.study.space.targets, *(["qkv"] if "qkv" in self.study.baselines else [])]  # type: ignore[list-item]

    @property
    def pack(self) -> PackFactory:
        """What makes empty packs that take any candidate of the study."""
        trained: set[Role] = {role for targets in self._targets for role in roles_of(targets)} | {"head"}
        study = self.study
        return PackFactory(
            self.backbone,
            study.training,
            self.task,
            self.data.train,
            self._max_rank,
            study.method.alpha,
            study.method.kind,
            trained,
        )


def read_setting(
    study: Study, device: torch.device, *, allow_code: bool = False, trust_remote_code: bool = False
) -> Setting:
    """Load data and model of a study and check that they fit each other.

    Args:
        study: the study.
        device: where the model goes.
        allow_code: whether the study's metric may be code, `my_module:function`.
        trust_remote_code: whether Python code that comes with the model may run, where the study asks for it.

    Raises:
        AutoLRError: the metric, or the model, is code that must not run.
        DataError: see `autolr.data.sources.load` and `autolr.data.splits.split`.
        ModelError: see `autolr.model.backbone.load`; or a rank is larger than a matrix.
    """
    task_of(study.task, (), study.metric, allow_code=allow_code)  # says at once what is wrong with the metric
    trusted = remote.agreed(study.trust_remote_code, trust_remote_code, study.model)
    examples = sources.load(study.data, study.task)
    with quiet():
        training = study.training
        if study.task == "classification":
            order = backbone.in_order(study.model, examples.classes, trust_remote_code=trusted)
            examples = examples.ordered(order)
        base = backbone.load(
            study.model,
            examples.classes,
            device,
            training.precision,
            study.task,
            training.attention,
            training.checkpointing,
            trust_remote_code=trusted,
        )
        batch = study.training.batch_size
        data = prepare(examples, study.data, base.tokenizer, batch, study.seed, base.max_length, base.vocabulary)
        data = replace(data, summary=(*base.notes, *data.summary))
    horizon = study.training.horizon
    per_epoch = len(data.train) // batch
    steps = horizon.steps or max(1, round((horizon.epochs or 0) * per_epoch))
    space = SearchSpace.of(study, base, steps)
    task = task_of(
        study.task,
        examples.classes,
        study.metric,
        data.train.labels,
        allow_code=allow_code,
        numbers=examples.numbers,
    )
    return Setting(study, examples, base, data, space, task, steps, _length(study, steps))


def _length(study: Study, steps: int) -> int:
    length = study.search.length
    if length == "auto":
        length = max(1, round(steps * PART / CYCLE)) * CYCLE
    return min(length, steps)
