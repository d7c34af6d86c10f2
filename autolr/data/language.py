"""Texts that are learned: which tokens an example has, and which of them are learned.

An example is made of pieces, each tokenized by itself: a model that is asked later sees a prompt's own tokens, not
those that a tokenizer would merge across the prompt's end.
"""

from __future__ import annotations

from typing import Any

from autolr.data.batches import IGNORED
from autolr.data.sources import Examples
from autolr.errors import DataError

# A piece of text, and whether it is learned.
Piece = tuple[str, bool]


def tokenize(examples: Examples, tokenizer: Any, max_length: int) -> tuple[list[list[int]], list[list[int]]]:
    """Return token ids and labels of all examples.

    Prompts and completions are put together as they are: a space between them belongs to one of them. Chats go
    through the tokenizer's chat template, and all that the assistant says is learned. A completion and a whole text
    end with the tokenizer's end token, which is learned as well.

    Args:
        examples: of the task `sft` or `lm`.
        tokenizer: the model's; it needs an end token, and for chats a chat template.
        max_length: tokens kept of an example, from its beginning.

    Raises:
        DataError: there is no chat template, a chat does not fit it, or nothing is left to learn of an example.
    """
    chats = examples.chats
    if chats is not None:
        if not getattr(tokenizer, "chat_template", None):
            raise DataError(
                "the model's tokenizer has no chat template, which a column of messages needs; choose a model that "
                "was made for chats, or give data.prompt_column and data.completion_column instead"
            )
        pieces = [_of_chat(chat, tokenizer, row) for row, chat in enumerate(chats)]
    elif examples.pairs is not None:
        pieces = [
            [(prompt, False), (completion, True)]
            for prompt, completion in zip(examples.texts, examples.pairs, strict=True)
        ]
    else:
        pieces = [[(text, True)] for text in examples.texts]
    texts = [text for own in pieces for text, _ in own]
    tokens = iter(tokenizer(texts, add_special_tokens=False, truncation=False, padding=False)["input_ids"])
    first = [] if chats is not None else _first(tokenizer)
    last = [] if chats is not None else [int(tokenizer.eos_token_id)]
    ids, labels = [], []
    for own in pieces:
        parts = [(list(next(tokens)), learned) for _, learned in own]
        ids.append([*first, *(token for part, _ in parts for token in part), *last])
        said = [token if learned else IGNORED for part, learned in parts for token in part]
        labels.append([*[IGNORED] * len(first), *said, *last])
    _check(ids, labels, max_length)
    return [own[:max_length] for own in ids], [own[:max_length] for own in labels]


def _first(tokenizer: Any) -> list[int]:
    """Return what the tokenizer puts before a text: the begin token, or nothing."""
    ids = list(tokenizer("a")["input_ids"])
    return ids[:1] if ids[:1] == [tokenizer.bos_token_id] else []


def _of_chat(chat: list[dict[str, str]], tokenizer: Any, row: int) -> list[Piece]:
    """Cut a chat, as the template writes it, into what the assistant says and the rest.

    An answer ends with the tokenizer's end token where the template writes one; what follows is never generated.
    """

    def written(messages: list[dict[str, str]], ask: bool = False) -> str:
        try:
            return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask))
        except Exception as error:  # templates raise what they like on roles or an order they do not know
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise DataError(f"row {row + 1}: the model's chat template refuses the chat: {reason[:200]}") from None

    whole, pieces, at = written(chat), list[Piece](), 0
    for place, message in enumerate(chat):
        if message["role"] != "assistant":
            continue
        before, after = written(chat[:place], ask=True), written(chat[: place + 1])
        if not (whole.startswith(after) and after.startswith(before)):
            raise DataError(
                f"row {row + 1}: the model's chat template writes message {place + 1} otherwise once others follow, "
                "so its answer cannot be learned in place; give chats of one answer each"
            )
        end = after.rfind(tokenizer.eos_token or "\0", len(before))
        stop = len(after) if end < 0 else end + len(tokenizer.eos_token)
        pieces += [(whole[at : len(before)], False), (whole[len(before) : stop], True)]
        at = stop
    return pieces  # what follows the last answer teaches nothing


def _check(ids: list[list[int]], labels: list[list[int]], max_length: int) -> None:
    needed = []
    for row, own in enumerate(labels):
        first = next((place for place, label in enumerate(own) if place and label != IGNORED), None)
        if first is None:
            raise DataError(f"row {row + 1}: has no token to learn; remove it")
        needed.append(first + 1)
    lost = [row for row, count in enumerate(needed) if count > max_length]
    if lost:
        raise DataError(
            f"{len(lost)} of {len(ids)} examples (first: row {lost[0] + 1}) have nothing left to learn in their "
            f"first {max_length} tokens; set data.max_length to {max(needed)} or more (whole examples take up to "
            f"{max(len(own) for own in ids)}), or remove them"
        )
