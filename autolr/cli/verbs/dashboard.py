"""`autolr dashboard`: optuna-dashboard on a run, with AutoLR's figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def dashboard(
    run: Annotated[Path | None, typer.Argument(help="Run folder of a search; default: the newest in runs/.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on. There is no password.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0: any free one.")] = 8080,
) -> None:
    """Open optuna-dashboard on a run, finished or searching: figures, notes on verdict and finalists, files.

    Needs optuna-dashboard: pip install optuna-dashboard. Only your changes in the page change the run folder.
    """
    from autolr.report.dashboard import LOOPBACK, serve
    from autolr.rundir.folder import RunFolder
    from autolr.rundir.index import newest

    folder = RunFolder(run or newest(Path("runs")))
    if host not in LOOPBACK:
        typer.echo(f"warning: whoever reaches {host} can read this run, and change and delete its trials", err=True)
    try:
        serve(
            folder, host, port, lambda address: typer.echo(f"dashboard of {folder.path}: {address} (Ctrl-C ends it)")
        )
    except KeyboardInterrupt:
        typer.echo("dashboard closed")
