"""`autolr report`: the page of a search, or its figures as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from autolr.cli import complete


def report(
    run: Annotated[
        Path, typer.Argument(help="Run folder of a search, finished or not.", autocompletion=complete.runs)
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Page to write, or folder of the pictures; default: report.html or figures in the run folder."
        ),
    ] = None,
    form: Annotated[
        Literal["html", "png", "svg"],
        typer.Option("--format", help="html: one page; png, svg: a file per figure, drawn by kaleido."),
    ] = "html",
    as_json: Annotated[
        bool, typer.Option("--json", help="Write nothing; print the data behind the page as JSON.")
    ] = False,
) -> None:
    """Write one self-contained HTML page about a search, or its figures as pictures."""
    from autolr.errors import RunError
    from autolr.rundir.folder import RunFolder
    from autolr.rundir.result import SearchResult

    result = SearchResult.load(run)
    if not RunFolder(run).has_trials:
        raise RunError(f"{run}: its search has not started. Start it with: autolr search --out {run}")
    if as_json:
        typer.echo(result.to_json())
        return
    if form == "html":
        from autolr.report.page import write_report

        typer.echo(f"report   {write_report(result, out)}")
        return
    from autolr.report.images import write_images

    for path in write_images(result, form, out):
        typer.echo(f"figure   {path}")
