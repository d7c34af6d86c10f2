"""A tokenizer's chat template: how it wants its messages, what it reads of them, and what it writes."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any, cast

from autolr.data.chats import DOCUMENTS, KWARGS, TOOLS, Chat, each_text
from autolr.data.spans import Span
from autolr.errors import DataError

Message = dict[str, Any]

_MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")
# Arguments of a template that no data sets.
RESERVED = frozenset(
    {
        "messages",
        "conversations",
        "chat_template",
        "add_generation_prompt",
        "continue_final_message",
        "return_assistant_tokens_mask",
    }
)
_PROBE = "Xq7probeZ"
ASKED = {"role": "user", "content": "Xq7questionZ"}


class UnfitChatError(Exception):
    """A chat that cannot be learned.

    Attributes:
        reason: what it is, after "rows have".
        remedy: what to do if all chats are.
    """

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy


class Template:
    """A tokenizer's chat template.

    Args:
        tokenizer: the model's; it has a chat template.
        text: the template, which is one of several if the tokenizer has one for tools.
    """

    def __init__(self, tokenizer: Any, text: str) -> None:
        self.tokenizer = tokenizer
        self.text = text
        self.has_markers = bool(_MARKED.search(text))

    @cached_property
    def reads(self) -> frozenset[str]:
        """The names beside the messages that the template reads and data may set."""
        from jinja2 import meta
        from transformers.utils.chat_template_utils import _compile_jinja_template

        environment = _compile_jinja_template(self.text).environment
        named = meta.find_undeclared_variables(environment.parse(self.text))
        return frozenset(named - set(environment.globals) - RESERVED - set(self.tokenizer.special_tokens_map))

    @cached_property
    def tail(self) -> str | None:
        """What the template writes behind an answer that ends a chat; None if that cannot be told."""
        try:
            whole = self.render([ASKED, self.answer(0)], {})
        except UnfitChatError:
            return None
        return whole.rpartition(mark(0))[2] if mark(0) in whole else None

    @cached_property
    def ends(self) -> tuple[str, ...]:
        """The tokenizer's end token, and all others that stand for themselves in a text."""
        added = getattr(self.tokenizer, "added_tokens_decoder", {}).values()
        return (self.tokenizer.eos_token, *(str(token) for token in added if str(token).strip()))

    def options(self, chat: Chat) -> dict[str, Any]:
        """Return what the template reads of a chat's options."""
        given = {**chat.options, **chat.options.get(KWARGS, {})}
        return {name: value for name, value in given.items() if name in self.reads}

    def unread(self, chat: Chat) -> list[str]:
        """Return the columns and the template arguments of a chat that the template does not read."""
        given = [*(name for name in chat.options if name != KWARGS), *chat.options.get(KWARGS, {})]
        return [name for name in given if name not in self.reads]

    @cached_property
    def end_of_tail(self) -> int:
        """How much of the tail is an answer's end."""
        return self.end_of(self.tail or "")

    def end_of(self, tail: str) -> int:
        """Return where in a tail its last end token ends; where its words end, if it has none."""
        at = tail.rfind(self.tokenizer.eos_token)
        if at >= 0:
            return at + len(self.tokenizer.eos_token)
        last = max((tail.rfind(token) + len(token) for token in self.ends if token in tail), default=0)
        return last or len(tail.rstrip()) or len(tail)

    def ignores(self, chat: Chat, name: str) -> bool:
        """Return True if the template writes a chat alike without a field of its messages."""
        bare = Chat([{key: one for key, one in m.items() if key != name} for m in chat.messages], chat.options)
        try:
            return self.render(self.fitted(chat), self.options(chat)) == self.render(
                self.fitted(bare), self.options(chat)
            )
        except UnfitChatError:
            return False

    def fitted(self, chat: Chat) -> list[Message]:
        """Return the messages with contents and arguments of tools in the form that the template reads."""
        return [self._with_arguments(self._with_content(message)) for message in chat.messages]

    def answer(self, at: int) -> Message:
        """Return an answer whose text is the mark of a message's place."""
        return self._with_content({"role": "assistant", "content": mark(at)})

    # How the template wants its messages.

    @cached_property
    def _takes(self) -> frozenset[str]:
        """Whether the template writes a content that is a text (`text`), and one that is a list of parts (`list`)."""
        kinds = {"text": _PROBE, "list": [{"type": "text", "text": _PROBE}]}
        found = []
        for kind, content in kinds.items():
            written = self._try([{"role": "user", "content": content}])
            if _PROBE in written and "'text'" not in written and '"text"' not in written:
                found.append(kind)
        return frozenset(found)

    @cached_property
    def _arguments(self) -> frozenset[str]:
        """Whether the template writes a call's arguments that are JSON (`text`), and a mapping (`mapping`)."""
        kinds = {"text": json.dumps({_PROBE: 1}), "mapping": {_PROBE: 1}}
        found = {}
        for kind, arguments in kinds.items():
            call = {"type": "function", "id": "a1b2c3d4e", "function": {"name": "call", "arguments": arguments}}
            written = self._try([ASKED, {"role": "assistant", "content": "", "tool_calls": [call]}])
            written = written or self._try([ASKED, {"role": "assistant", "tool_calls": [call]}])
            if _PROBE in written and f'\\"{_PROBE}' not in written and f"'{_PROBE}'" not in written:
                found[kind] = written
        if len(found) == 2 and found["text"] != found["mapping"]:
            del found["text"]  # JSON within a form of the template's own
        return frozenset(found)

    def _with_content(self, message: Message) -> Message:
        content = message.get("content")
        if isinstance(content, list) and "list" not in self._takes:
            return {**message, "content": "".join(each_text(content))}
        if isinstance(content, str) and self._takes == {"list"}:
            return {**message, "content": [{"type": "text", "text": content}]}
        return message

    def _with_arguments(self, message: Message) -> Message:
        calls = message.get("tool_calls")
        if not isinstance(calls, list) or len(self._arguments) != 1:
            return message
        return {**message, "tool_calls": [_with_arguments(call, "text" in self._arguments) for call in calls]}

    # Writing.

    def _try(self, messages: list[Message]) -> str:
        try:
            return self.render(messages, {})
        except UnfitChatError:
            return ""

    def render(self, messages: Sequence[Message], options: dict[str, Any], ask: bool = False) -> str:
        """Return messages as the template writes them.

        Args:
            messages: as `fitted` returns them.
            options: what the template reads beside them.
            ask: whether it asks for an answer at the end.

        Raises:
            UnfitChatError: the template refuses them.
        """
        return self._rendered(messages, options, ask, markers=False)[0]

    def marked(self, messages: Sequence[Message], options: dict[str, Any]) -> tuple[str, list[Span]]:
        """Return messages as the template writes them, and where its own marks say that a model generates."""
        return self._rendered(messages, options, ask=False, markers=True)

    def _rendered(
        self, messages: Sequence[Message], options: dict[str, Any], ask: bool, markers: bool
    ) -> tuple[str, list[Span]]:
        """Call transformers' own renderer, as `apply_chat_template` does."""
        from transformers.utils.chat_template_utils import render_jinja_template

        rest = {name: value for name, value in options.items() if name not in (TOOLS, DOCUMENTS)}
        try:
            texts, spans = cast(Any, render_jinja_template)(
                conversations=[list(messages)],
                tools=options.get(TOOLS),
                documents=options.get(DOCUMENTS),
                chat_template=self.text,
                return_assistant_tokens_mask=markers,
                add_generation_prompt=ask,
                **{**self.tokenizer.special_tokens_map, **rest},
            )
        except Exception as error:  # templates raise what they like on roles or an order they do not know
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UnfitChatError(
                f"a chat that the model's chat template refuses: {reason[:200]}",
                "write the chats as the model's template wants them, or choose another model",
            ) from None
        return str(texts[0]), list(spans[0]) if markers else []


def template_of(tokenizer: Any, tools: Any, known: dict[str, Template]) -> Template:
    """Return the template that a tokenizer uses for a chat; one of `known` if it is there, else it is added.

    Raises:
        DataError: the tokenizer has none, or it is no template.
    """
    try:
        text = tokenizer.get_chat_template(None, tools)
    except (ValueError, AttributeError):
        raise DataError(
            "the model's tokenizer has no chat template, which a column of messages needs; choose a model that "
            "was made for chats, or give data.prompt_column and data.completion_column instead"
        ) from None
    if text not in known:
        known[text] = Template(tokenizer, text)
        try:
            known[text].reads  # noqa: B018 (it is read here for the first time)
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise DataError(
                f"the model's chat template cannot be read: {reason[:200]}. Mend chat_template.jinja in the model's "
                "folder, or choose another model"
            ) from None
    return known[text]


def mark(at: int) -> str:
    """Return what stands for the answer of a message, by its place in the chat."""
    return f"Xq7answer{at}Z"


def _with_arguments(call: Any, as_text: bool) -> Any:
    """Return a call of a tool with its arguments as JSON, or as a mapping."""
    if not isinstance(call, dict):
        return call
    if isinstance(call.get("function"), dict):
        return {**call, "function": _with_arguments(call["function"], as_text)}
    given = call.get("arguments")
    if isinstance(given, dict) and as_text:
        return {**call, "arguments": json.dumps(given, ensure_ascii=False)}
    if isinstance(given, str) and not as_text:
        try:
            return {**call, "arguments": json.loads(given)}
        except ValueError:
            return call
    return call
