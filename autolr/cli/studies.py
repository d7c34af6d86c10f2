"""From the words of the command line to a study."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from autolr import documents
from autolr.errors import AutoLRError
from autolr.study import Study, apply_overrides

DEFAULT = "sentiment"


def shipped() -> dict[str, Path]:
    """Return the studies that come with AutoLR, by name."""
    package = Path(__file__).resolve().parents[1]
    # In a wheel they lie inside the package, in a checkout beside it.
    folder = package / "studies" if (package / "studies").is_dir() else package.parent / "studies"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def resolve(words: list[str], options: dict[str, Any], out: Path | None) -> Study:
    """Return the study that a command line means.

    Args:
        words: at most one study (a file, or the name of a shipped one), and dotted overrides.
        options: dotted keys and values of the named options; None where not given.
        out: the run folder, which holds the study of a search that is gone on with.

    Raises:
        AutoLRError: there is no such study, or it is wrong.
    """
    named = [word for word in words if "=" not in word or Path(word).is_file()]
    overrides = [word for word in words if word not in named]
    if len(named) > 1:
        raise AutoLRError(f"one study at a time: {', '.join(named)}; overrides have the form key=value")
    path = _path(named[0] if named else None, out)
    given = {key: value for key, value in options.items() if value is not None}
    content, text = documents.read_yaml(path)
    if not named and path == shipped()[DEFAULT]:
        # Another model or other data is another study; other data gets the default settings.
        if "data.source" in given:
            content, text = {"model": content["model"], "data": {}, "train": True}, ""
        if "data.source" in given or "model" in given:
            content["name"] = _name(str(given.get("data.source") or given["model"]))
    # JSON is YAML on one line.
    apply_overrides(content, [f"{key}={json.dumps(value)}" for key, value in given.items()])
    apply_overrides(content, overrides)
    return documents.validate(Study, content, str(path), text)


def _path(named: str | None, out: Path | None) -> Path:
    known = shipped()
    if named is None:
        if out is not None and (out / "study.yaml").is_file():
            return out / "study.yaml"
        return known[DEFAULT]
    if Path(named).exists() or named not in known:
        if not Path(named).exists():
            raise AutoLRError(f"study {named!r}: no such file; shipped studies: {', '.join(known)}")
        return Path(named)
    return known[named]


def _name(source: str) -> str:
    stem = source.rstrip("/").rpartition("/")[2].partition(":")[2] or Path(source.rstrip("/")).stem
    name = "".join(letter if (letter.isalnum() and letter.isascii()) or letter in "._-" else "-" for letter in stem)
    return name.strip("._-")[:64] or "study"
