"""`autolr runs`: the runs of a folder, and what to search next."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autolr import display
from autolr.cli.options import AsJson
from autolr.cli.output import echo_json, say

if TYPE_CHECKING:
    from autolr.rundir.index import Run
    from autolr.tuner.advice import Advice


def runs(
    folder: Annotated[Path, typer.Argument(help="Folder of run folders, or one run folder.")] = Path("runs"),
    recommend: Annotated[
        bool, typer.Option("--recommend", help="Recommend the next study, with its command.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Read every file of the runs; report damaged files and what can be saved.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the runs of a folder: trials, score, cost and verdict. Or recommend the next study, or check the files.

    With --check, the exit code is 2 if anything is damaged. No file is changed.
    """
    from autolr.rundir import index
    from autolr.tuner import advice

    if check:
        _check(folder, as_json)
    elif recommend:
        recommended = advice.recommend(folder)
        echo_json(recommended) if as_json else say("\n".join(line for one in recommended for line in _advice(one)))
    else:
        listed = index.list_runs(folder)
        echo_json(listed) if as_json else say("\n".join(line for run in listed for line in _lines(run)))


def _check(folder: Path, as_json: bool) -> None:
    from autolr.rundir.index import folders
    from autolr.rundir.integrity import check

    rows = [check(path) for path in folders(folder, damaged=True)]
    if as_json:
        echo_json(rows)
    else:
        for row in rows:
            typer.echo(f"{row.folder}: {'damaged' if row.damaged else 'sound'}")
            for head, lines in (("damaged", row.damaged), ("sound", row.sound)):
                for line in lines:
                    typer.echo(f"  {head:<8} {line}")
            if row.remedy:
                typer.echo(f"  remedy   {row.remedy}")
    if any(row.damaged for row in rows):
        raise typer.Exit(2)


def _lines(run: Run) -> list[str]:
    if run.problem is not None:
        return [run.folder, f"  unreadable: {run.problem}"]
    counts = run.model_dump(include={"completed", "pruned", "diverged", "infeasible", "failed"})
    shown = [f"{count} {name}" for name, count in counts.items() if count or name in ("completed", "pruned")]
    metric = "".join(f", {name} {value:.4f}" for name, value in run.metric.items())
    kind = "test loss" if run.state == "finished" else "best validation loss"
    score = "no score yet" if run.score is None else f"{kind} {display.loss(run.score)}{metric}"
    full_runs = "" if run.full_runs is None else f" = {run.full_runs:g} full runs"
    return [
        f"{run.folder}: {run.name}, {run.model} on {run.data}",
        f"  trials   {run.total}: {', '.join(shown)}",
        f"  score    {score}" + (f" ({run.candidate})" if run.candidate else ""),
        f"  cost     {run.device_seconds:.0f} device-seconds{full_runs}",
        f"  verdict  {run.verdict or f'not finished; resume with: autolr search --out {run.folder}'}",
    ]


def _advice(advice: Advice) -> list[str]:
    return [
        f"{advice.model} on {advice.data}, from {advice.based_on}",
        *(f"  - {reason}" for reason in advice.reasons),
        *([f"  next: {advice.command}"] if advice.command else []),
    ]
