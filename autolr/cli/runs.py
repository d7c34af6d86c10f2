"""`autolr runs`: the runs of a folder, and what to search next."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autolr import display
from autolr.cli.options import AsJson
from autolr.cli.output import echo_json, say

if TYPE_CHECKING:
    from autolr.search.runs import Advice, Run


def runs(
    folder: Annotated[Path, typer.Argument(help="Folder that holds run folders, or one of them.")] = Path("runs"),
    recommend: Annotated[
        bool, typer.Option("--recommend", help="Say what to search next, and the command that does.")
    ] = False,
    check: Annotated[
        bool,
        typer.Option("--check", help="Read every file of the runs and say what is damaged, and what can be saved."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the runs of a folder: trials, score, cost and verdict; or propose the next study from them.

    With --check the exit code is 2 where anything is damaged. Nothing is changed.
    """
    from autolr.search import runs as found

    if check:
        _check(folder, as_json)
        return
    rows = found.recommend(folder) if recommend else found.runs(folder)
    if as_json:
        echo_json(rows)
        return
    for row in rows:
        say("\n".join(_advice(row) if isinstance(row, found.Advice) else _lines(row)))


def _check(folder: Path, as_json: bool) -> None:
    from autolr.search import runs as found
    from autolr.search.check import check

    rows = [check(path) for path in found.folders(folder, damaged=True)]
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
    counts = {
        "completed": run.completed,
        "pruned": run.pruned,
        "diverged": run.diverged,
        "infeasible": run.infeasible,
        "failed": run.failed,
    }
    trials = ", ".join(
        f"{count} {name}" for name, count in counts.items() if count or name in ("completed", "pruned")
    )
    metric = "".join(f", {name} {value:.4f}" for name, value in run.metric.items())
    kind = "confirm loss" if run.state == "finished" else "best select loss"
    score = "no score yet" if run.score is None else f"{kind} {display.loss(run.score)}{metric}"
    cost = f"{run.device_seconds:.0f} device-seconds" + (
        "" if run.full_runs is None else f" = {run.full_runs:g} full runs"
    )
    return [
        f"{run.folder}: {run.name}, {run.model} on {run.data}",
        f"  trials   {run.total}: {trials}",
        f"  score    {score}" + (f" ({run.candidate})" if run.candidate else ""),
        f"  cost     {cost}",
        f"  verdict  {run.verdict or f'not finished; go on with: autolr search --out {run.folder}'}",
    ]


def _advice(advice: Advice) -> list[str]:
    return [
        f"{advice.model} on {advice.data}, from {advice.based_on}",
        *(f"  - {reason}" for reason in advice.reasons),
        *([f"  next: {advice.command}"] if advice.command else []),
    ]
