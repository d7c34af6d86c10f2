"""`autolr search`: from a study to a recipe, a report and, where the study says so, a full run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autolr.cli import complete, resolve
from autolr.cli.options import AllowCode, Data, Device, FullRun, Model, Plain, Trials, TrustRemoteCode
from autolr.cli.output import echo_json, say, until_ctrl_c
from autolr.errors import AutoLRError

if TYPE_CHECKING:
    from autolr.rundir.result import SearchResult
    from autolr.schema.study import Study
    from autolr.tuner.dry_run import Plan
    from autolr.tuner.stages import Stage


def search(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[STUDY] [KEY=VALUE]...",
            help="A study file or the name of a shipped study (default: sentiment), and overrides such as "
            "space.rank=[8,16].",
            autocompletion=complete.studies,
            show_default=False,
        ),
    ] = None,
    model: Model = None,
    data: Data = None,
    trials: Trials = None,
    budget: Annotated[
        str | None,
        typer.Option(help="Time after which no trial starts, such as 90s, 10m or 1.5h.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Run folder. If it already holds this study, the search resumes. Default: runs/NAME-ID.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Random seed.", show_default=False)] = None,
    device: Device = None,
    full_run: FullRun = None,
    slots: Annotated[
        int | None,
        typer.Option(help="Trials trained at once; default: as many as pay and fit into memory.", show_default=False),
    ] = None,
    warm_start: Annotated[
        list[str] | None,
        typer.Option(help="Run folder of an earlier search to start from. Repeatable.", show_default=False),
    ] = None,
    workers: Annotated[
        str,
        typer.Option(
            help="Processes that search together, each on its own device; or ray, ray:4: actors of a Ray cluster.",
            metavar="N|ray[:N]",
        ),
    ] = "1",
    ray_address: Annotated[
        str | None,
        typer.Option(help="Address of the Ray cluster; default: this machine's, or a new one.", show_default=False),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            help="Database for the trials, postgresql://... or mysql://...; default: the run folder.",
            show_default=False,
        ),
    ] = None,
    report_to: Annotated[
        list[str] | None,
        typer.Option(
            help="Report trials and the full run to tensorboard, mlflow, wandb or trackio; default: nowhere.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would run and what it would cost, then stop.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --dry-run: print the plan as JSON.")] = False,
    allow_code: AllowCode = False,
    trust_remote_code: TrustRemoteCode = False,
    plain: Plain = False,
) -> None:
    """Search the ratio λ = η_V/η_Q, the rate η_V and the rank; compare the best with baselines; write the recipe.

    Run again with the same --out, a search resumes where it stopped.
    """
    options = {
        "model": model,
        "data.source": data,
        "budget.trials": trials,
        "budget.time": budget,
        "seed": seed,
        "search.slots": slots,
        "train": full_run,
        "search.warm_start": _warm_starts(warm_start),
    }
    study = resolve.resolve(words or [], options, out)
    code = {"allow_code": allow_code, "trust_remote_code": trust_remote_code}
    if dry_run:
        _show_plan(study, device, code, as_json)
        return
    if as_json:
        raise AutoLRError("--json: works only with --dry-run. For a finished search use: autolr report RUN --json")
    from autolr.cli.live import watch
    from autolr.progress.state import Callbacks
    from autolr.progress.trackers import tracker
    from autolr.rundir.folder import RunFolder
    from autolr.tuner import run

    folder = out or run.default_folder(study)
    typer.echo(f"study {study.name}: {study.model} on {study.data.source}, run folder {folder}")
    trackers = [tracker(name, RunFolder(folder), study.name) for name in report_to or []]

    def left() -> str:
        kept = f"finished trials are kept. Resume with: autolr search --out {folder}"
        return f"stopped; {kept if (folder / 'study.yaml').is_file() else 'nothing had begun'}"

    with until_ctrl_c(left):
        with watch(plain) as callback:
            result = run.search(
                study,
                folder,
                device=device,
                callback=Callbacks([callback, *(trackers if workers == "1" else [])]),
                workers=1 if workers == "1" else workers,
                ray_address=ray_address,
                storage=storage,
                report_to=report_to or (),
                **code,
            )
            _report(result)
        _show_result(result)
        if study.train:
            from autolr.cli.verbs.train import full_run as train_recipe

            assert result.recipe is not None
            train_recipe(result.recipe, _train_folder(result), device, report_to, **code)
            _report(type(result).load(folder))


def _warm_starts(runs: list[str] | None) -> list[dict[str, Any]] | None:
    if not runs:
        return None
    from autolr.tuner.propose.warm_start import earlier

    return [earlier(run).model_dump(mode="json") for run in runs]


def _report(result: SearchResult) -> None:
    from autolr.report.page import write_report

    write_report(result)


def _train_folder(result: SearchResult) -> Path:
    """Return where the full run goes; that of an earlier, other recipe is kept beside it."""
    from autolr.finetune.run import holds

    folder = result.folder / "train"
    assert result.recipe is not None
    if folder.exists() and not holds(folder, result.recipe):
        number = 1
        while (result.folder / f"train-{number}").exists():
            number += 1
        folder.rename(result.folder / f"train-{number}")
    return folder


def _show_plan(study: Study, device: str | None, code: dict[str, bool], as_json: bool) -> None:
    from autolr.tuner.dry_run import plan

    found: Plan = plan(study, device, **code)
    if as_json:
        echo_json({"study": study, "plan": found})
        return
    trained = "matrices" if study.method.full else "adapter"
    lines = [
        f"study         {study.name}: {study.model} on {study.data.source}",
        f"coverage      {found.coverage}",
        f"base          {found.base}",
        *(f"left out      {what}" for what in found.left_out),
        *(
            f"parameters    {what}: {n['adapter']:,} {trained} + {n['head']:,} head"
            for what, n in found.parameters.items()
        ),
        "examples      " + ", ".join(f"{name} {count:,}" for name, count in found.splits.items()),
        *(f"data          {line}" for line in found.data),
        "space         " + "; ".join(f"{name} {values}" for name, values in found.space.items()),
        *(f"baseline      {name}: {candidate.describe()}" for name, candidate in found.baselines.items()),
        f"rungs         trials are compared and pruned at {list(found.rungs)}"
        + (f", none starts after {study.budget.time:g}s" if study.budget.time else ""),
        *(f"{one.stage.name:<13} {_describe(one.stage)}" for one in found.stages),
        f"full run      {found.horizon} steps, batch {study.training.batch_size}"
        + ("" if study.train else " (not started: train is false)"),
        f"cost          about {found.trained_tokens:,} trained tokens = {found.full_run_equivalents:.1f} full runs, "
        f"about {found.seconds / 60:.1f} minutes here",
        f"machine       {found.machine}",
        "nothing was written",
    ]
    typer.echo("\n".join(lines))


def _describe(stage: Stage) -> str:
    beside = f" and {', '.join(stage.baselines)}" if stage.baselines else ""
    seeds = f", {stage.seeds} seeds each" if stage.seeds > 1 else ""
    return f"{stage.promote} candidates{beside}, to step {stage.steps}{seeds}"


def _show_result(result: SearchResult) -> None:
    recipe = result.recipe
    assert recipe is not None and recipe.evidence is not None
    cost = recipe.evidence.cost
    counts = recipe.evidence.trials
    unfit = f", {counts['infeasible']} infeasible" if "infeasible" in counts else ""
    say(
        f"\nverdict  {recipe.evidence.verdict}\n"
        f"recipe   {result.folder / 'recipe.yaml'}: {recipe.candidate.describe()}; {recipe.rates.describe()}\n"
        f"trials   {counts['total']}: {counts['finished']} finished, {counts['pruned']} pruned, "
        f"{counts['diverged']} diverged{unfit}\n"
        f"cost     {cost.device_seconds:.0f} device-seconds, {cost.trained_tokens:,} trained tokens "
        f"= {cost.full_run_equivalents:.2f} full runs\n"
        f"report   {result.folder / 'report.html'}"
    )
