"""Pages that are made from the code when the site is built: every setting of a study and a recipe, every command."""

from __future__ import annotations

import json
import re
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pydantic import BaseModel
from pydantic.fields import FieldInfo

ROOT = Path(__file__).resolve().parents[1]
# In the words of a YAML file.
_PLAIN = {int: "whole number", float: "number", str: "text", bool: "`true` or `false`", type(None): "`null`"}
# In a page: the paragraph or table of the README that begins so.
QUOTED = re.compile(r"^\{\{ README: (.+?) \}\}$", re.MULTILINE)
# In a page: a table that is made from the code.
TABLE = re.compile(r"^\{\{ TABLE: (\w+) \}\}$", re.MULTILINE)
STUDY = """# Study

A study is a YAML file, or `autolr.Study(...)`. `autolr init` writes one with comments, `autolr validate FILE` lists
all that is wrong with one, and on the command line each setting has the dotted name it has here: `space.rank=[8,16]`.
Only `model` and `data.source` must be given.
"""
RECIPE = """# Recipe

A recipe is what a search returns and a full run consumes, as YAML; `autolr.Recipe.load(...)` reads it. It is written
by `autolr search`, and may be written or changed by hand.
"""
COMMANDS = """# Commands

Exit codes: 0 done; 1 AutoLR itself is at fault; 2 the input is at fault (one message, nothing lost); 130 stopped by
Ctrl-C, after which the same command goes on. `NO_COLOR=1` switches colours off, and `autolr --install-completion`
teaches your shell verbs, options and shipped studies. All verbs that read take `--json` (`search` with `--dry-run`).

`search` and `train` take `--report-to tensorboard`, `mlflow`, `wandb` or `trackio` (`train` all that transformers
knows); nothing is reported unless asked for. Every run keeps `resources.parquet`: memory, use and power of the
device, time and tokens of each phase and slot.
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made from the code."""
    from autolr.schema.recipe import Recipe
    from autolr.schema.study import Study

    for name, text in {
        "study": STUDY + documented(Study),
        "recipe": RECIPE + documented(Recipe),
        "commands": COMMANDS + commands(),
    }.items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put in the README's paragraphs and tables, and the tables of the code: each fact is written in one place."""
    markdown = QUOTED.sub(lambda found: quoted(found[1]), markdown)
    return TABLE.sub(lambda found: TABLES[found[1]](), markdown)


def tools() -> str:
    """Return the tools that recipes are exported to, as a Markdown table."""
    from autolr.integrations.registry import TOOLS, module_of

    rows = [f"| `{tool}` | {module_of(tool).RATES} |" for tool in TOOLS]
    return "\n".join(["| tool | W_q and W_v at their own rates |", "|---|---|", *rows])


def figures() -> str:
    """Return the figures of the report from top to bottom, as a Markdown table."""
    from autolr.report.figures import FIGURES

    rows = [f"| {one.title} | `{one.name}` | {_cell(one.look_for)} |" for one in FIGURES.values()]
    return "\n".join(["| figure | name | look for |", "|---|---|---|", *rows])


TABLES = {"tools": tools, "figures": figures}


def quoted(start: str) -> str:
    """Return the paragraph or table of the README that begins so.

    Raises:
        PluginError: there is none, or more than one.
    """
    blocks = (ROOT / "README.md").read_text(encoding="utf-8").split("\n\n")
    found = [block for block in blocks if block.startswith(start)]
    if len(found) != 1:
        raise PluginError(f"README.md has {len(found)} paragraphs that begin with {start!r}")
    return found[0]


def documented(kind: type[BaseModel]) -> str:
    """Return the tables of a document and of all documents in it, as Markdown."""
    return "\n".join(_tables(kind, "", set()))


def _tables(kind: type[BaseModel], path: str, seen: set[type]) -> Iterator[str]:
    seen.add(kind)
    about = " ".join((kind.__doc__ or "").strip().partition("\n\n")[0].split())
    yield f"\n## {f'`{path}`' if path else kind.__name__}\n\n{about}\n" if path else ""
    yield "| setting | kind | default | |\n|---|---|---|---|"
    for name, field in kind.model_fields.items():
        about = _cell(field.description or "")
        yield f"| `{path}{'.' * bool(path)}{name}` | {_kind(field)} | {_default(field)} | {about} |"
    yield ""
    for name, field in kind.model_fields.items():
        for inner in _documents(field.annotation):
            if inner not in seen:
                yield from _tables(inner, f"{path}{'.' * bool(path)}{name}", seen)


def _documents(annotation: Any) -> list[type[BaseModel]]:
    """Return the documents that a type holds, however deep."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for inner in get_args(annotation) for found in _documents(inner)]


def _kind(field: FieldInfo) -> str:
    return _cell(_spelled(field.annotation) + _limits(field.metadata))


def _limits(metadata: Sequence[Any]) -> str:
    """Return what bounds a number, in signs."""
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    own = [inner for one in metadata for inner in (one.metadata if isinstance(one, FieldInfo) else [one])]
    bounds = [(sign, getattr(one, name, None)) for one in own for name, sign in signs.items()]
    return "".join(f", {sign} {bound:,.10g}" for sign, bound in bounds if bound is not None)


def _spelled(annotation: Any) -> str:
    """Return a type in the words of a YAML file."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _spelled(inner[0]) + _limits(inner[1:])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_spelled(one) for one in inner))
    if origin is list:
        return f"list of {_spelled(inner[0])}".replace("of below", "of those below")
    if origin is tuple:
        return f"{len(inner)} numbers"
    if origin is dict:
        return f"mapping to {_spelled(inner[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "`{low: , high: , log: }`" if annotation.__name__ == "Range" else "below"
    return _PLAIN[annotation]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        short = value.model_dump(mode="json", exclude_none=True)
        return f"`{_yaml(short)}`" if len(short) <= 3 else "as below"
    if isinstance(value, (list, tuple)):
        value = [one.model_dump(exclude_none=True) if isinstance(one, BaseModel) else one for one in value]
    return f"`{_yaml(value)}`"


def _yaml(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False).replace('"', "")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def commands() -> str:
    """Return every command with its arguments and options, as Markdown."""
    from typer.main import get_command

    from autolr.cli import app

    parts = []
    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        about = "\n\n".join(" ".join(part.split()) for part in (command.help or "").split("\n\n"))
        rows = [
            f"| {_option(p)} | {_cell(p.help or '')}{_usual(p)} |"
            for p in command.params
            if not getattr(p, "hidden", False)
        ]
        parts.append(f"\n## autolr {name}\n\n{about}\n\n| | |\n|---|---|\n" + "\n".join(rows) + "\n")
    return "".join(parts)


def _option(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{parameter.metavar or parameter.name.upper()}`"
    return " ".join(f"`{name}`" for name in [*parameter.opts, *parameter.secondary_opts])


def _usual(parameter: Any) -> str:
    value = getattr(parameter.default, "value", parameter.default)
    plain = isinstance(value, (int, float, str)) and not isinstance(value, bool)
    return f" Default: `{value}`." if plain and parameter.param_type_name == "option" else ""
