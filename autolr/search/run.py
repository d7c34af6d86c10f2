"""A search from study to recipe: prepare, search, confirm, write down."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from autolr.candidate import Candidate
from autolr.errors import RunError
from autolr.pack import memory
from autolr.recipe import Cost, Evidence, Rates, Recipe
from autolr.search import machine, notebook, provenance, records, verdict
from autolr.search.confirm import Confirmation, confirmation_jobs, finalists, line_up
from autolr.search.folder import RunFolder
from autolr.search.loop import Watcher, drive
from autolr.search.machine import Machine
from autolr.search.result import Phase, SearchResult
from autolr.search.setting import Setting, choose_device, read_setting
from autolr.search.state import observed
from autolr.search.trials import Trials
from autolr.study import Study


def search(
    study: Study,
    out: str | Path | None = None,
    *,
    device: str | None = None,
    watcher: Watcher | None = None,
    allow_code: bool = False,
    trust_remote_code: bool = False,
) -> SearchResult:
    """Search a study's space and confirm the best.

    A folder that holds the same study already is gone on with: trials that ended count, repeats
    of the confirmation that are there are not repeated, and a finished search is returned as it is.

    Args:
        study: what to search.
        out: the run folder; None: `runs/<name>-<identity>`.
        device: such as `cpu` or `cuda:0`; None: the GPU where there is one.
        watcher: is told what happens; None: in a notebook a live view, elsewhere nobody.
        allow_code: whether the study's metric may be code of your own, `my_module:function`.
        trust_remote_code: whether Python code that comes with the model may run, where the study asks for it.

    Returns:
        The result, with its recipe.

    Raises:
        AutoLRError: input is at fault; nothing has been trained.
        KeyboardInterrupt: passed on; what ended before is kept.
    """
    folder = RunFolder(out if out is not None else default_folder(study))
    where = choose_device(device)
    setting = read_setting(study, where, allow_code=allow_code, trust_remote_code=trust_remote_code)
    with folder.lock(), observed(folder, where, watcher or notebook.live()) as watcher:
        folder.open(study)
        if study.search.length != "auto" and setting.length < study.search.length:
            watcher.note(f"trials are {setting.length} steps, not {study.search.length}: the full run has no more")
        for line in setting.data.summary:
            watcher.note(line)
        found = machine.fit(setting, folder)
        watcher.note(found.describe())
        _search(setting, folder, watcher, found)
        _confirm(setting, folder, watcher, found)
        machine.keep(found.model_copy(update={"peak_bytes": memory.peak_bytes(where)}), folder)
        result = SearchResult.load(folder.path)
        recipe = _recipe(setting, result)
        recipe.save(folder.recipe)
    return SearchResult.load(folder.path)


def default_folder(study: Study) -> Path:
    """Return the folder a search uses when none is given: the same study, the same folder."""
    return Path("runs") / f"{study.name}-{study.identity()}"


def _search(setting: Setting, folder: RunFolder, watcher: Watcher, found: Machine) -> None:
    before = SearchResult.load(folder.path)
    study = setting.study
    spent = sum(phase.seconds for phase in before.phases if phase.phase == "search")
    if len(before.ended()) >= study.budget.trials:
        return
    with setting.pack(min(found.slots, study.budget.trials), found.passes, found.graphs) as pack:
        trials = Trials(study, setting.space, setting.length, folder, pack, setting.data, watcher, spent)
        watcher.phase("search", study.budget.trials, len(trials.counted()))
        with _timed(folder, "search", trials):
            drive(pack, trials, watcher)


def _confirm(setting: Setting, folder: RunFolder, watcher: Watcher, found: Machine) -> None:
    """Confirm the finalists and the rules, then the rule that is λ = 1 at the winner's rate."""
    result = SearchResult.load(folder.path)
    best = finalists(result.trials, setting.study.search.finalists, setting.space)
    if not best:
        raise RunError(
            f"{folder.path}: none of the {len(result.ended())} trials gave a score, all diverged or did not fit the "
            "memory; lower space.lr_v, method.lr_head or space.rank, or give more trials"
        )
    candidates = line_up(setting.study, setting.space, best, unfit=_unfit(result))
    _repeat(setting, folder, watcher, found, candidates)
    _repeat(setting, folder, watcher, found, _with_winner(setting, folder, best))


def _repeat(
    setting: Setting, folder: RunFolder, watcher: Watcher, found: Machine, candidates: dict[Candidate, str]
) -> None:
    study, done = setting.study, SearchResult.load(folder.path).repeats
    jobs = confirmation_jobs(study, setting.space, candidates, setting.length)
    there = {(record.candidate, record.seed) for record in done}
    missing = [job for job in jobs if (job.candidate, job.config.seed) not in there]
    if not missing:
        return
    with setting.pack(min(found.slots, len(jobs)), found.passes, found.graphs) as pack:
        source = Confirmation(missing, folder.confirm, pack, setting.data)
        watcher.phase("confirmation", len(jobs), len(jobs) - len(missing))
        with _timed(folder, "confirmation", source):
            drive(pack, source, watcher)


def _with_winner(setting: Setting, folder: RunFolder, best: list[Candidate]) -> dict[Candidate, str]:
    """Return everyone who belongs in the confirmation, once all but the winner's own rule are through."""
    result = SearchResult.load(folder.path)
    first = line_up(setting.study, setting.space, best, unfit=_unfit(result))
    repeats = [record for record in result.repeats if record.candidate in first]
    winner = verdict.choose(repeats, setting.study.space.targets)
    return line_up(setting.study, setting.space, best, winner, _unfit(result))


def _unfit(result: SearchResult) -> set[Candidate]:
    """Return the candidates that did not fit the device's memory."""
    return {trial.candidate for trial in result.trials if trial.outcome == "infeasible"}


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


def _rates(setting: Setting, winner: Candidate) -> Rates:
    """Return the rates of what the model has, all-linear or not."""
    has = {site.role for site in setting.backbone.projections.of(winner.targets)} | {"head"}
    rates = {role: rate for role, rate in winner.rates(setting.space.lr_head).items() if role in has and rate > 0}
    rates_b = winner.rates_b(setting.space.max_lr_b)
    guided = (
        {site.name for site in setting.backbone.projections.of(winner.targets)} if winner.guide == "heads" else ()
    )
    heads = {name: list(own) for name, own in setting.space.heads.items() if name in guided}
    return Rates(**rates, b={role: rate for role, rate in rates_b.items() if role in has}, heads=heads)


def _recipe(setting: Setting, result: SearchResult) -> Recipe:
    study = setting.study
    best = finalists(result.trials, study.search.finalists, setting.space)
    wanted = _with_winner(setting, RunFolder(result.folder), best)
    repeats = [
        record.model_copy(update={"label": wanted[record.candidate]})
        for record in result.repeats
        if record.candidate in wanted
    ]
    winner = verdict.choose(repeats, study.space.targets)
    found = verdict.scores(repeats, winner)
    trained = sum(phase.trained_tokens for phase in result.phases)
    outcomes = [trial.outcome for trial in result.ended()]
    return Recipe(
        name=study.name,
        model=study.model,
        trust_remote_code=study.trust_remote_code,
        model_fingerprint=setting.backbone.fingerprint(),
        data=study.data,
        data_fingerprint=setting.examples.fingerprint,
        classes=setting.examples.classes,
        task=study.task,
        metric=setting.task.metric,
        method=study.method.model_copy(
            update={
                "lr_head": setting.space.lr_head or "auto",
                "max_lr_b": setting.space.max_lr_b,
                "kind": [winner.kind],
            }
        ),
        candidate=winner,
        rates=_rates(setting, winner),
        training=study.training,
        steps=setting.steps,
        split_seed=study.seed,
        seed=study.seed,
        evidence=Evidence(
            verdict=verdict.sentence(found),
            trials={
                "total": len(outcomes),
                **{name: outcomes.count(name) for name in ("finished", "pruned", "diverged")},
                **({"infeasible": len(_unfit(result))} if _unfit(result) else {}),
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
