"""The command line: one file per verb.

Exit codes: 0 done; 1 AutoLR is at fault; 2 the input is at fault (one message, nothing lost); 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from typing import Annotated

import typer

from autolr import __version__
from autolr.cli import (
    compare,
    dashboard,
    export,
    heads,
    init,
    merge,
    predict,
    report,
    runs,
    search,
    shipped,
    theory,
    train,
    validate,
    watch,
    worker,
)
from autolr.errors import AutoLRError, redacted

app = typer.Typer(
    name="autolr",
    help="Finds how fast W_q and W_v should learn when a transformer is fine-tuned with LoRA, and proves it.",
    epilog="Exit codes: 0 done; 1 a fault of AutoLR itself; 2 the input is at fault (one message, nothing lost); 130 "
    "stopped by Ctrl-C (the same command goes on). NO_COLOR=1 switches colours off.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"autolr {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


app.command("init")(init.init)
app.command("ls")(shipped.ls)
app.command("cp")(shipped.cp)
app.command("search")(search.search)
app.command("worker")(worker.worker)
app.command("train")(train.train)
app.command("compare")(compare.compare)
app.command("merge")(merge.merge)
app.command("export")(export.export)
app.command("report")(report.report)
app.command("watch")(watch.watch)
app.command("runs")(runs.runs)
app.command("dashboard")(dashboard.dashboard)
app.command("predict")(predict.predict)
app.command("validate")(validate.validate)
app.command("heads")(heads.heads)
app.command("theory")(theory.theory)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    # A terminal that cannot show λ shows a question mark; it does not end the search.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        app(args=arguments)
    except AutoLRError as error:
        fail(str(error))
    except BrokenPipeError:
        sys.exit(2)
    except Exception as error:
        message = _disk(error)
        if message is None:
            typer.echo(redacted(traceback.format_exc()), err=True)
            sys.exit(1)
        fail(message)


def fail(message: str) -> None:
    """Print one clear message to standard error and exit with code 2."""
    typer.echo(f"error: {message}", err=True)
    sys.exit(2)


def _disk(error: Exception) -> str | None:
    """Return what to say where the disk is at fault; None where it is not."""
    number = error.errno if isinstance(error, OSError) else None
    name = error.filename if isinstance(error, OSError) else None
    where = f" ({name})" if name else ""
    # safetensors and torch raise errors of their own, which carry the system's words.
    if number in (errno.ENOSPC, errno.EDQUOT) or os.strerror(errno.ENOSPC).lower() in str(error).lower():
        return f"no space left on the device{where}; free some and give the same command again: it goes on"
    if number in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f"{os.strerror(number).lower()}{where}; choose another folder with --out"
    return None
