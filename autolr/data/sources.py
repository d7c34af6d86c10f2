"""From a study's `data` section to examples: texts and labels, or texts that are learned."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from autolr.data import chats, labels, tables
from autolr.data.batches import tenths
from autolr.data.chats import Chat
from autolr.data.columns import Table
from autolr.data.row_checks import RowChecker
from autolr.errors import DataError
from autolr.schema.data import LANGUAGE, Data, TaskName

LABEL_NAMES = ("label", "labels", "target", "class", "category", "sentiment", "y")
TEXT_NAMES = ("text", "sentence", "review", "content", "document", "comment")
# Columns of pairs, as GLUE and its like name them.
PAIR_NAMES = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("text1", "text2"),
)
# Columns of prompts and completions, and of chats.
COMPLETION_NAMES = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("instruction", "response"),
    ("instruction", "output"),
    ("question", "answer"),
)
MESSAGES_NAMES = ("messages", "conversation", "conversations", "chat")
# Squared errors of labels far from this spread would need rates far from all that is searched.
LABEL_SPREAD = (0.05, 50.0)
MAX_CLASSES = 1000


@dataclass(frozen=True)
class Examples:
    """Labelled texts, or texts that are learned.

    Attributes:
        texts: one string an example; of sft the prompt, or the chat in plain words.
        labels: one class index an example, below `len(classes)`; a regression's number; of texts that are learned
            their length in characters, by which they are split evenly.
        classes: names of the classes; a regression's single output; none of texts that are learned.
        fingerprint: sha256 over texts and labels in their order.
        pairs: second texts, where examples are pairs; of sft the completions.
        chats: of each example, where sft learns chats.
        notices: what was left out, and what is odd.
        parts: `train`, `validation` or `test` for each example, where splits are named; None: all are cut from one.
        task: what is learned.
        numbers: of each class in the data's own order; none: the classes are in it.
        where: the source, for messages.
        rows: the place of each example in the source, from 0; None: they are all there.
    """

    texts: list[str]
    labels: list[int] | list[float]
    classes: list[str]
    fingerprint: str
    pairs: list[str] | None = None
    chats: list[Chat] | None = None
    parts: list[str] | None = None
    task: TaskName = "classification"
    notices: tuple[str, ...] = ()
    numbers: tuple[int, ...] = ()
    where: str = "the data"
    rows: list[int] | None = None

    @property
    def strata(self) -> list[int]:
        """What a split keeps in proportion: the class, or the tenth of the label or length."""
        if self.numbers:
            return [self.numbers[int(label)] for label in self.labels]
        return [int(label) for label in self.labels] if len(self.classes) > 1 else tenths(self.labels)

    def __len__(self) -> int:
        return len(self.texts)

    def ordered(self, classes: list[str], whose: str = "") -> Examples:
        """Return the examples with their classes in another order; splits and metrics keep the data's own.

        Args:
            classes: in the wanted order.
            whose: they are, for the message.

        Raises:
            DataError: these are other classes.
        """
        if classes == self.classes:
            return self
        if sorted(classes) != sorted(self.classes):
            of = f", those of {whose}" if whose else ""
            raise DataError(f"{self.where}: its classes are {', '.join(self.classes)}, not {', '.join(classes)}{of}")
        place = {name: number for number, name in enumerate(classes)}
        labels = [place[self.classes[int(label)]] for label in self.labels]
        before = self.numbers or range(len(classes))
        numbers = tuple(before[self.classes.index(name)] for name in classes)
        return replace(self, classes=list(classes), labels=labels, numbers=numbers)


def load(data: Data, task: TaskName = "classification") -> Examples:
    """Read the examples a study names.

    Args:
        data: the study's section.
        task: says what the labels are.

    Raises:
        DataError: the source, a column or a label is missing or unfit; the message says which.
    """
    table, parts = tables.read(data)
    if not table or not parts:
        raise DataError(f"data {data.source!r}: holds no rows")
    sieve = RowChecker(table, f"data {data.source!r}")
    found = _learned(sieve, parts, data, task) if task in LANGUAGE else _labelled(sieve, parts, data, task)
    return replace(found, task=task, notices=(*table.notices, *found.notices))


def _sifted(sieve: RowChecker, parts: list[str]) -> tuple[Table, dict[str, Any]]:
    """Return the table of what is fit, and what is to be said of all examples."""
    table, parts, notices = sieve.sifted(parts)
    rows = [row for row in range(sieve.rows) if row not in sieve.unfit]
    told = {"notices": notices, "where": sieve.where, "rows": rows if len(rows) < sieve.rows else None}
    return table, {"parts": parts if len(set(parts)) > 1 else None, **told}


def _learned(sieve: RowChecker, parts: list[str], data: Data, task: TaskName) -> Examples:
    """Return texts that are learned: whole ones, completions, or what the assistant says in chats."""
    where, table = sieve.where, sieve.table
    if task == "lm":
        column = _named(table, data, "text_column") or _text_column(table, None)
        if column is None:
            raise DataError(
                f"{where}: which column holds the texts? Set data.text_column to one of: {', '.join(table)}"
            )
        sieve.texts(column)
        table, told = _sifted(sieve, parts)
        return replace(_texts(table[column]), **told)
    messages = _named(table, data, "messages_column")
    prompt, completion = _named(table, data, "prompt_column"), _named(table, data, "completion_column")
    if messages and (prompt or completion):
        raise DataError(f"{where}: give either messages_column or prompt_column and completion_column")
    if not (messages or prompt or completion):
        prompt, completion = _first_pair(table, COMPLETION_NAMES) or (None, None)
        # Alpaca's input belongs to its prompt, and would be lost without a word.
        if any(name.lower() == "input" for name in table):
            prompt = completion = None
        messages = next((name for name in table if name.lower() in MESSAGES_NAMES), None) if not prompt else None
    if messages:
        return _chats(sieve, parts, data, (messages,))
    if not (prompt and completion):
        raise DataError(
            f"{where}: which columns hold prompts and completions? Set data.prompt_column and "
            f"data.completion_column, or data.messages_column, to some of: {', '.join(table)}"
        )
    if prompt == completion:
        raise DataError(f"{where}: column {prompt!r} cannot be both prompt_column and completion_column")
    if any(chats.is_chat(value) for column in (prompt, completion) for value in table[column]):
        return _chats(sieve, parts, data, (prompt, completion))
    for column in (prompt, completion):
        sieve.texts(column)
    table, told = _sifted(sieve, parts)
    others = [name for name in table if name not in (prompt, completion)]
    told["notices"] += (f"columns that are not used: {', '.join(others)}",) if others else ()
    return replace(_texts(table[prompt], table[completion]), **told)


def _chats(sieve: RowChecker, parts: list[str], data: Data, columns: tuple[str, ...]) -> Examples:
    """Return chats: messages, or prompts and completions that are messages."""
    table = sieve.table
    others = [name for name in table if name not in columns]
    sparse = not data.source.lower().endswith((".json", ".jsonl"))
    where = f" in column {' and '.join(repr(name) for name in columns)}"
    found: list[Chat | None] = []
    for row, value in enumerate(table[columns[0]]):
        chat, place = None, where
        try:
            if len(columns) == 1:
                chat = chats.read(value, sparse)
            else:
                chat = chats.continued(value, table[columns[1]][row], sparse)
            place = ""
            chat, odd = chats.with_columns(chat, {name: table[name][row] for name in others}, sparse)
            for what in odd:
                sieve.remark(row, what)
        except ValueError as error:
            sieve.leave_out(row, f"{error}{place}", "mend or remove them, or choose another column")
        found.append(chat)
    sieve.check()
    sieve.table = Table({"chats": found}, sieve.where)
    kept, told = _sifted(sieve, parts)
    whole = [chat.text() for chat in kept["chats"]]
    lengths = [float(len(text)) for text in whole]
    fingerprint = _fingerprint(whole, [chat.identity() for chat in kept["chats"]])
    return Examples(whole, lengths, [], fingerprint, chats=kept["chats"], **told)


def _texts(texts: list[str], completions: list[str] | None = None) -> Examples:
    ends = completions or [""] * len(texts)
    lengths = [float(len(text) + len(end)) for text, end in zip(texts, ends, strict=True)]
    return Examples(texts, lengths, [], _fingerprint(texts, ends), completions)


def _labelled(sieve: RowChecker, parts: list[str], data: Data, task: TaskName) -> Examples:
    table = sieve.table
    text_column, pair_column, label_column = _columns(table, data)
    names = table.classes.get(label_column)
    _refuse_lost_header(table, data, label_column)
    sieve.texts(text_column)
    if pair_column is not None:
        sieve.texts(pair_column)
    sieve.labels(label_column, task, names)
    if task != "regression":
        if names is None:
            table[label_column] = _classes(sieve, label_column)
        sieve.strangers(label_column, parts)
    kept, told = _sifted(sieve, parts)
    texts, values = kept[text_column], kept[label_column]
    pairs = kept[pair_column] if pair_column else None
    said = texts if pairs is None else [f"{one}\x1d{other}" for one, other in zip(texts, pairs, strict=True)]
    if task == "regression":
        numbers = _numbers(values, sieve.where, label_column)
        return Examples(texts, numbers, ["value"], _fingerprint(said, numbers), pairs, **told)
    kinds = sorted(set(values))
    _check_kinds(kinds, len(values), sieve.where, label_column)
    index = {kind: position for position, kind in enumerate(kinds)}
    told["notices"] += tuple(labels.remarks(kinds, label_column))
    return Examples(
        texts,
        [index[value] for value in values],
        [str(kind) if names is None else names[int(kind)] for kind in kinds],
        _fingerprint(said, values if names is None else [names[int(value)] for value in values]),
        pairs,
        **told,
    )


def _refuse_lost_header(table: Table, data: Data, label_column: str) -> None:
    """Refuse a file whose first line is an example, which would be lost."""
    if not table.has_header or data.label_column is not None:
        return
    if labels.number(label_column) is not None or label_column in table[label_column]:
        raise DataError(
            f"{table.where}: the first line must be the header, and looks like an example ({', '.join(table)}). Put "
            f"a line such as text,label above it, or set data.label_column={label_column}"
        )


def _classes(sieve: RowChecker, column: str) -> list[labels.Class | None]:
    try:
        return labels.canonical(sieve.table[column], sieve.unfit)
    except ValueError as error:
        raise DataError(f"{sieve.where}: column {column!r} holds {error}") from None


def _check_kinds(kinds: Sequence[labels.Class], rows: int, where: str, column: str) -> None:
    """Check that there are some classes, and not as many as of a name or a number."""
    if len(kinds) < 2:
        only = ", ".join(repr(kind) for kind in kinds)
        raise DataError(f"{where}: column {column!r} holds one class only ({only}); two are needed")
    if len(kinds) > MAX_CLASSES or len(kinds) > rows / 2:
        raise DataError(
            f"{where}: column {column!r} holds {len(kinds)} different values in {rows} rows; "
            "these are no classes, give another label_column"
        )


def _numbers(values: list[Any], where: str, column: str) -> list[float]:
    """Return the labels of a regression, all of them numbers.

    Raises:
        DataError: they are all the same, or far from a spread of about 1.
    """
    numbers = [found for value in values if (found := labels.number(value)) is not None]
    spread = float(np.std(numbers))
    if not math.isfinite(spread) or spread == 0:
        raise DataError(f"{where}: the labels in column {column!r} are all {numbers[0]:g}, or not finite")
    if not LABEL_SPREAD[0] <= spread <= LABEL_SPREAD[1]:
        raise DataError(
            f"{where}: the labels in column {column!r} have a standard deviation of {spread:.3g}; scale them to "
            "about 1, so that rates which suit other tasks suit this one"
        )
    return numbers


def _columns(table: Table, data: Data) -> tuple[str, str | None, str]:
    where = f"data {data.source!r}"
    columns = ", ".join(table)
    text, pair, label = (_named(table, data, key) for key in ("text_column", "pair_column", "label_column"))
    label = label or _label_column(table, text)
    if label is None:
        raise DataError(f"{where}: which column holds the labels? Set data.label_column to one of: {columns}")
    if text is None and pair is None:
        text, pair = _first_pair([name for name in table if name != label], PAIR_NAMES) or (None, None)
    text = text or _text_column(table, label)
    if text is None:
        raise DataError(f"{where}: which column holds the texts? Set data.text_column to one of: {columns}")
    if len({text, pair, label}) < 3:
        raise DataError(f"{where}: one column cannot be two of text_column, pair_column, label_column: {columns}")
    return text, pair, label


def _named(table: Table, data: Data, key: str) -> str | None:
    """Return the column that a setting names; None where it names none."""
    given: str | None = getattr(data, key)
    if given is not None and given not in table:
        raise DataError(f"data {data.source!r}: there is no column {given!r} ({key}); it has: {', '.join(table)}")
    return given


def _first_pair(names: Iterable[str], known: Sequence[tuple[str, str]]) -> tuple[str, str] | None:
    lower = {name.lower(): name for name in names}
    return next(((lower[one], lower[other]) for one, other in known if one in lower and other in lower), None)


def _label_column(table: Table, text: str | None) -> str | None:
    named = [name for name in table if name.lower() in LABEL_NAMES and name != text]
    if len(named) == 1:
        return named[0]
    others = [name for name in table if name != text and (text is not None or not _is_prose(table, name))]
    return others[0] if not named and len(others) == 1 else None


def _text_column(table: Table, label: str | None) -> str | None:
    strings = [name for name in table if name != label and table.has_text(name)]
    named = [name for name in strings if name.lower() in TEXT_NAMES]
    if len(strings) == 1:
        return strings[0]
    return named[0] if len(named) == 1 else None


def _is_prose(table: Table, name: str) -> bool:
    if not table.has_text(name):
        return False
    column = table[name]
    strings = [value for value in column if isinstance(value, str)]
    return len(strings) > len(column) / 2 and len(set(strings)) > len(column) / 2


def _fingerprint(texts: Sequence[Any], values: Sequence[Any]) -> str:
    digest = hashlib.sha256()
    for text, label in zip(texts, values, strict=True):
        digest.update(f"{text}\x1f{label!r}\x1e".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
