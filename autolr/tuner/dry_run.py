"""What a search would do and cost, without doing it: the answer of `--dry-run`."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass

from autolr.data.batches import joined
from autolr.model import adapters
from autolr.model.device import choose_device
from autolr.pack.slots import Slot
from autolr.schema.candidate import Candidate
from autolr.schema.study import Study
from autolr.tuner import hardware
from autolr.tuner.execute.held_out import judges
from autolr.tuner.execute.rung_examples import affordable
from autolr.tuner.propose import baselines
from autolr.tuner.propose.space import describe
from autolr.tuner.setting import Setting, read_setting
from autolr.tuner.stages import Judge, Stage


@dataclass(frozen=True)
class StagePlan:
    """What one stage would cost, at most: some trials are pruned, and some baselines are finalists too.

    Attributes:
        stage: who trains, and how far.
        trained_steps: of all trainings, those that they resume not counted.
        evaluated_tokens: tokens that are scored.
    """

    stage: Stage
    trained_steps: int
    evaluated_tokens: float


@dataclass(frozen=True)
class Plan:
    """What a search would do and cost."""

    coverage: str
    base: str
    data: tuple[str, ...]
    left_out: tuple[str, ...]
    parameters: dict[str, dict[str, int]]
    splits: dict[str, int]
    horizon: int
    rungs: tuple[int, ...]
    baselines: dict[str, Candidate]
    space: dict[str, str]
    stages: tuple[StagePlan, ...]
    trained_tokens: int
    full_run_equivalents: float
    seconds: float
    machine: str


def plan(
    study: Study, device: str | None = None, *, allow_code: bool = False, trust_remote_code: bool = False
) -> Plan:
    """Return what a search of the study would do; a few steps are timed, nothing is written.

    Raises:
        AutoLRError: as `search`.
    """
    setting = read_setting(study, choose_device(device), allow_code=allow_code, trust_remote_code=trust_remote_code)
    found = hardware.fit(setting)
    per_step, per_token = _probe(setting, min(found.slots, study.budget.trials), found.passes, found.graphs)
    stages = tuple(_stage(setting, stage) for stage in setting.stages)
    steps = sum(stage.trained_steps for stage in stages)
    named = {baseline.value: baseline.candidate(setting.space) for baseline in baselines.of(study)}
    data, tokens = setting.data, steps * setting.full_run_tokens / setting.steps
    return Plan(
        coverage=setting.backbone.projections.coverage,
        base=setting.backbone.placed or f"as its checkpoint is quantized, on {device or 'the default device'}",
        data=data.summary,
        left_out=setting.backbone.projections.left_out if "all-linear" in study.space.targets else (),
        parameters=_parameters(setting),
        splits={"train": len(data.train), "validation": len(data.validation), "test": len(data.test)},
        horizon=setting.steps,
        rungs=study.search.rung_steps(setting.length),
        baselines={name: candidate for name, candidate in named.items() if candidate is not None},
        space={name: describe(d) for name, d in setting.space.distributions.items()},
        stages=stages,
        trained_tokens=round(tokens),
        full_run_equivalents=tokens / setting.full_run_tokens,
        seconds=steps * per_step + sum(stage.evaluated_tokens for stage in stages) * per_token,
        machine=found.describe(),
    )


def _stage(setting: Setting, stage: Stage) -> StagePlan:
    """Return what a stage would cost: the promoted resume from the stage before, baselines from their trials."""
    beside = stage.baselines
    resumed = [other.steps for other in setting.stages if other.steps < stage.steps] if stage.seeds == 1 else []
    tried = [b for b in beside if (c := b.candidate(setting.space)) is not None and setting.space.holds(c)]
    trained = stage.promote * (stage.steps - max(resumed, default=0)) + len(beside) * stage.steps
    trained -= len(tried) * min(resumed, default=0)
    everyone = (stage.promote + len(beside)) * stage.seeds
    return StagePlan(stage, trained * stage.seeds, everyone * _scored_tokens(setting, stage))


def _rung_tokens(setting: Setting) -> float:
    """Return the tokens that a trial is scored on, at all of its rungs and its end."""
    study, data, length = setting.study, setting.data, setting.length
    judging = sum(map(len, judges(study, data, length)))
    since = [step - before for before, step in itertools.pairwise([0, *study.search.rung_steps(length), length])]
    scored = sum(min(judging, affordable(steps, study.training.batch_size)) for steps in since)
    return scored * sum(data.validation.lengths()) / len(data.validation)


def _scored_tokens(setting: Setting, stage: Stage) -> float:
    """Return the tokens that a training of a stage is scored on."""
    if stage.judged_on is Judge.RUNGS:
        return _rung_tokens(setting)
    if stage.judged_on is Judge.HELD_OUT:
        return sum(joined(judges(setting.study, setting.data, stage.steps)).lengths())
    return sum(setting.data.validation.lengths()) + sum(setting.data.test.lengths())


def _parameters(setting: Setting) -> dict[str, dict[str, int]]:
    """Count what candidates train, by what tells their counts apart."""
    study, found = setting.study, {}
    kinds = ["dora" if "dora" in study.method.kind else study.method.kind[0]]  # the others are all of a size
    for targets, kind in itertools.product(study.space.targets, kinds):
        for rank in [0] if kind == "full" else sorted(study.space.rank):
            name = f"r={rank}" if rank else kind
            name += f" {targets}" if len(study.space.targets) > 1 else ""
            found[name] = adapters.parameters(setting.backbone, targets, rank, kind)
    return found


def _probe(setting: Setting, slots: int, passes: int, graphs: bool, steps: int = 4) -> tuple[float, float]:
    """Return seconds of one step of one trial, and of scoring one token."""
    with setting.pack(slots, passes, graphs) as pack:
        probes: list[Slot] = [pack.admit(setting.largest) for _ in range(slots)]
        pack.step()
        start = time.perf_counter()
        for _ in range(steps):
            pack.step()
        per_step = (time.perf_counter() - start) / (steps * slots)
    # A step is a forward and a backward through all layers: about three times a forward.
    per_step_tokens = sum(slot.tokens for slot in probes) / len(probes) / (steps + 1)
    return per_step, per_step / 2.5 / per_step_tokens
