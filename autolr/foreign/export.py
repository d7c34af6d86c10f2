"""A recipe written for another tool."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from autolr.errors import AutoLRError, RunError
from autolr.foreign import accelerate, axolotl, llama_factory, peft, torchtune, trl
from autolr.foreign.tool import Export
from autolr.recipe import Recipe

TOOLS: dict[str, Callable[[Recipe], Export]] = {
    "peft": peft.export,
    "trl": trl.export,
    "axolotl": axolotl.export,
    "llama-factory": llama_factory.export,
    "torchtune": torchtune.export,
    "accelerate": accelerate.export,
}


def export(recipe: Recipe, tool: str, out: str | Path) -> tuple[Export, list[Path]]:
    """Write a recipe for another tool.

    Args:
        recipe: what to train.
        tool: one of `TOOLS`.
        out: the folder; one that holds an earlier export of this tool is written over.

    Returns:
        What was written and what the tool cannot say, and the files.

    Raises:
        AutoLRError: the tool is not known.
        DataError: the data cannot be read, or is not that of the search.
        ModelError: the tool cannot train this recipe.
        RunError: the folder holds something else.
    """
    if tool not in TOOLS:
        raise AutoLRError(f"--to {tool}: known are {', '.join(TOOLS)}")
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise RunError(f"--out {folder}: is a file, not a folder")
    written = TOOLS[tool](recipe)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / next(iter(written.files))).is_file():
        raise RunError(f"--out {folder}: is not empty, and holds no export for {tool}; choose another --out")
    return written, written.write(folder, recipe)
