"""Texts that are learned: which tokens an example has, and which of them are learned.

An example is one text, tokenized as a whole with what its tokenizer puts before it; what is learned of it are the
tokens that stand for the completion or the answers, found by their places in the text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np

from autolr.data.answers import AnswerFinder, Written
from autolr.data.batches import IGNORED
from autolr.data.chats import KWARGS, Chat
from autolr.data.row_checks import RowChecker
from autolr.data.sources import Examples
from autolr.data.spans import Span
from autolr.data.templates import Template, UnfitChatError, template_of

# Texts that are tokenized at once.
TEXTS_AT_ONCE = 1000
# Chats by which it is told whether a template reads a field of their messages.
CHATS_TRIED = 5


@dataclass(frozen=True)
class Learned:
    """Tokens of examples.

    Attributes:
        ids: of each example; none of one that is left out.
        labels: the ids that are learned, `IGNORED` at the others.
        notices: what was left out, and what is odd.
    """

    ids: list[list[int]]
    labels: list[list[int]]
    notices: tuple[str, ...] = ()


def tokenize(examples: Examples, tokenizer: Any, max_length: int) -> tuple[list[list[int]], list[list[int]]]:
    """Return token ids and labels of all examples; see `learn`."""
    learned = learn(examples, tokenizer, max_length)
    return learned.ids, learned.labels


def learn(examples: Examples, tokenizer: Any, max_length: int, limit: int | None = None) -> Learned:
    """Tokenize examples, and tell which tokens are learned.

    Prompts and completions are put together as they are: a space between them belongs to one of them. Chats go
    through the tokenizer's chat template, and all that the assistant says is learned. A completion and a whole text
    end with the tokenizer's end token, which is learned as well.

    Args:
        examples: of the task `sft` or `lm`.
        tokenizer: the model's; it needs an end token, and for chats a chat template.
        max_length: tokens kept of an example, from its beginning.
        limit: the most tokens the model takes; None where unlimited.

    Raises:
        DataError: there is no chat template, or more examples than can be an accident cannot be learned.
    """
    sieve = RowChecker({"text": examples.texts}, examples.where, examples.rows)
    notes: list[str] = []
    if examples.chats is not None:
        texts, spans, notes = _of_chats(examples.chats, tokenizer, sieve)
    else:
        ends = examples.pairs or [""] * len(examples)
        texts = [text + end for text, end in zip(examples.texts, ends, strict=True)]
        spans = [
            [(len(text) if examples.pairs else 0, len(whole))]
            for text, whole in zip(examples.texts, texts, strict=True)
        ]
    ids, labels = [], []
    encoded = _encoded(texts, spans, tokenizer, with_prefix=examples.chats is None)
    for row, (own, learned, is_across) in enumerate(encoded):
        size = len(own) - int(np.argmax(learned[::-1])) if learned.any() else 0  # up to the last that is learned
        tokens = own[:size]
        said = [token if one else IGNORED for token, one in zip(tokens, learned[:size].tolist(), strict=True)]
        if examples.chats is None and size and tokens[-1] != tokenizer.eos_token_id:
            tokens, said = [*tokens, int(tokenizer.eos_token_id)], [*said, int(tokenizer.eos_token_id)]
        if is_across and examples.pairs is not None and size:
            sieve.remark(row, "a token that reaches from the prompt into the completion, and is learned with it")
        ids.append(tokens)
        labels.append(said)
    _look_at_lengths(labels, sieve, max_length, limit)
    sieve.check()
    for row in sieve.unfit:
        ids[row], labels[row] = [], []
    _, _, report = sieve.sifted([""] * len(examples))
    return Learned([own[:max_length] for own in ids], [own[:max_length] for own in labels], (*report, *notes))


def _of_chats(
    chats: Sequence[Chat], tokenizer: Any, sieve: RowChecker
) -> tuple[list[str], list[list[Span]], list[str]]:
    """Write chats; return their texts, what is learned of them, and what is to be said of all."""
    known: dict[str, Template] = {}
    templates = [template_of(tokenizer, chat.options.get("tools"), known) for chat in chats]
    finders = {text: AnswerFinder(template) for text, template in known.items()}
    written = []
    for row, (chat, template) in enumerate(zip(chats, templates, strict=True)):
        try:
            text = finders[template.text].write(chat)
        except UnfitChatError as error:
            sieve.leave_out(row, error.reason, error.remedy)
            text = Written("", [])
        for odd in text.odd:
            sieve.remark(row, odd)
        written.append(text)
    sieve.check()
    _look_at_fields(chats, templates, sieve)
    notes = [note for finder in finders.values() for note in finder.told()]
    read, unread = _columns(chats, templates)
    notes += [f"columns that the model's chat template reads: {', '.join(read)}"] if read else []
    notes += (
        [f"columns and arguments that the model's chat template does not read: {', '.join(unread)}"] if unread else []
    )
    return [text.text for text in written], [text.spans for text in written], notes


def _look_at_fields(chats: Sequence[Chat], templates: Sequence[Template], sieve: RowChecker) -> None:
    """Name the fields of messages that make no difference to what is written."""
    rows: dict[str, list[int]] = {}
    for row, chat in enumerate(chats):
        if row not in sieve.unfit:
            for name in dict.fromkeys(name for message in chat.messages for name, value in message.items() if value):
                rows.setdefault(name, []).append(row)
    for name, having in rows.items():
        if name in ("role", "content"):
            continue
        if all(templates[row].ignores(chats[row], name) for row in having[:CHATS_TRIED]):
            for row in having:
                sieve.remark(row, f"{name!r} in messages, which the model's chat template does not read")


def _columns(chats: Sequence[Chat], templates: Sequence[Template]) -> tuple[list[str], list[str]]:
    """Return the columns that templates read, and those that they do not, with arguments that are not read."""
    read: dict[str, None] = {}
    unread: dict[str, None] = {}
    for chat, template in zip(chats, templates, strict=True):
        if chat.options:
            lost = template.unread(chat)
            unread.update(dict.fromkeys(lost))
            read.update(dict.fromkeys(name for name in chat.options if name not in (*lost, KWARGS)))
    return [name for name in read if name not in unread], list(unread)


def _encoded(
    texts: Sequence[str], spans: Sequence[Sequence[Span]], tokenizer: Any, with_prefix: bool
) -> Iterator[tuple[list[int], np.ndarray, bool]]:
    """Yield of each text its ids, which of them are learned, [tokens], and whether one reaches across a beginning."""
    if not tokenizer.is_fast:
        for text, own in zip(texts, spans, strict=True):
            yield _by_pieces(text, own, tokenizer, with_prefix)
        return
    backend = _with_whole_offsets(tokenizer)
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        part = slice(start, start + TEXTS_AT_ONCE)
        encodings = backend.encode_batch(list(texts[part]), add_special_tokens=with_prefix)
        for encoding, own in zip(encodings, spans[part], strict=True):
            places = np.array(encoding.offsets, np.int64).reshape(-1, 2)
            yield (list(encoding.ids), *_within(places, own, np.array(encoding.special_tokens_mask, bool)))


def _within(places: np.ndarray, spans: Sequence[Span], is_added: np.ndarray) -> tuple[np.ndarray, bool]:
    """Return which tokens lie within spans, [tokens], and whether one lies across the beginning of a span.

    Args:
        places: where each token begins and ends in its text, [tokens, 2].
        spans: of the text.
        is_added: which tokens the tokenizer has added, and stand for nothing in the text, [tokens].
    """
    begins, ends = places[:, 0], places[:, 1]
    learned = np.zeros(len(places), bool)
    is_across = False
    for start, end in spans:
        learned |= (begins < end) & ((ends > start) | ((begins == ends) & (begins >= start)))
        is_across |= bool(((begins < start) & (ends > start)).any())
    return learned & ~is_added, is_across


def _with_whole_offsets(tokenizer: Any) -> Any:
    """Return the tokenizer's backend, neither cutting nor padding; a token's place has the spaces it stands for."""
    backend = tokenizer.backend_tokenizer
    text = backend.to_str()
    if '"trim_offsets":true' in text or backend.truncation or backend.padding:
        backend = type(backend).from_str(text.replace('"trim_offsets":true', '"trim_offsets":false'))
        backend.no_truncation()
        backend.no_padding()
    backend.encode_special_tokens = tokenizer.split_special_tokens
    return backend


def _by_pieces(
    text: str, spans: Sequence[Span], tokenizer: Any, with_prefix: bool
) -> tuple[list[int], np.ndarray, bool]:
    """Find learned tokens as TRL does, by what the ids of a text and of its beginning have in common.

    This is for tokenizers written in Python, which do not say where in a text a token is.
    """

    def ids(part: str, added: bool = False) -> list[int]:
        return list(tokenizer(part, add_special_tokens=added, truncation=False, verbose=False)["input_ids"])

    plain, whole = ids(text), ids(text, with_prefix)
    before = next((at for at in range(len(whole)) if whole[at : at + len(plain)] == plain), 0)
    learned = np.zeros(len(whole), bool)
    is_across = False
    for start, end in spans:
        first, last = (ids(text[:place]) for place in (start, end))
        begin, stop = _alike(first, plain), _alike(last, plain)
        is_across |= begin < len(first)
        learned[before + begin : before + max(stop, begin + 1 if end > start else 0)] = True
    return whole, learned, is_across


def _alike(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many ids two texts begin with alike."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _look_at_lengths(labels: Sequence[Sequence[int]], sieve: RowChecker, max_length: int, limit: int | None) -> None:
    """Leave out what has no token to learn, or none in its first `max_length` tokens."""
    needed: dict[int, int] = {}
    for row, own in enumerate(labels):
        first = next((place for place, label in enumerate(own) if place and label != IGNORED), None)
        if first is None:
            sieve.leave_out(row, "no token to learn", "remove them")
        elif first + 1 > max_length and row not in sieve.unfit:
            needed[row] = first + 1
    if not needed:
        return
    most, longest = max(needed.values()), max(len(own) for own in labels)
    if limit is None or most <= limit:
        remedy = f"set data.max_length to {most} or more (whole examples take up to {longest}), or remove them"
    elif max_length >= limit:
        remedy = f"the model ends at {limit} tokens, so shorten the text before the answers, or remove them"
    else:
        beyond = sum(count > limit for count in needed.values())
        remedy = (
            f"the model ends at {limit} tokens: set data.max_length to {limit}, and shorten or remove {beyond} rows"
        )
    ends = ", where the model ends" if max_length == limit else ""
    for row in needed:
        sieve.leave_out(row, f"nothing to learn in their first {max_length} tokens{ends}", remedy)
