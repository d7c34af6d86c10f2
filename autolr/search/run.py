"""A search from study to recipe: prepare, search, confirm, write down."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from autolr.candidate import Candidate
from autolr.data import sources
from autolr.data.prepared import Prepared, prepare
from autolr.data.sources import Examples
from autolr.data.tasks import Classification
from autolr.errors import AutoLRError, RunError
from autolr.model import adapters, backbone
from autolr.model.backbone import Backbone
from autolr.model.quiet import quiet
from autolr.pack.pack import Pack, SlotConfig
from autolr.recipe import Cost, Evidence, Rates, Recipe
from autolr.search import provenance, records, verdict
from autolr.search.confirm import Confirmation, finalists, line_up
from autolr.search.folder import RunFolder
from autolr.search.horizon import carry
from autolr.search.loop import Watcher, drive
from autolr.search.result import Phase, SearchResult
from autolr.search.space import SearchSpace, describe
from autolr.search.trials import Trials
from autolr.study import Role, Study

if TYPE_CHECKING:
    from autolr.pack.pack import Slot


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
    task: Classification
    steps: int
    length: int

    @property
    def full_run_tokens(self) -> float:
        """Tokens a full run trains on, padding not counted."""
        mean = self.data.tokens_per_epoch() / len(self.data.train)
        return mean * self.study.training.batch_size * self.steps

    def pack(self, capacity: int) -> Pack:
        """Return an empty pack that takes any candidate of the study."""
        roles: tuple[Role, ...] = ("q", "k", "v", "head") if "qkv" in self.study.baselines else ("q", "v", "head")
        return Pack(
            self.backbone,
            self.study.training,
            self.task,
            self.data.train,
            capacity=capacity,
            max_rank=max(self.study.space.rank),
            alpha=self.study.method.alpha,
            roles=roles,
        )


def choose_device(name: str | None) -> torch.device:
    """Return the device of that name; None: the GPU where there is one.

    Raises:
        AutoLRError: there is no such device here.
    """
    if name is None or name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0][:120]
        raise AutoLRError(f"--device {name}: cannot be used here ({reason}); known: cpu, cuda, cuda:0, ...") from None
    return device


def read_setting(study: Study, device: torch.device) -> Setting:
    """Load data and model of a study and check that they fit each other.

    Raises:
        DataError: see `autolr.data.sources.load` and `autolr.data.splits.split`.
        ModelError: see `autolr.model.backbone.load`; or a rank is larger than a matrix.
    """
    examples = sources.load(study.data)
    with quiet():
        base = backbone.load(study.model, examples.classes, device, study.training.precision)
        space = SearchSpace.of(study, base)
        batch = study.training.batch_size
        data = prepare(examples, study.data, base.tokenizer, batch, study.seed, base.max_length)
    horizon = study.training.horizon
    per_epoch = len(data.train) // batch
    steps = horizon.steps or max(1, round((horizon.epochs or 0) * per_epoch))
    task = Classification(tuple(examples.classes))
    return Setting(study, examples, base, data, space, task, steps, min(study.search.length, steps))


def search(
    study: Study,
    out: str | Path | None = None,
    *,
    device: str | None = None,
    watcher: Watcher | None = None,
) -> SearchResult:
    """Search a study's space and confirm the best.

    A folder that holds the same study already is gone on with: trials that ended count, repeats
    of the confirmation that are there are not repeated, and a finished search is returned as it is.

    Args:
        study: what to search.
        out: the run folder; None: `runs/<name>-<identity>`.
        device: such as `cpu` or `cuda:0`; None: the GPU where there is one.
        watcher: is told what happens.

    Returns:
        The result, with its recipe.

    Raises:
        AutoLRError: input is at fault; nothing has been trained.
        KeyboardInterrupt: passed on; what ended before is kept.
    """
    watcher = watcher or Watcher()
    folder = RunFolder(out if out is not None else default_folder(study))
    where = choose_device(device)
    setting = read_setting(study, where)
    with folder.lock():
        folder.open(study)
        if setting.length < study.search.length:
            watcher.note(f"trials are {setting.length} steps, not {study.search.length}: the full run has no more")
        _search(setting, folder, watcher)
        _confirm(setting, folder, watcher)
        result = SearchResult.load(folder.path)
        recipe = _recipe(setting, result)
        recipe.save(folder.recipe)
    return SearchResult.load(folder.path)


def default_folder(study: Study) -> Path:
    """Return the folder a search uses when none is given: the same study, the same folder."""
    return Path("runs") / f"{study.name}-{study.identity()}"


def _search(setting: Setting, folder: RunFolder, watcher: Watcher) -> None:
    before = SearchResult.load(folder.path)
    study = setting.study
    spent = sum(phase.seconds for phase in before.phases if phase.phase == "search")
    if len(before.ended()) >= study.budget.trials:
        return
    with setting.pack(min(study.search.slots, study.budget.trials)) as pack:
        trials = Trials(study, setting.space, setting.length, folder, pack, setting.data, watcher, spent)
        watcher.phase("search", study.budget.trials, len(trials.counted()))
        with _timed(folder, "search", trials):
            drive(pack, trials, watcher)


def _confirm(setting: Setting, folder: RunFolder, watcher: Watcher) -> None:
    """Confirm the finalists and the rules, then the rule that is λ = 1 at the winner's rate."""
    result = SearchResult.load(folder.path)
    best = finalists(result.trials, setting.study.search.finalists)
    if not best:
        raise RunError(
            f"{folder.path}: none of the {len(result.ended())} trials gave a score, all diverged; lower "
            "space.lr_v or method.lr_head, or give more trials"
        )
    candidates = line_up(setting.study, setting.space, best)
    _repeat(setting, folder, watcher, candidates)
    _repeat(setting, folder, watcher, _with_winner(setting, folder, best))


def _repeat(setting: Setting, folder: RunFolder, watcher: Watcher, candidates: dict[Candidate, str]) -> None:
    study, done = setting.study, SearchResult.load(folder.path).repeats
    with setting.pack(min(study.search.slots, len(candidates) * study.search.repeats)) as pack:
        source = Confirmation(study, setting.space, candidates, setting.length, folder, done, pack, setting.data)
        if source.done < source.total:
            watcher.phase("confirmation", source.total, source.done)
            with _timed(folder, "confirmation", source):
                drive(pack, source, watcher)


def _with_winner(setting: Setting, folder: RunFolder, best: list[Candidate]) -> dict[Candidate, str]:
    """Return everyone who belongs in the confirmation, once all but the winner's own rule are through."""
    first = line_up(setting.study, setting.space, best)
    repeats = [record for record in SearchResult.load(folder.path).repeats if record.candidate in first]
    return line_up(setting.study, setting.space, best, verdict.choose(repeats))


@contextmanager
def _timed(folder: RunFolder, name: str, source: Trials | Confirmation) -> Iterator[None]:
    """Write down what a phase took, also when it is interrupted."""
    start = time.perf_counter()
    try:
        yield
    finally:
        records.append(
            folder.phases,
            Phase(
                phase=name,
                seconds=round(time.perf_counter() - start, 3),
                trained_tokens=source.trained_tokens,
                evaluated_tokens=source.evaluated_tokens,
            ),
        )


def _recipe(setting: Setting, result: SearchResult) -> Recipe:
    study = setting.study
    best = finalists(result.trials, study.search.finalists)
    wanted = _with_winner(setting, RunFolder(result.folder), best)
    repeats = [
        record.model_copy(update={"label": wanted[record.candidate]})
        for record in result.repeats
        if record.candidate in wanted
    ]
    winner = verdict.choose(repeats)
    found = verdict.scores(repeats, winner)
    trained = sum(phase.trained_tokens for phase in result.phases)
    outcomes = [trial.outcome for trial in result.ended()]
    rates = winner.rates(setting.space.lr_head)
    carried = carry(setting.length, setting.steps, study.search.carry)
    return Recipe(
        name=study.name,
        model=study.model,
        model_fingerprint=setting.backbone.fingerprint(),
        data=study.data,
        data_fingerprint=setting.examples.fingerprint,
        classes=setting.examples.classes,
        task=study.task,
        method=study.method.model_copy(update={"lr_head": setting.space.lr_head}),
        candidate=winner,
        carried=carried,
        rates=Rates(q=rates["q"] * carried, v=rates["v"] * carried, head=rates["head"]),
        training=study.training,
        steps=setting.steps,
        split_seed=study.seed,
        seed=study.seed,
        evidence=Evidence(
            verdict=verdict.sentence(found),
            trials={
                "total": len(outcomes),
                **{name: outcomes.count(name) for name in ("finished", "pruned", "diverged")},
            },
            repeats=study.search.repeats,
            scores=found,
            cost=Cost(
                device_seconds=round(sum(phase.seconds for phase in result.phases), 1),
                trained_tokens=trained,
                evaluated_tokens=sum(phase.evaluated_tokens for phase in result.phases),
                full_run_equivalents=round(trained / setting.full_run_tokens, 2),
            ),
        ),
        versions=provenance.versions(),
        commit=provenance.commit(),
    )


@dataclass(frozen=True)
class Plan:
    """What a search would do and cost: the answer of `--dry-run`."""

    coverage: str
    parameters: dict[str, dict[str, int]]
    splits: dict[str, int]
    horizon: int
    length: int
    rungs: tuple[int, ...]
    rules: dict[str, Candidate]
    space: dict[str, str]
    repeats: int
    trained_tokens: int
    full_run_equivalents: float
    seconds: float


def plan(study: Study, device: str | None = None) -> Plan:
    """Return what a search of the study would do; a few steps are timed, nothing is written.

    Raises:
        AutoLRError: as `search`.
    """
    setting = read_setting(study, choose_device(device))
    rungs = study.search.rung_steps(setting.length)
    trial_steps, share, at = 0.0, 1.0, 0
    scorings = 0.0
    for rung in (*rungs, setting.length):
        trial_steps += share * (rung - at)
        scorings += share
        share, at = share * study.search.keep, rung
    names = [name for name in study.baselines if name != "winner_lr"]
    repeats = (study.search.finalists + len(study.baselines)) * study.search.repeats
    steps = study.budget.trials * trial_steps + repeats * setting.length
    per_step, per_token = _probe(setting)
    data = setting.data
    evaluated = study.budget.trials * scorings * sum(data.select.lengths())
    evaluated += repeats * sum(data.select.lengths() + data.confirm.lengths())
    tokens = steps * setting.full_run_tokens / setting.steps
    ranks = sorted(study.space.rank)
    return Plan(
        coverage=setting.backbone.projections.coverage,
        parameters={f"r={rank}": adapters.parameters(setting.backbone, "qv", rank) for rank in ranks},
        splits={"train": len(data.train), "select": len(data.select), "confirm": len(data.confirm)},
        horizon=setting.steps,
        length=setting.length,
        rungs=rungs,
        rules={name: setting.space.rule(name) for name in names},
        space={name: describe(d) for name, d in setting.space.distributions.items()},
        repeats=repeats,
        trained_tokens=round(tokens),
        full_run_equivalents=tokens / setting.full_run_tokens,
        seconds=steps * per_step + evaluated * per_token,
    )


def _probe(setting: Setting, steps: int = 4) -> tuple[float, float]:
    """Return seconds of one step of one trial, and of scoring one token."""
    slots = min(setting.study.search.slots, setting.study.budget.trials)
    candidate = setting.space.rule("rule")
    config = SlotConfig(candidate.rates(setting.space.lr_head), candidate.rank, 0, steps + 1)
    with setting.pack(slots) as pack:
        probes: list[Slot] = [pack.admit(config) for _ in range(slots)]
        pack.step()
        start = time.perf_counter()
        for _ in range(steps):
            pack.step()
        per_step = (time.perf_counter() - start) / (steps * slots)
    # A step is a forward and a backward through all layers: about three times a forward.
    per_step_tokens = sum(slot.tokens for slot in probes) / len(probes) / (steps + 1)
    return per_step, per_step / 2.5 / per_step_tokens
