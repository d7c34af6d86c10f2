"""`autolr report`: the page of a search."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[Path, typer.Argument(help="Run folder of a search, finished or not.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option(help="The page; default: report.html in the run folder.", show_default=False),
    ] = None,
) -> None:
    """Write one self-contained HTML page about a search."""
    from autolr.report.page import write_report
    from autolr.search.result import SearchResult

    typer.echo(f"report   {write_report(SearchResult.load(run), out)}")
