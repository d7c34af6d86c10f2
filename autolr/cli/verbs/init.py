"""`autolr init`: a new study from five questions, options, or an existing set-up."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from autolr.cli.options import Data, FullRun, Model, Trials
from autolr.cli.output import say
from autolr.schema.data import TaskName

WIDTH = 110


def init(
    out: Annotated[Path, typer.Argument(help="Study file to write.")] = Path("study.yaml"),
    model: Model = None,
    data: Data = None,
    task: Annotated[TaskName | None, typer.Option(help="Task to learn.")] = None,
    trials: Trials = None,
    full_run: FullRun = None,
    origin: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="Start from an existing set-up: an adapter_config.json or its folder, an Axolotl YAML, a TRL YAML, "
            "or training arguments saved as JSON.",
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing; use defaults for what is not given.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Write a commented study from five questions, which options can answer beforehand.

    With --from, model, data, rank, alpha, targets, batch size, length and schedule come from your set-up, and the
    search starts at its rates. Settings that cannot be taken over are listed.
    """
    from autolr.cli.resolve import DEFAULT, name_of, shipped
    from autolr.errors import RunError
    from autolr.schema import yaml_io
    from autolr.schema.study import Study

    if out.exists() and not force:
        raise RunError(f"{out}: this file exists. Give another name, or --force to overwrite it.")
    content: dict[str, Any] = {}
    notes: list[str] = []
    if origin is not None:
        from autolr.integrations.importers import read

        setup = read(origin)
        content, notes = setup.study, [f"not taken over: {line}" for line in setup.left]
        say(f"{origin}: a set-up of {setup.tool}")
    given = {"model": model, "data": data, "task": task, "trials": trials, "train": full_run}
    usual = yaml_io.read_yaml(shipped()[DEFAULT].path)[0]
    asks = not yes and sys.stdin.isatty()
    answers = _answers(given, content, str(usual["model"]), asks)
    source = answers.pop("data")
    content = {"name": name_of(source), **content, **{k: answers[k] for k in ("model", "task", "train")}}
    content["data"] = {**content.get("data", {}), "source": source}
    content["budget"] = {"trials": answers["trials"]}
    study = yaml_io.validate(Study, content, str(origin or "command line"))
    yaml_io.write_text(out, commented(content, [f"Study {study.name}, written by autolr init", *notes]))
    for note in notes:
        say(note)
    say(f"wrote {out}\nnext: autolr search {out} --dry-run")


def commented(content: dict[str, Any], header: list[str]) -> str:
    """Return a study's content as YAML: what it says, and beside it, as comments, all that it could say.

    Args:
        content: of the study.
        header: lines of the comment at the top.
    """
    from pydantic import BaseModel

    from autolr.schema.study import Study

    lines = [f"## {part}" for line in header for part in textwrap.wrap(line, WIDTH - 3, subsequent_indent="   ")]
    for name, field in Study.model_fields.items():
        kind, value = field.annotation, content.get(name)
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            lines += _entry(name, field, content, "")
            continue
        value = value or {}
        lines += ["", f"{name}:" if value else f"# {name}:"]
        for key, inner in kind.model_fields.items():
            lines += _entry(key, inner, value, "  " if value else "#   ")
    return "\n".join(lines) + "\n"


def _entry(name: str, field: Any, content: dict[str, Any], indent: str) -> list[str]:
    """Return the lines of a setting: its value, or its default as a comment, and what it means."""
    is_set = name in content
    value = content[name] if is_set else _plain(field.get_default(call_default_factory=True))
    about = " ".join((field.description or "").split())
    line = f"{indent}{'' if is_set or indent.startswith('#') else '# '}{name}: {_flow(value)}"
    if not about:
        return [line]
    together = f"{line}  # {about}"
    if len(together) <= WIDTH:
        return [together]
    # Two marks: a line with one of them becomes a setting when it is taken away.
    return [*(f"{indent}## {part}" for part in textwrap.wrap(about, WIDTH - 3 - len(indent))), line]


def _plain(value: Any) -> Any:
    from pydantic import BaseModel

    if isinstance(value, list):
        return [_plain(one) for one in value]
    return value.model_dump(mode="json", exclude_none=True) if isinstance(value, BaseModel) else value


def _flow(value: Any) -> str:
    import yaml

    value = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(value, default_flow_style=True, width=1000, sort_keys=False, allow_unicode=True)
    return text.removesuffix("...\n").strip()


def _answers(given: dict[str, Any], content: dict[str, Any], model: str, asks: bool) -> dict[str, Any]:
    """Return model, data, task, trials and train: as given, from a set-up, as answered, or the default.

    Raises:
        AutoLRError: the data is not given, and nobody can be asked.
    """
    from autolr.errors import AutoLRError

    known = {
        "model": content.get("model"),
        "data": content.get("data", {}).get("source"),
        "task": content.get("task"),
    }
    usual = {"model": model, "data": None, "task": "classification", "trials": 16, "train": True}
    questions = {
        "model": "Model (local folder or hub id)",
        "data": "Data (csv, jsonl, parquet file, or hub data set)",
        "task": f"Task ({', '.join(get_args(TaskName))})",
        "trials": "Trials",
        "train": "Do the full run after the search?",
    }
    answers: dict[str, Any] = {}
    for name, question in questions.items():
        value = given[name] if given[name] is not None else known.get(name)
        if value is None and asks:
            if name == "train":
                value = typer.confirm(question, default=True)
            else:
                value = typer.prompt(question, default=usual[name], type=int if name == "trials" else str)
        answers[name] = usual[name] if value is None else value
    if answers["data"] is None:
        raise AutoLRError("--data: missing. Give a file or a hub data set.")
    return answers
