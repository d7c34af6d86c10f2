"""`autolr cp`: copy a study that comes with AutoLR."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autolr.cli import complete
from autolr.cli.output import say


def cp(
    name: Annotated[
        str, typer.Argument(help="A shipped study; autolr ls lists them.", autocompletion=complete.shipped)
    ],
    target: Annotated[Path | None, typer.Argument(help="File to write; default: NAME.yaml.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Copy a shipped study into a file, to change it and run `autolr search NAME.yaml`."""
    from autolr.cli.resolve import read, shipped
    from autolr.errors import AutoLRError, RunError
    from autolr.schema import yaml_io

    known = shipped()
    if name not in known:
        raise AutoLRError(f"study {name!r}: no such shipped study. Choose one of: {', '.join(known)}")
    path = target or Path(f"{name}.yaml")
    path = path / f"{name}.yaml" if path.is_dir() else path
    if path.exists() and not force:
        raise RunError(f"{path}: this file exists. Give another name, or --force to overwrite it.")
    content, text = read(*known[name])
    # The comments of a file with variants are about all of them.
    yaml_io.write_text(path, text if known[name].variant is None else f"# {name}\n{yaml_io.to_yaml(content)}")
    say(f"wrote {path}\nnext: autolr search {path} --dry-run")
