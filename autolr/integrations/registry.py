"""A recipe written for another tool."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal, get_args

from autolr.errors import AutoLRError, RunError
from autolr.schema.recipe import Recipe

if TYPE_CHECKING:
    from autolr.integrations.bundle import Export

# The module of a tool's name has `export(recipe)`, and `RATES`: whether W_q and W_v keep their own rates there. It is
# imported on use, so the command line lists the names at no cost.
Tool = Literal["peft", "trl", "axolotl", "llama-factory"]
TOOLS: tuple[str, ...] = get_args(Tool)


def export(recipe: Recipe, tool: str, out: str | Path) -> tuple[Export, list[Path]]:
    """Write a recipe for another tool.

    Args:
        recipe: what to train.
        tool: one of `TOOLS`.
        out: the folder; one that holds an earlier export of this tool is written over.

    Returns:
        What was written, with what the tool cannot express, and the files.

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
    written: Export = module_of(tool).export(recipe)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / next(iter(written.files))).is_file():
        raise RunError(f"--out {folder}: is not empty, and holds no export for {tool}; choose another --out")
    return written, written.write(folder, recipe)


def module_of(tool: str) -> ModuleType:
    """Return the module of a tool."""
    return importlib.import_module(f"{__package__}.{tool.replace('-', '_')}")
