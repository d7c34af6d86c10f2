"""What a label is, in whatever format and type it comes: a missing one, a number, or a class."""

from __future__ import annotations

import ast
import datetime
import math
import re
from collections.abc import Collection, Sequence
from decimal import Decimal
from typing import Any

# As a class 007 is a word, as a number it is 7.
_INTEGER = re.compile(r"-?(0|[1-9][0-9]*)(\.0*)?")
_END = r"(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?"
_NUMBER = re.compile(rf"[+-]?((0|[1-9][0-9]*){_END}")
_PADDED = re.compile(rf"[+-]?([0-9]+{_END}")
# What is no text: a pattern that Arrow understands as well.
NOT_TEXT = rf"^\s*({_PADDED.pattern}|[+-]?(inf|Inf|nan|NaN)|(?i:true|false))?\s*$"
_ENDLESS = re.compile(r"[+-]?inf(inity)?", re.IGNORECASE)
_COMMA = re.compile(r"[+-]?[0-9]+,[0-9]+")
_ARRAY = re.compile(r"\[\s*[-+.0-9e]+(\s+[-+.0-9e]+)+\s*\]")  # as numpy shows one
# Words that other programs write where a value is missing.
_MISSING = {"na", "n/a", "#n/a", "nan", "null", "none", "nil", "<na>", "nat"}
_SEVERAL = re.compile(r"\s*[,;|]\s*")

Class = int | str


def is_missing(value: Any) -> bool:
    """Return True if a cell is empty: nothing, white space, or not a number. Words such as `NA` are words."""
    if isinstance(value, str):
        return not value or value.isspace()
    return value is None or (isinstance(value, float | Decimal) and math.isnan(value))


def is_several(value: Any) -> bool:
    """Return True if a cell has a list of labels, also one written as text; `[spam]` is a word."""
    if not isinstance(value, str):
        return isinstance(value, list | tuple | set)
    word = value.strip()
    if not word.startswith(("[", "(", "{")):
        return False
    try:
        return isinstance(ast.literal_eval(word), list | tuple | set)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return _ARRAY.fullmatch(word) is not None


def is_class(value: Any) -> bool:
    """Return True if a cell can be one class: a word, a number or a truth value."""
    return isinstance(value, str | int | float | Decimal)


def number(value: Any) -> float | None:
    """Return a cell as a finite number; None if it is none."""
    if isinstance(value, str):
        value = value.strip()
        if not _PADDED.fullmatch(value):
            return None
    elif isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def has_decimal_comma(value: Any) -> bool:
    """Return True if a cell is a number that is written with a comma, such as `1,5`."""
    return isinstance(value, str) and _COMMA.fullmatch(value.strip()) is not None


def named(value: Any) -> str:
    """Return the word for a label."""
    return value.strip() if isinstance(value, str) else str(value)


def canonical(labels: Sequence[Any], skipped: Collection[int]) -> list[Class | None]:
    """Return the classes of a column, the same for each format and type it may come in.

    The column is read as a whole. If each label is a whole number, they are integers: 1, 1.0 and "1" are one class.
    If each is true or false, in any case, they are `True` and `False`. Else all are words as they are written,
    without the spaces around them.

    Args:
        labels: each a word, a number or a truth value, but for the skipped rows.
        skipped: rows without a label, which become None.

    Raises:
        ValueError: all are numbers and some have fractions, or 0 and 1 are mixed with true and false.
    """
    keys = [None if row in skipped else (type(label), label) for row, label in enumerate(labels)]
    words = {key: named(key[1]) for key in set(keys) if key is not None}
    classes: dict[Any, Class]
    if all(_INTEGER.fullmatch(word) for word in words.values()):
        classes = {key: _integer(word) for key, word in words.items()}
    elif all(word.lower() in ("true", "false") for word in words.values()):
        classes = {key: word.lower() == "true" for key, word in words.items()}
    elif all(word.lower() in ("true", "false", "0", "1") for word in words.values()):
        raise ValueError("0 or 1 as well as true or false; write all labels in one way")
    elif all(map(_looks_like_number, words.values())):
        whole = {key: number(word) for key, word in words.items()}
        if not all(value is not None and value.is_integer() for value in whole.values()):
            raise ValueError(
                "numbers with fractions, which are no classes; for a regression set task=regression, and names of "
                "classes must be words"
            )
        classes = {key: int(value) for key, value in whole.items() if value is not None}
    else:
        classes = dict(words)
    return [None if key is None else classes[key] for key in keys]


def remarks(classes: Collection[Class], column: str) -> list[str]:
    """Return what is odd about classes, each in one line."""
    words = {name for name in classes if isinstance(name, str)}
    lines = [
        f"the class {word!r} in column {column!r} is a word here; leave the cell empty where a label is missing"
        for word in sorted(words)
        if word.lower() in _MISSING
    ]
    alike: dict[str, list[str]] = {}
    for word in sorted(words):
        alike.setdefault(word.casefold(), []).append(word)
    lines += [
        f"the classes {', '.join(map(repr, same))} in column {column!r} differ only in upper and lower case"
        for same in alike.values()
        if len(same) > 1
    ]
    lines += [
        f"the class {word!r} in column {column!r} looks like several labels; each such word is a class of its own"
        for word in sorted(words)
        if len(parts := _SEVERAL.split(word)) > 1 and words.issuperset(parts)
    ][:1]
    return lines


def kind(value: Any) -> str:
    """Return what a cell is, in plain words."""
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return "a date or time"
    return {bytes: "bytes", datetime.timedelta: "a duration", dict: "an object"}.get(
        type(value), f"a {type(value).__name__}"
    )


def _looks_like_number(word: str) -> bool:
    return bool(_NUMBER.fullmatch(word) or _ENDLESS.fullmatch(word) or _COMMA.fullmatch(word))


def _integer(word: str) -> int:
    return int(word.partition(".")[0])
