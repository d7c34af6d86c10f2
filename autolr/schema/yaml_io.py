"""Reading and writing the YAML documents: all errors of a file at once, with their lines.

A document is data: `yaml.safe_load`, nothing else, so a file from a stranger runs no code.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from autolr.errors import DocumentError

D = TypeVar("D", bound="Document")
# No document is longer, and none has more values, repeated ones counted each time.
MOST_BYTES = 2**20
MOST_VALUES = 20_000


class Document(BaseModel):
    """A frozen pydantic model that refuses unknown keys.

    Attributes:
        REMOVED: keys that AutoLR no longer has: the values that meant "off", which are ignored, and the message for
            all other values.
        RENAMED: keys that are called otherwise now, and their new names.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    REMOVED: ClassVar[Mapping[str, tuple[Sequence[Any], str]]] = {}
    RENAMED: ClassVar[Mapping[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _without_removed(cls, content: Any) -> Any:
        if not isinstance(content, Mapping) or cls.REMOVED.keys().isdisjoint(content):
            return content
        return {key: value for key, value in content.items() if value not in cls.REMOVED.get(key, ((), ""))[0]}


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
        if path.exists() and not path.is_dir() and not path.is_file():
            raise DocumentError(str(path), ["is no ordinary file"])  # a pipe or a device may never end
        if path.is_file() and path.stat().st_size > MOST_BYTES:
            raise DocumentError(str(path), [f"has {path.stat().st_size:,} bytes: no study or recipe is so long"])
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DocumentError(str(path), ["no such file"]) from None
    except IsADirectoryError:
        raise DocumentError(str(path), ["is a folder, not a YAML file"]) from None
    except UnicodeDecodeError:
        raise DocumentError(str(path), ["is not a text file in UTF-8"]) from None
    except OSError as error:
        raise DocumentError(str(path), [f"cannot be read: {error.strerror}"]) from None
    content = parse(text, str(path))
    if not isinstance(content, dict):
        kind = "is empty" if content is None else f"holds a {type(content).__name__}, not keys and values"
        raise DocumentError(str(path), [kind])
    return content, text


def parse(text: str, source: str) -> Any:
    """Return what a YAML text says: plain values, and no code.

    Raises:
        DocumentError: it is not YAML, names Python objects, writes a key twice, or its aliases refer to themselves or
            multiply beyond all measure.
    """
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _count(node, {}) > MOST_VALUES:
            raise yaml.MarkedYAMLError(problem=f"has more than {MOST_VALUES:,} values", problem_mark=node.start_mark)
        return loader.construct_document(node)
    except (yaml.YAMLError, RecursionError, ValueError, TypeError, OverflowError) as error:
        # Constructors raise what they like on values such as 2020-99-99.
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        reason = getattr(error, "problem", None) or next(iter(str(error).splitlines()), "")
        problem = f"{where}is not YAML: {reason or type(error).__name__}"
    raise DocumentError(source, [problem])


def validate(
    kind: type[D], content: Mapping[str, Any], source: str, text: str = "", typed: Collection[str] = ()
) -> D:
    """Return `content` as a document of type `kind`.

    Args:
        kind: the document's class.
        content: what `yaml.safe_load` made of the file, or keyword arguments.
        source: where it came from, for the message.
        text: the YAML text, to name the line of each problem.
        typed: dotted keys whose values are from the command line, not from the file.

    Raises:
        DocumentError: one problem a line, all of them.
    """
    try:
        return kind.model_validate(dict(content))
    except ValidationError as error:
        raise DocumentError(source, _problems(kind, error, text, typed)) from None


def _problems(kind: type[Document], error: ValidationError, text: str, typed: Collection[str]) -> list[str]:
    problems: dict[str, list[str]] = {}
    for item in error.errors(include_url=False):
        path = tuple(part for part in item["loc"] if _is_key(part))
        key = ".".join(str(part) for part in path)
        # An error of a whole section, such as an old name in it, is typed if it names a key that is.
        named = [one for one in typed if one.startswith(f"{key}.") and one.rsplit(".", 1)[1] in item["msg"]]
        is_typed = bool(named) or any(key == one or key.startswith(f"{one}.") for one in typed)
        line = None if is_typed else _line_of(text, path)
        where = f"line {line}: {key}" if line and key else key or "document"
        where += " (from the command line)" * is_typed
        if item["type"] == "extra_forbidden":
            model = _model_at(kind, path[:-1])
            message = f"unknown key; known here: {', '.join(model.model_fields if model else ())}"
            if model is not None and path[-1] in model.REMOVED:
                message = model.REMOVED[str(path[-1])][1]
            elif model is not None and path[-1] in model.RENAMED:
                message = f"is called {model.RENAMED[str(path[-1])]} now. Write that name"
        elif item["type"] == "missing":
            message = "is missing"
        else:
            message = item["msg"].removeprefix("Value error, ")
            if not isinstance(item["input"], dict) and item["type"] != "value_error":
                message += f" (given: {_shown(item['input'])})"
        problems.setdefault(where, []).append(message)
    return [f"{where}: {'; or '.join(dict.fromkeys(messages))}" for where, messages in problems.items()]


def _shown(value: Any) -> str:
    try:
        return repr(str(value)[:80])
    except ValueError:  # an integer of thousands of digits
        return f"a number of {value.bit_length():,} bits"


def _is_key(part: int | str) -> bool:
    # pydantic names the branch of a union in the location; those are types, not keys of the file.
    return isinstance(part, int) or (part.isidentifier() and part.islower())


def _model_at(kind: type[Document], path: Sequence[int | str]) -> type[Document] | None:
    """Return the class of the document at `path` inside one of `kind`; None if there is none."""
    model: Any = kind
    for part in (one for one in path if isinstance(one, str)):  # an index leads to a document of the list's kind
        field = model.model_fields.get(part)
        if field is None:
            return None
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        model = next((c for c in candidates if isinstance(c, type) and issubclass(c, Document)), None)
        if model is None:
            return None
    return model  # type: ignore[no-any-return]


def _line_of(text: str, path: Sequence[int | str]) -> int | None:
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader) if text else None
    except (yaml.YAMLError, RecursionError):
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


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """Return the number of values in a node; an alias counts as often as it is written: ten lines can mean 10^10.

    Raises:
        yaml.MarkedYAMLError: a key is written twice or is no word, or a text is no Unicode.
    """
    if id(node) not in known:
        known[id(node)] = MOST_VALUES + 1  # met again below itself
        inner = node.value if isinstance(node, yaml.SequenceNode) else []
        if isinstance(node, yaml.MappingNode):
            _check_keys([key for key, _ in node.value])
            inner = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.ScalarNode) and any("\ud800" <= letter <= "\udfff" for letter in node.value):
            raise yaml.MarkedYAMLError(problem="a text that is no Unicode", problem_mark=node.start_mark)
        known[id(node)] = 1 + sum(_count(part, known) for part in inner)
    return known[id(node)]


def _check_keys(keys: Sequence[yaml.Node]) -> None:
    seen = set()
    for key in keys:
        if not isinstance(key, yaml.ScalarNode):
            raise yaml.MarkedYAMLError(problem="a key that is no word", problem_mark=key.start_mark)
        if key.value in seen:
            raise yaml.MarkedYAMLError(problem=f"key {key.value!r} twice", problem_mark=key.start_mark)
        seen.add(key.value)


class _Dumper(yaml.SafeDumper):
    """`SafeDumper` that writes lists of plain values on one line."""


def _sequence(dumper: _Dumper, data: Sequence[Any]) -> yaml.Node:
    plain = all(not isinstance(item, (dict, list, tuple)) for item in data)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=plain)


_Dumper.add_representer(list, _sequence)
_Dumper.add_representer(tuple, _sequence)
