"""What a search would do and cost, without doing it: the answer of `--dry-run`."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass

from autolr.candidate import Candidate
from autolr.data.batches import joined
from autolr.model import adapters
from autolr.model.device import choose_device
from autolr.pack.slots import Slot
from autolr.search import machine
from autolr.search.held_out import judges
from autolr.search.setting import Setting, read_setting
from autolr.search.space import describe
from autolr.search.subset import affordable
from autolr.study import Study


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
    length: int
    rungs: tuple[int, ...]
    rules: dict[str, Candidate]
    space: dict[str, str]
    semifinals: int
    finals: int
    repeats: int
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
    rungs = study.search.rung_steps(setting.length)
    names = [name for name in study.baselines if name != "winner_lr"]
    finals = study.search.finalists + ("rule" in study.baselines) if setting.has_finals else 0
    repeats = ((1 if finals else study.search.finalists) + len(study.baselines)) * study.search.repeats
    half = setting.semifinal_steps
    semifinals = study.search.semifinalists if half else 0
    # At most: some trials are pruned, and do not go on. A semifinal goes on with a trial, and a final with that; the
    # rule of thumb's, outside the space, with none.
    is_tried = "rule" in names and setting.space.holds(setting.space.rule("rule"))
    begun = (study.search.finalists * (half or setting.length) + is_tried * setting.length) if finals else 0
    steps = (study.budget.trials + repeats) * setting.length + finals * setting.steps - begun
    steps += semifinals * (half - setting.length)
    found = machine.fit(setting)
    per_step, per_token = _probe(setting, min(found.slots, study.budget.trials), found.passes, found.graphs)
    data = setting.data
    judging = sum(map(len, judges(study, data, setting.length)))
    since = [step - before for before, step in itertools.pairwise([0, *rungs, setting.length])]
    scored = sum(min(judging, affordable(steps, study.training.batch_size)) for steps in since)
    evaluated = study.budget.trials * scored * sum(data.select.lengths()) / len(data.select)
    if semifinals:
        evaluated += semifinals * sum(joined(judges(study, data, half)).lengths())
    evaluated += (finals + repeats) * sum(data.select.lengths() + data.confirm.lengths())
    tokens = steps * setting.full_run_tokens / setting.steps
    return Plan(
        coverage=setting.backbone.projections.coverage,
        base=setting.backbone.placed or f"as its checkpoint is quantized, on {device or 'the default device'}",
        data=data.summary,
        left_out=setting.backbone.projections.left_out if "all-linear" in study.space.targets else (),
        parameters=_parameters(setting),
        splits={"train": len(data.train), "select": len(data.select), "confirm": len(data.confirm)},
        horizon=setting.steps,
        length=setting.length,
        rungs=rungs,
        rules={name: setting.space.rule(name) for name in names},
        space={name: describe(d) for name, d in setting.space.distributions.items()},
        semifinals=semifinals,
        finals=finals,
        repeats=repeats,
        trained_tokens=round(tokens),
        full_run_equivalents=tokens / setting.full_run_tokens,
        seconds=steps * per_step + evaluated * per_token,
        machine=found.describe(),
    )


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
