"""`autolr worker`: join a search from any machine that shares its run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autolr.cli.options import AllowCode, Device, Plain, TrustRemoteCode
from autolr.cli.output import until_ctrl_c


def worker(
    run: Annotated[Path, typer.Argument(help="Run folder of the search, shared by all its workers.")],
    storage: Annotated[
        str | None, typer.Option(help="Database of the search's trials; needed if its address has a password.")
    ] = None,
    device: Device = None,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for the search to start.")] = 0.0,
    report_to: Annotated[
        list[str] | None,
        typer.Option(help="Report trials to tensorboard, mlflow, wandb or trackio; default: nowhere."),
    ] = None,
    allow_code: AllowCode = False,
    trust_remote_code: TrustRemoteCode = False,
    plain: Plain = False,
    parent: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Join a search that `autolr search` has started: train its trials and stages until it ends.

    If a worker dies, the others take over its trials.
    """
    from autolr.cli.live import watch
    from autolr.progress.state import Callbacks
    from autolr.progress.trackers import tracker
    from autolr.rundir.folder import RunFolder
    from autolr.tuner import run as searching

    folder = RunFolder(run)
    searching.wait_for(folder, wait)
    with (
        until_ctrl_c(lambda: "stopped; the other workers take over its trials"),
        watch(plain) as callback,
    ):
        trackers = [tracker(name, folder, folder.path.name) for name in report_to or []]
        searching.join(
            folder,
            storage=storage,
            device=device,
            callback=Callbacks([callback, *trackers]),
            allow_code=allow_code,
            trust_remote_code=trust_remote_code,
            parent=parent,
        )
    typer.echo(f"the search in {run} has ended")
