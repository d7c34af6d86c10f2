"""`autolr ls` and `autolr cp`: the studies that come with AutoLR."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from autolr.cli import complete
from autolr.cli.options import AsJson
from autolr.cli.output import echo_json, say


def ls(
    as_json: AsJson = False,
) -> None:
    """List the shipped studies: what each searches, on what; `autolr search NAME` runs one, `autolr cp` copies it."""
    from autolr.cli.studies import shipped

    rows = [_row(name) for name in shipped()]
    if as_json:
        echo_json(rows)
        return
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        say(f"{row['name']:<{width}}  {row['task']}, {row['model']} on {row['data']}, {row['trials']} trials")
        say(f"{'':<{width}}  {row['about']}")


def cp(
    name: Annotated[
        str,
        typer.Argument(
            help="A shipped study; autolr ls shows them.", autocompletion=complete.shipped, show_default=False
        ),
    ],
    target: Annotated[
        Path | None, typer.Argument(help="The file to write; default: NAME.yaml here.", show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over an existing file.")] = False,
) -> None:
    """Copy a shipped study, to be changed and searched: autolr search NAME.yaml."""
    from autolr import documents
    from autolr.cli.studies import read, shipped
    from autolr.errors import AutoLRError, RunError

    known = shipped()
    if name not in known:
        raise AutoLRError(f"study {name!r}: is none of the shipped ones: {', '.join(known)}")
    path = target or Path(f"{name}.yaml")
    path = path / f"{name}.yaml" if path.is_dir() else path
    if path.exists() and not force:
        raise RunError(f"{path}: exists already; give another name, or --force to write over it")
    one = known[name]
    content, text = read(one.path, one.variant)
    # A variant is its file with some settings changed: its own comments would speak of all of them.
    documents.write_text(path, text if one.variant is None else f"# {name}\n{documents.to_yaml(content)}")
    say(f"wrote {path}\nnext: autolr search {path} --dry-run")


def _row(name: str) -> dict[str, Any]:
    from autolr.cli.studies import load

    study, text = load(name)
    first = next((line.lstrip("# ") for line in text.splitlines() if line.startswith("#")), "")
    return {
        "name": name,
        "task": study.task,
        "model": study.model,
        "data": study.data.source + (f" ({study.data.subset})" if study.data.subset else ""),
        "trials": study.budget.trials,
        "about": first,
    }
