"""Reading and writing the YAML documents: all errors of a file at once, with their lines.

A document is data: `yaml.safe_load`, nothing else, so a file from a stranger runs no code.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from autolr.errors import DocumentError

D = TypeVar("D", bound="Document")


class Document(BaseModel):
    """A frozen pydantic model that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def write_text(path: Path, text: str, *, durable: bool = True) -> None:
    """Replace the file `path` by `text` in one step; see `write_bytes`."""
    write_bytes(path, text.encode(), durable=durable)


def write_bytes(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Replace the file `path` by `content` in one step: a reader sees the old file or the new one.

    Args:
        path: the file; its folder is made.
        content: all that it will hold.
        durable: wait until the disk has it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def to_yaml(content: Mapping[str, Any]) -> str:
    """Return `content` as block-style YAML in the order given, short lists on one line."""
    return yaml.dump(dict(content), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def read_yaml(path: Path) -> tuple[dict[str, Any], str]:
    """Return the mapping in the YAML file `path`, and its text.

    Raises:
        DocumentError: there is no such file, it is not UTF-8 YAML, or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DocumentError(str(path), ["no such file"]) from None
    except IsADirectoryError:
        raise DocumentError(str(path), ["is a folder, not a YAML file"]) from None
    except UnicodeDecodeError:
        raise DocumentError(str(path), ["is not a text file in UTF-8"]) from None
    except OSError as error:
        raise DocumentError(str(path), [f"cannot be read: {error.strerror}"]) from None
    try:
        content = yaml.load(text, Loader=_Loader)  # noqa: S506 (a SafeLoader that refuses repeated keys)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        what = getattr(error, "problem", None) or str(error).splitlines()[0] or type(error).__name__
        raise DocumentError(str(path), [f"{where}is not YAML: {what}"]) from None
    if not isinstance(content, dict):
        kind = "is empty" if content is None else f"holds a {type(content).__name__}, not keys and values"
        raise DocumentError(str(path), [kind])
    return content, text


def validate(kind: type[D], content: Mapping[str, Any], source: str, text: str = "") -> D:
    """Return `content` as a document of type `kind`.

    Args:
        kind: the document's class.
        content: what `yaml.safe_load` made of the file, or keyword arguments.
        source: where it came from, for the message.
        text: the YAML text, to name the line of each problem.

    Raises:
        DocumentError: one problem a line, all of them.
    """
    try:
        return kind.model_validate(dict(content))
    except ValidationError as error:
        raise DocumentError(source, _problems(kind, error, text)) from None


def _problems(kind: type[BaseModel], error: ValidationError, text: str) -> list[str]:
    problems: dict[str, list[str]] = {}
    for item in error.errors(include_url=False):
        path = tuple(part for part in item["loc"] if _is_key(part))
        key = ".".join(str(part) for part in path)
        line = _line_of(text, path)
        where = f"line {line}: {key}" if line and key else key or "document"
        if item["type"] == "extra_forbidden":
            message = f"unknown key; known here: {', '.join(_known_keys(kind, path[:-1]))}"
        elif item["type"] == "missing":
            message = "is missing"
        else:
            message = item["msg"].removeprefix("Value error, ")
            if not isinstance(item["input"], dict) and item["type"] != "value_error":
                message += f" (given: {str(item['input'])[:80]!r})"
        problems.setdefault(where, []).append(message)
    return [f"{where}: {'; or '.join(dict.fromkeys(messages))}" for where, messages in problems.items()]


def _is_key(part: int | str) -> bool:
    # pydantic names the branch of a union in the location; those are types, not keys of the file.
    return isinstance(part, int) or (part.isidentifier() and part.islower())


def _known_keys(kind: type[BaseModel], path: Sequence[int | str]) -> list[str]:
    model: Any = kind
    for part in path:
        field = model.model_fields.get(part) if isinstance(part, str) else None
        if field is None:
            return []
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        model = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
        if model is None:
            return []
    return list(model.model_fields)


def _line_of(text: str, path: Sequence[int | str]) -> int | None:
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader) if text else None
    except yaml.YAMLError:
        return None
    line = None
    for part in path:
        if isinstance(node, yaml.MappingNode):
            found = [(key, value) for key, value in node.value if key.value == str(part)]
            if not found:
                return line
            line, node = found[0][0].start_mark.line + 1, found[0][1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
    return line


class _Loader(yaml.SafeLoader):
    """`SafeLoader` that refuses a key written twice, and reads 1e-4 as a number."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[str] = set()
    for key, _ in node.value:
        if key.value in seen:
            raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} twice", key.start_mark)
        seen.add(key.value)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


class _Dumper(yaml.SafeDumper):
    """`SafeDumper` that writes lists of plain values on one line."""


def _sequence(dumper: _Dumper, data: Sequence[Any]) -> yaml.Node:
    plain = all(not isinstance(item, (dict, list, tuple)) for item in data)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=plain)


_Dumper.add_representer(list, _sequence)
_Dumper.add_representer(tuple, _sequence)
