"""`autolr watch`: the live view of a search in another process."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autolr.cli.options import Plain
from autolr.cli.output import echo_json, say, until_ctrl_c

if TYPE_CHECKING:
    from autolr.progress.state import State
    from autolr.rundir.folder import RunFolder

# Seconds between two reads of the run folder, and without an update before the user hears of it.
INTERVAL_S, SILENT_S = 0.5, 30.0


def watch(
    run: Annotated[Path, typer.Argument(help="Run folder of the search.")],
    once: Annotated[bool, typer.Option("--once", help="Show the state once, then stop.")] = False,
    plain: Plain = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the state as JSON; implies --once.")] = False,
) -> None:
    """Show a search that runs in another process, until it ends. Only the run folder is read.

    Ctrl-C stops watching, not the search.
    """
    from rich.console import Console
    from rich.live import Live

    from autolr.cli.live import Screen, is_live
    from autolr.progress.state import read_state
    from autolr.progress.table import View
    from autolr.rundir.folder import RunFolder

    folder, console = RunFolder(run), Console()
    state = read_state(folder)
    if as_json:
        echo_json({**state.model_dump(mode="json"), "alive": state.is_alive(), "time_left": state.time_left()})
        return
    with until_ctrl_c(lambda: "stopped watching; the search continues"):
        if once:
            console.print(View(state))
        elif plain or not is_live(console):
            printed = ""
            while True:
                line = f"{state.phase} {state.done}/{state.total}"
                if line != printed:
                    say(state.summary())
                    printed = line
                if state.ended or state.is_alive() is False:
                    break
                time.sleep(INTERVAL_S)
                state = read_state(folder)
        else:
            with Live(View(state), console=console, refresh_per_second=4) as live:
                screen = Screen(live)
                while not state.ended and state.is_alive() is not False:
                    time.sleep(INTERVAL_S)
                    state = read_state(folder)
                    screen.draw(state)
    say(_end(folder, state))


def _end(folder: RunFolder, state: State) -> str:
    from autolr.rundir.result import SearchResult

    is_search = folder.study.is_file()
    again = f"resume with: autolr search --out {folder.path}" if is_search else "the same command resumes"
    silent = time.time() - state.updated
    if state.ended is None:
        if state.is_alive() is False:
            return f"its process has ended; {again}"
        return f"running; last update {silent:.0f} s ago" if silent > SILENT_S else "running"
    recipe = SearchResult.load(folder.path).recipe if is_search else None
    if state.ended == "finished" and recipe is not None and recipe.evidence is not None:
        return f"finished: {recipe.evidence.verdict}"
    if state.ended == "finished":
        return "finished"
    return f"stopped; {again}"
