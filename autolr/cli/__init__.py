"""The command line: one file per verb, which holds a function of the verb's name.

Exit codes: 0 success; 1 a bug in AutoLR; 2 an error in the input (one message, nothing is lost); 130 Ctrl-C.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
import traceback
from typing import Annotated

import typer

from autolr import __version__
from autolr.errors import AutoLRError, redacted

# In the order of `autolr --help`.
VERBS = (
    *("init", "ls", "cp", "search", "worker", "train", "compare", "merge", "export", "report", "watch"),
    *("runs", "dashboard", "predict", "validate", "heads", "theory"),
)

app = typer.Typer(
    name="autolr",
    help="Finds how fast W_q and W_v should learn when a transformer is fine-tuned with LoRA, and proves it.",
    epilog="Exit codes: 0 success; 1 a bug in AutoLR; 2 an error in the input (one message, nothing is lost); 130 "
    "stopped by Ctrl-C (the same command resumes). NO_COLOR=1 turns colours off.",
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


for verb in VERBS:
    app.command(verb)(getattr(importlib.import_module(f"autolr.cli.verbs.{verb}"), verb))


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    # A terminal without λ shows a question mark instead of raising an error.
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
    """Return the message for an error of the disk; None for another error."""
    number = error.errno if isinstance(error, OSError) else None
    name = error.filename if isinstance(error, OSError) else None
    where = f" ({name})" if name else ""
    # safetensors and torch raise errors of their own, which carry the system's words.
    if number in (errno.ENOSPC, errno.EDQUOT) or os.strerror(errno.ENOSPC).lower() in str(error).lower():
        return f"no space left on the device{where}. Free some, then run the same command again to resume."
    if number in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f"{os.strerror(number).lower()}{where}. Choose another folder with --out."
    return None
