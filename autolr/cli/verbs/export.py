"""`autolr export`: a recipe as files for other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autolr.cli import complete
from autolr.cli.output import say
from autolr.integrations.registry import Tool


def export(
    recipe: Annotated[
        Path, typer.Argument(help="recipe.yaml, or the run folder that holds it.", autocompletion=complete.recipes)
    ],
    to: Annotated[Tool, typer.Option(help="Target tool.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the files; default: export-TOOL beside the recipe.")
    ] = None,
) -> None:
    """Write a recipe as files that another tool accepts, and report what that tool cannot express.

    The data comes along as JSON lines: train and validation; test stays unseen. W_q and W_v keep their own rates if
    the tool can express them (axolotl), or by a script that goes along (trl).
    """
    from autolr.integrations.registry import export as write
    from autolr.schema.recipe import Recipe

    loaded = Recipe.load(recipe)
    folder = out or (recipe if recipe.is_dir() else recipe.parent) / f"export-{to}"
    written, paths = write(loaded, to, folder)
    say(written.note(loaded))
    say("\n".join(f"wrote {path}" for path in paths))
