"""What a search works with: study, data, model and space, read and checked against each other."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from autolr.model.device import choose_device as choose_device  # the one way to name a device
from autolr.pack.factory import PackFactory
from autolr.pack.slots import SlotConfig
from autolr.problem import Problem, load_problem
from autolr.schema.candidate import Candidate
from autolr.schema.space import MethodKind, Role, Targets, roles_of
from autolr.schema.study import Study
from autolr.tuner.propose.baselines import targets_of
from autolr.tuner.propose.space import SearchSpace
from autolr.tuner.stages import Stage, stages

# Long enough for all that is tried out on a device before a search, however short the full run is.
PROBE_STEPS = 64


@dataclass(frozen=True)
class Setting(Problem):
    """A problem, and what a study does with it.

    Attributes:
        steps: the horizon, in optimizer steps.
    """

    study: Study
    space: SearchSpace
    steps: int

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The table of the search's stages."""
        return stages(self.study, self.steps)

    @property
    def length(self) -> int:
        """Steps of a trial."""
        return self.stages[0].steps

    @property
    def full_run_tokens(self) -> float:
        """Tokens a full run trains on, padding not counted."""
        mean = self.data.tokens_per_epoch() / len(self.data.train)
        return mean * self.study.training.batch_size * self.steps

    @property
    def largest(self) -> SlotConfig:
        """A trial that takes as much memory as any of the study."""
        targets = max(targets_of(self.study), key=lambda targets: len(roles_of(targets)))
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
    def pack(self) -> PackFactory:
        """What makes empty packs that take any candidate of the study."""
        trained: set[Role] = {role for targets in targets_of(self.study) for role in roles_of(targets)} | {"head"}
        study = self.study
        return PackFactory(
            self.backbone,
            study.training,
            self.task,
            self.data.train,
            self._max_rank,
            study.method.lora_alpha,
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
        allow_code: see `autolr.problem.load_problem`.
        trust_remote_code: likewise.

    Raises:
        AutoLRError: see `autolr.problem.load_problem`; or a rank is larger than a matrix.
    """
    problem = load_problem(study, device, allow_code=allow_code, trust_remote_code=trust_remote_code)
    horizon = study.training.horizon
    per_epoch = len(problem.data.train) // study.training.batch_size
    steps = horizon.steps or max(1, round((horizon.epochs or 0) * per_epoch))
    space = SearchSpace.of(study, problem.backbone, steps)
    return Setting(**vars(problem), study=study, space=space, steps=steps)
