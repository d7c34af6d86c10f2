"""Resolves the words of the command line to a study."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from autolr.errors import AutoLRError, DocumentError
from autolr.schema import yaml_io
from autolr.schema.overrides import apply_overrides
from autolr.schema.study import Study

DEFAULT = "sentiment"


class Shipped(NamedTuple):
    """A study that comes with AutoLR: a file, or one of the variants of a file."""

    path: Path
    variant: str | None = None


def shipped() -> dict[str, Shipped]:
    """Return the studies that come with AutoLR, by name; `glue-cola` is the variant `cola` of `glue.yaml`."""
    package = Path(__file__).resolve().parents[1]
    # In a wheel they lie inside the package, in a checkout beside it.
    folder = package / "studies" if (package / "studies").is_dir() else package.parent / "studies"
    found = {}
    for path in sorted(folder.glob("*.yaml")):
        variants = yaml_io.read_yaml(path)[0].get("variants", {})
        named = {f"{path.stem}-{variant}": Shipped(path, variant) for variant in variants}
        found.update(named or {path.stem: Shipped(path)})
    return found


def read(path: Path, variant: str | None = None) -> tuple[dict[str, Any], str]:
    """Return the content of a study file, and its text, from which errors take line numbers.

    Args:
        path: the file. Its `variants`, if it has any, are dotted overrides by name.
        variant: the name of one of them.

    Raises:
        AutoLRError: the file cannot be read, or it has variants and `variant` is None.
    """
    content, text = yaml_io.read_yaml(path)
    if "candidate" in content and "space" not in content:
        raise DocumentError(str(path), [f"is a recipe, not a study. Train it with: autolr train {path}"])
    variants = content.pop("variants", None)
    if variants is None:
        return content, text
    names = [name for name, one in shipped().items() if one.path.resolve() == path.resolve()]
    if variant is None:
        raise AutoLRError(
            f"study {str(path)!r}: has variants. Name one of: {', '.join(names) or 'shipped ones alone'}"
        )
    apply_overrides(content, [f"{key}={json.dumps(value)}" for key, value in variants[variant].items()])
    return {"name": f"{path.stem}-{variant}", **content}, text


def resolve(words: list[str], options: dict[str, Any], out: Path | None) -> Study:
    """Return the study that a command line means.

    Args:
        words: at most one study (a file, or the name of a shipped one), and dotted overrides.
        options: dotted keys and values of the named options; None where not given.
        out: the run folder; it holds the study if the search resumes.

    Raises:
        AutoLRError: there is no such study, or it has errors.
    """
    named = [word for word in words if "=" not in word or Path(word).is_file()]
    overrides = [word for word in words if word not in named]
    if len(named) > 1:
        raise AutoLRError(
            f"give one study, not {len(named)} ({', '.join(named)}). Overrides have the form key=value."
        )
    path, variant = _path(named[0] if named else None, out)
    given = {key: value for key, value in options.items() if value is not None}
    content, text = read(path, variant)
    if not named and path == shipped()[DEFAULT].path:
        # Another model or other data is another study; other data gets the default settings.
        if "data.source" in given:
            content, text = {"model": content["model"], "data": {}, "train": True}, ""
        if "data.source" in given or "model" in given:
            content["name"] = name_of(str(given.get("data.source") or given["model"]))
    # JSON is YAML on one line.
    apply_overrides(content, [f"{key}={json.dumps(value)}" for key, value in given.items()])
    apply_overrides(content, overrides)
    return yaml_io.validate(Study, content, str(path), text, {*given, *(o.partition("=")[0] for o in overrides)})


def load(named: str) -> tuple[Study, str]:
    """Return the study of a file or of a shipped study's name, and its text.

    Raises:
        AutoLRError: there is no such study, or it has errors; all of them are listed.
    """
    path, variant = _path(named, None)
    content, text = read(path, variant)
    return yaml_io.validate(Study, content, str(path), text), text


def _path(named: str | None, out: Path | None) -> Shipped:
    known = shipped()
    if named is None:
        if out is not None and (out / "study.yaml").is_file():
            return Shipped(out / "study.yaml")
        return known[DEFAULT]
    if Path(named).exists() or named not in known:
        if not Path(named).exists():
            raise AutoLRError(f"study {named!r}: no such file or shipped study. Shipped studies: {', '.join(known)}")
        return Shipped(Path(named))
    return known[named]


def name_of(source: str) -> str:
    """Return a study's name for its data or model: the last part, without characters unfit for a file name."""
    stem = source.rstrip("/").rpartition("/")[2].partition(":")[2] or Path(source.rstrip("/")).stem
    name = "".join(letter if (letter.isalnum() and letter.isascii()) or letter in "._-" else "-" for letter in stem)
    return name.strip("._-")[:64] or "study"
