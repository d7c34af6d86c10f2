"""Where the assistant speaks in a chat, as the model's own chat template writes it.

The template writes the whole chat once. Where it marks itself what a model generates (`{% generation %}`), that is
learned. Else it writes the chat a second time, with a mark in place of each answer: what stands between the marks is
the same in both, and answers are what is left. An answer begins where the prompt ends that the template writes when
a model is asked, and ends with the template's end token.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

from autolr.data.chats import DOCUMENTS, KWARGS, REASONING, TOOLS, Chat, each_text
from autolr.data.spans import Span, between, common
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
_LEFT_OUT = "that the model's chat template leaves out or changes"
_REASONING = "reasoning that the model's chat template leaves out"
_PROBE = "Xq7probeZ"
_ASKED = {"role": "user", "content": "Xq7questionZ"}


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


@dataclass(frozen=True)
class Written:
    """A chat as the template writes it.

    Attributes:
        text: all of it.
        spans: where in `text` the assistant speaks, each from its first character to behind its end token.
        odd: what is to be said of the chat, after "rows have".
    """

    text: str
    spans: list[Span]
    odd: list[str] = field(default_factory=list)


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
        self.notes: dict[str, None] = {}  # what is to be said of the template, in order
        self._prompts: dict[str, list[tuple[str, int]]] = {}

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
            whole = self._render([_ASKED, self._answer(0)], {})
        except UnfitChatError:
            return None
        return whole.rpartition(_mark(0))[2] if _mark(0) in whole else None

    @cached_property
    def ends(self) -> tuple[str, ...]:
        """The tokenizer's end token, and all others that stand for themselves in a text."""
        added = getattr(self.tokenizer, "added_tokens_decoder", {}).values()
        return (self.tokenizer.eos_token, *(str(token) for token in added if str(token).strip()))

    def write(self, chat: Chat) -> Written:
        """Write a chat and find what the assistant says in it.

        Raises:
            UnfitChatError: the template refuses the chat, or its answers cannot be found.
        """
        messages, options = self.fitted(chat), self.options(chat)
        if self.has_markers:
            text, spans = self._marked(messages, options)
            if chat.start:
                first = common(self._render(messages[: chat.start], options, ask=True), text)
                spans = [(max(start, first), end) for start, end in spans if end > first]
            odd: list[str] = []
        else:
            text = self._render(messages, options)
            spans, odd = self._found(text, messages, chat.learned(), options)
        if not any(end > start for start, end in spans):
            raise UnfitChatError(
                "no answer in what the model's chat template writes", "choose another model or its chat template"
            )
        return Written(text, spans, [*odd, *self._left_out(text, spans, messages, chat)])

    def options(self, chat: Chat) -> dict[str, Any]:
        """Return what the template reads of a chat's options."""
        given = {**chat.options, **chat.options.get(KWARGS, {})}
        return {name: value for name, value in given.items() if name in self.reads}

    def unread(self, chat: Chat) -> list[str]:
        """Return the columns and the template arguments of a chat that the template does not read."""
        given = [*(name for name in chat.options if name != KWARGS), *chat.options.get(KWARGS, {})]
        return [name for name in given if name not in self.reads]

    def told(self) -> list[str]:
        """Return what is to be said of the template, after it has written chats."""
        told = list(self.notes)
        if self.has_markers:
            return told
        if any(known[0][0] == "" for known in self._prompts.values()):
            told.append(
                "the model's chat template writes nothing when it asks for an answer (add_generation_prompt): what "
                "it writes before an answer is not learned, so write it yourself when you ask the model"
            )
        eos = self.tokenizer.eos_token
        if self.tail is None or eos in self.tail:
            return told
        end = self.tail[: self._end_of_tail].strip()
        if end in self.ends:
            told.append(
                f"the model's chat template ends answers with {end!r}, and the tokenizer's end token is {eos!r}: let "
                "the model stop at both when it generates"
            )
        elif not any(token in self.tail for token in self.ends if token):
            told.append(
                "the model's chat template writes no end token behind an answer: the model does not learn to stop"
            )
        return told

    def ignores(self, chat: Chat, name: str) -> bool:
        """Tell whether the template writes a chat alike without a field of its messages."""
        bare = Chat([{key: one for key, one in m.items() if key != name} for m in chat.messages], chat.options)
        try:
            return self._render(self.fitted(chat), self.options(chat)) == self._render(
                self.fitted(bare), self.options(chat)
            )
        except UnfitChatError:
            return False

    def fitted(self, chat: Chat) -> list[Message]:
        """Return the messages with contents and arguments of tools in the form that the template reads."""
        return [self._with_arguments(self._with_content(message)) for message in chat.messages]

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
            written = self._try([_ASKED, {"role": "assistant", "content": "", "tool_calls": [call]}])
            written = written or self._try([_ASKED, {"role": "assistant", "tool_calls": [call]}])
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
            return self._render(messages, {})
        except UnfitChatError:
            return ""

    def _render(self, messages: Sequence[Message], options: dict[str, Any], ask: bool = False) -> str:
        return self._rendered(messages, options, ask, markers=False)[0]

    def _marked(self, messages: Sequence[Message], options: dict[str, Any]) -> tuple[str, list[Span]]:
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

    # Finding the answers.

    def _found(
        self, text: str, messages: list[Message], learned: list[int], options: dict[str, Any]
    ) -> tuple[list[Span], list[str]]:
        """Return where the answers are in `text`, and what is odd about them."""
        ways = [self._by_marks, self._by_prefixes]
        if any(message.get("tool_calls") for message in messages):
            ways.reverse()  # what a tool returns may be written only behind its call, for which no mark can be put
        reason = ""
        for way in ways:
            try:
                return way(text, messages, learned, options)
            except (UnfitChatError, LookupError) as error:
                reason = f"a chat whose {error}" if way == self._by_prefixes else reason
        raise UnfitChatError(reason, "give chats of one answer each")

    def _by_marks(
        self, text: str, messages: list[Message], learned: list[int], options: dict[str, Any]
    ) -> tuple[list[Span], list[str]]:
        """Compare the chat with one that has marks for answers.

        Raises:
            LookupError: they cannot be compared.
        """
        marked = list(messages)
        for at in learned:
            marked[at] = self._answer(at)
        skeleton = self._render(marked, options)
        counts = {at: skeleton.count(_mark(at)) for at in learned}
        written = [at for at in learned if counts[at]]
        if not written:
            return [], []
        if max(counts.values()) > 1 or self._lacks(skeleton, text, messages, learned):
            raise LookupError("the marked chat is not written like the chat itself")
        begins = [self._prompt_end(skeleton, marked, at, options) for at in written]
        # What stands before each answer, and behind the last one.
        fixed, end = [], 0
        for at, begin in zip(written, begins, strict=True):
            fixed.append(skeleton[end:begin])
            end = skeleton.index(_mark(at)) + len(_mark(at))
        fixed.append(skeleton[end:])
        said = ["".join(each_text(messages[at].get("content"))) for at in written]
        spans = between(text, fixed, said)
        is_last = bool(written) and written[-1] == len(messages) - 1
        stops = [self._stop(part, is_last and place == len(spans) - 1) for place, part in enumerate(fixed[1:])]
        odd = ["an answer that the model's chat template does not write"] if len(written) < len(learned) else []
        return [(start, end + stop) for (start, end), stop in zip(spans, stops, strict=True)], odd

    def _prompt_end(self, skeleton: str, marked: list[Message], at: int, options: dict[str, Any]) -> int:
        """Return where in the marked chat the prompt of an answer ends.

        That is where the chat and the prompt part that the template writes when the model is asked for the answer.
        """
        here = skeleton.index(_mark(at))
        known = self._known(options)
        for ending, behind in known:
            if skeleton.endswith(ending, 0, here):
                return here - behind
        if not at:
            ending = known[0][0]
            place = skeleton.rfind(ending, 0, here)
            return here if place < 0 else place + len(ending)
        asked = self._render(marked[:at], options, ask=True)
        same, ending = common(asked, skeleton), known[0][0]
        if same == len(asked) <= here:
            if asked.endswith(ending):  # so it is found without asking next time
                known.append((skeleton[same - len(ending) : here], here - same))
            return same
        lost = asked[min(same, here) :]
        self.notes[
            f"the model's chat template asks for an answer with {lost!r}, which it does not write before the answers "
            "of a chat; they are learned from where the two part"
        ] = None
        if same >= here and len(lost) < len(ending) and ending.endswith(lost):
            known.append((ending.removesuffix(lost), 0))
        return min(same, here)

    def _known(self, options: dict[str, Any]) -> list[tuple[str, int]]:
        """Return what is known to stand before an answer: endings, and how much of each belongs to the answer."""
        key = json.dumps(
            {name: value for name, value in options.items() if name not in (TOOLS, DOCUMENTS)},
            sort_keys=True,
            default=str,
        )
        if key not in self._prompts:
            try:
                bare, asked = (self._render([_ASKED], options, ask=ask) for ask in (False, True))
            except UnfitChatError:
                bare, asked = "", "\0"
            self._prompts[key] = [(asked.removeprefix(bare), 0)]
        return self._prompts[key]

    def _stop(self, behind: str, is_last: bool) -> int:
        """Return how much of what stands behind an answer is its end."""
        if self.tail and behind.startswith(self.tail):
            return self._end_of_tail
        if is_last:
            return self._end_of(behind)
        tokens = self.ends if self.tail is None else self.ends[:1]
        found = re.match(rf"\s*(?:{'|'.join(re.escape(token) for token in tokens if token)})", behind)
        return found.end() if found else 0

    @cached_property
    def _end_of_tail(self) -> int:
        """How much of the tail is an answer's end."""
        return self._end_of(self.tail or "")

    def _end_of(self, tail: str) -> int:
        """Return where in a tail its last end token ends; where its words end, if it has none."""
        at = tail.rfind(self.tokenizer.eos_token)
        if at >= 0:
            return at + len(self.tokenizer.eos_token)
        last = max((tail.rfind(token) + len(token) for token in self.ends if token in tail), default=0)
        return last or len(tail.rstrip()) or len(tail)

    def _by_prefixes(
        self, text: str, messages: list[Message], learned: list[int], options: dict[str, Any]
    ) -> tuple[list[Span], list[str]]:
        """Write the chat up to each answer, with and without it.

        Raises:
            LookupError: it does not begin as these do.
        """
        spans = []
        for at in learned:
            after = self._render(messages[: at + 1], options)
            before = self._render(messages[:at], options, ask=True) if at else "\0"
            if not (text.startswith(after) and after.startswith(before)):
                raise LookupError(
                    f"message {at + 1} is written otherwise by the model's chat template once others follow, so that "
                    "its answer is not found"
                )
            # Behind what a tool returns, some ask with nothing, and write the usual beginning all the same.
            usual = self._known(options)[0][0]
            start = len(before) + (len(usual) if after.startswith(usual, len(before)) else 0)
            tail = self.tail if self.tail and after.endswith(self.tail) else None
            if tail is not None:
                end = len(after) - len(tail) + self._end_of_tail
            else:
                found = after.rfind(self.tokenizer.eos_token or "\0", start)
                end = len(after) if found < 0 else found + len(self.tokenizer.eos_token)
            spans.append((start, end))
        return spans, []

    @staticmethod
    def _lacks(skeleton: str, text: str, messages: list[Message], learned: list[int]) -> bool:
        """Tell whether the marked chat lacks what a tool has returned."""
        if not any(message.get("tool_calls") for message in messages):
            return False
        said = json.dumps([messages[at] for at in learned], ensure_ascii=False, default=str)
        others = [
            part.strip()
            for at, message in enumerate(messages)
            if at not in learned
            for part in each_text(message.get("content"))
        ]
        return any(part and skeleton.count(part) + said.count(part) < text.count(part) for part in others)

    def _answer(self, at: int) -> Message:
        return self._with_content({"role": "assistant", "content": _mark(at)})

    # What is not learned.

    def _left_out(self, text: str, spans: list[Span], messages: list[Message], chat: Chat) -> list[str]:
        """Return which texts of messages the template does not write as they are."""
        odd = []
        learned, said = set(chat.learned()), "\0".join(text[start:end] for start, end in spans)
        for at, message in enumerate(messages):
            place = said if at in learned else text
            for part in each_text(message.get("content")):
                if part.strip() not in place:
                    thinks = at in learned and part.rpartition("</think>")[2].strip() in place
                    odd.append(_REASONING if thinks else f"text of the role {message['role']!r} {_LEFT_OUT}")
                if at in learned and self.tokenizer.eos_token in part:
                    odd.append(f"an answer that contains the end token {self.tokenizer.eos_token!r} itself")
            thought = next((message[name] for name in REASONING if isinstance(message.get(name), str)), "")
            if thought.strip() not in text:
                odd.append(_REASONING)
        return list(dict.fromkeys(odd))


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


def _mark(at: int) -> str:
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
