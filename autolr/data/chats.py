"""Chats as data sets have them, made into messages that a chat template reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

# Names of speakers in ShareGPT's form (`from` and `value`), and the roles that templates know.
SPEAKERS = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "observation": "tool",
    "function_response": "tool",
}
# Roles that are no surprise; of these the assistant's is learned.
ROLES = ("system", "developer", "user", "assistant", "tool")
# Fields in which the assistant says something beside its content.
REASONING = ("reasoning_content", "thinking", "reasoning")
SPOKEN = ("tool_calls", *REASONING)
# Columns that hold the system prompt of a chat.
SYSTEM_NAMES = ("system", "system_prompt")
# Columns that are lists or mappings, and that a csv or parquet file may hold as JSON.
TOOLS, DOCUMENTS, KWARGS = "tools", "documents", "chat_template_kwargs"


@dataclass(frozen=True)
class Chat:
    """A chat.

    Attributes:
        messages: each with `role`, mostly with `content`, and with all other fields that the data has.
        options: what a template may read beside the messages: other columns, and what `chat_template_kwargs` names.
        start: the first message that is learned if the assistant says it; those before it are a prompt.
    """

    messages: list[dict[str, Any]]
    options: dict[str, Any] = field(default_factory=dict)
    start: int = 0

    def learned(self) -> list[int]:
        """Return the places of the messages that are learned."""
        return [at for at, message in enumerate(self.messages) if at >= self.start and message["role"] == "assistant"]

    def row(self) -> dict[str, Any]:
        """Return the chat as TRL reads it: `messages`, and where the data has them `tools` and template arguments."""
        tools = {TOOLS: self.options[TOOLS]} if self.options.get(TOOLS) else {}
        given = self.options.get(KWARGS)
        return {"messages": self.messages, **tools, **({KWARGS: given} if given else {})}

    def text(self) -> str:
        """Return the chat in plain words, a line for each message."""
        return "\n".join(_line(message) for message in self.messages)

    def identity(self) -> str:
        """Return all that a template may read of the chat, and what is learned of it, as JSON."""
        return json.dumps([self.messages, self.options, self.start], sort_keys=True, default=str)


def is_chat(value: Any) -> bool:
    """Return True if a cell holds messages rather than a text."""
    return isinstance(value, list | tuple | np.ndarray)


def read(value: Any, sparse: bool = False) -> Chat:
    """Read the messages of a cell.

    Args:
        value: a list of messages, or its JSON. A message has `role` and `content`, or `from` and `value`.
        sparse: whether the file's format fills the fields that a mapping does not have with None.

    Raises:
        ValueError: it is no chat that can be learned; the message says what it is instead.
    """
    return _checked(Chat(messages(value, sparse)))


def continued(prompt: Any, completion: Any, sparse: bool = False) -> Chat:
    """Read a prompt and a completion that are messages; the completion alone is learned.

    Raises:
        ValueError: see `read`.
    """
    asked = messages(prompt, sparse) if is_chat(prompt) else [{"role": "user", "content": _text(prompt)}]
    said = (
        messages(completion, sparse) if is_chat(completion) else [{"role": "assistant", "content": _text(completion)}]
    )
    return _checked(Chat([*asked, *said], start=len(asked)))


def messages(value: Any, sparse: bool = False) -> list[dict[str, Any]]:
    """Return messages as plain mappings.

    Raises:
        ValueError: they are none.
    """
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = parsed(value)
    if not is_chat(value) or not len(value):
        raise ValueError("no list of messages with role and content")
    return [_message(one) for one in plain(value, sparse)]


def with_columns(chat: Chat, columns: Mapping[str, Any], sparse: bool = False) -> tuple[Chat, list[str]]:
    """Add what the other columns of a chat's row hold.

    Args:
        chat: to add to.
        columns: by their names; a system prompt becomes the first message, unless there is one.
        sparse: see `read`.

    Returns:
        The chat, and what is odd about it.

    Raises:
        ValueError: tools, documents or template arguments are not what a template reads.
    """
    options: dict[str, Any] = {}
    roles = dict.fromkeys(message["role"] for message in chat.messages)
    odd = [f"messages of the role {role!r}, which are written and not learned" for role in roles if role not in ROLES]
    for name, value in columns.items():
        value = plain(value, sparse)
        if value is None or value == "" or value == [] or (isinstance(value, float) and np.isnan(value)):
            continue
        if name in SYSTEM_NAMES and isinstance(value, str):
            if chat.messages[0]["role"] == "system":
                odd.append(f"a system message in the chat and another in column {name!r}, which is not used")
                continue
            chat = replace(chat, messages=[{"role": "system", "content": value}, *chat.messages])
            chat = replace(chat, start=chat.start + 1 if chat.start else 0)
        elif name in (TOOLS, DOCUMENTS, KWARGS):
            value = parsed(value) if isinstance(value, str) else value
            kind = dict if name == KWARGS else list
            if not isinstance(value, kind) or (kind is list and not all(isinstance(one, dict) for one in value)):
                raise ValueError(f"{name} that are no {'mapping' if kind is dict else 'list of mappings'}")
            options[name] = value
        else:
            options[name] = value
    return replace(chat, options={name: one for name, one in options.items() if one not in ({}, [])}), odd


def plain(value: Any, sparse: bool = False) -> Any:
    """Return a cell of lists, arrays and mappings as lists and mappings.

    Arrow gives all mappings of a column the same fields, and fills with None what one of them does not have. In
    arrays, which Arrow makes, and in all of a `sparse` format such fields are dropped.
    """
    if isinstance(value, np.ndarray):
        return [plain(one, True) for one in value]
    if isinstance(value, list | tuple):
        return [plain(one, sparse) for one in value]
    if isinstance(value, Mapping):
        return {str(name): plain(one, sparse) for name, one in value.items() if not (sparse and one is None)}
    return value.item() if isinstance(value, np.generic) else value


def parsed(text: str) -> Any:
    """Return what a cell's JSON says; the text itself where it is none."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def each_text(content: Any) -> list[str]:
    """Return the texts of a message's content."""
    return [content] if isinstance(content, str) else [part["text"] for part in content or ()]


def _message(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError("no list of messages with role and content")
    if "role" not in value and "from" in value:
        rest = {name: one for name, one in value.items() if name not in ("from", "value")}
        speaker = value["from"]
        value = {"role": SPEAKERS.get(str(speaker), speaker), "content": value.get("value"), **rest}
    if not isinstance(value.get("role"), str):
        raise ValueError("no list of messages with role and content")
    message = {name: one for name, one in value.items() if one is not None}
    if "content" in message:
        return {**message, "content": _content(message["content"])}
    if not any(message.get(name) for name in SPOKEN):
        raise ValueError("a message without content")
    return message


def _content(value: Any) -> str | list[dict[str, Any]]:
    """Return a text, or a list of parts that are texts."""
    if isinstance(value, list) and value:
        parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in value]
        return [{"type": "text", "text": _part(part)} for part in parts]
    return _text(value)


def _part(part: Any) -> str:
    if not isinstance(part, Mapping) or part.get("type", "text") != "text" or not isinstance(part.get("text"), str):
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        raise ValueError(f"a message whose content is no text ({kind})")
    return str(part["text"])


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"a message whose content is no text ({type(value).__name__})")
    return value


def _checked(chat: Chat) -> Chat:
    for at in chat.learned():
        message = chat.messages[at]
        if any(message.get(name) for name in SPOKEN) or any(
            text.strip() for text in each_text(message.get("content"))
        ):
            return chat
    raise ValueError("no message of the role 'assistant' to learn")


def _line(message: Mapping[str, Any]) -> str:
    content = "".join(each_text(message.get("content")))
    rest = {name: one for name, one in message.items() if name not in ("role", "content")}
    return f"{message['role']}: {content}" + (
        f" {json.dumps(rest, sort_keys=True, ensure_ascii=False, default=str)}" if rest else ""
    )
