"""Where the assistant speaks in a chat, as the model's own chat template writes it.

The template writes the whole chat once. Where it marks itself what a model generates (`{% generation %}`), that is
learned. Else it writes the chat a second time, with a mark in place of each answer: what stands between the marks is
the same in both, and answers are what is left. An answer begins where the prompt ends that the template writes when
a model is asked, and ends with the template's end token.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from autolr.data.chats import DOCUMENTS, REASONING, TOOLS, Chat, each_text
from autolr.data.spans import Span, between, common
from autolr.data.templates import ASKED, Message, Template, UnfitChatError, mark

_LEFT_OUT = "that the model's chat template leaves out or changes"
_REASONING = "reasoning that the model's chat template leaves out"


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


class AnswerFinder:
    """Writes chats with one template, and finds the answers in them.

    Args:
        template: of the model's tokenizer.
    """

    def __init__(self, template: Template) -> None:
        self.template = template
        self.tokenizer = template.tokenizer
        self.notes: dict[str, None] = {}  # what is to be said of the template, in order
        self._prompts: dict[str, list[tuple[str, int]]] = {}

    def write(self, chat: Chat) -> Written:
        """Write a chat and find what the assistant says in it.

        Raises:
            UnfitChatError: the template refuses the chat, or its answers cannot be found.
        """
        messages, options = self.template.fitted(chat), self.template.options(chat)
        if self.template.has_markers:
            text, spans = self.template.marked(messages, options)
            if chat.start:
                first = common(self.template.render(messages[: chat.start], options, ask=True), text)
                spans = [(max(start, first), end) for start, end in spans if end > first]
            odd: list[str] = []
        else:
            text = self.template.render(messages, options)
            spans, odd = self._found(text, messages, chat.learned(), options)
        if not any(end > start for start, end in spans):
            raise UnfitChatError(
                "no answer in what the model's chat template writes", "choose another model or its chat template"
            )
        return Written(text, spans, [*odd, *self._left_out(text, spans, messages, chat)])

    def told(self) -> list[str]:
        """Return what is to be said of the template, after it has written chats."""
        told = list(self.notes)
        if self.template.has_markers:
            return told
        if any(known[0][0] == "" for known in self._prompts.values()):
            told.append(
                "the model's chat template writes nothing when it asks for an answer (add_generation_prompt): what "
                "it writes before an answer is not learned, so write it yourself when you ask the model"
            )
        eos = self.tokenizer.eos_token
        if self.template.tail is None or eos in self.template.tail:
            return told
        end = self.template.tail[: self.template.end_of_tail].strip()
        if end in self.template.ends:
            told.append(
                f"the model's chat template ends answers with {end!r}, and the tokenizer's end token is {eos!r}: let "
                "the model stop at both when it generates"
            )
        elif not any(token in self.template.tail for token in self.template.ends if token):
            told.append(
                "the model's chat template writes no end token behind an answer: the model does not learn to stop"
            )
        return told

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
            marked[at] = self.template.answer(at)
        skeleton = self.template.render(marked, options)
        counts = {at: skeleton.count(mark(at)) for at in learned}
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
            end = skeleton.index(mark(at)) + len(mark(at))
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
        here = skeleton.index(mark(at))
        known = self._known(options)
        for ending, behind in known:
            if skeleton.endswith(ending, 0, here):
                return here - behind
        if not at:
            ending = known[0][0]
            place = skeleton.rfind(ending, 0, here)
            return here if place < 0 else place + len(ending)
        asked = self.template.render(marked[:at], options, ask=True)
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
                bare, asked = (self.template.render([ASKED], options, ask=ask) for ask in (False, True))
            except UnfitChatError:
                bare, asked = "", "\0"
            self._prompts[key] = [(asked.removeprefix(bare), 0)]
        return self._prompts[key]

    def _stop(self, behind: str, is_last: bool) -> int:
        """Return how much of what stands behind an answer is its end."""
        if self.template.tail and behind.startswith(self.template.tail):
            return self.template.end_of_tail
        if is_last:
            return self.template.end_of(behind)
        tokens = self.template.ends if self.template.tail is None else self.template.ends[:1]
        found = re.match(rf"\s*(?:{'|'.join(re.escape(token) for token in tokens if token)})", behind)
        return found.end() if found else 0

    def _by_prefixes(
        self, text: str, messages: list[Message], learned: list[int], options: dict[str, Any]
    ) -> tuple[list[Span], list[str]]:
        """Write the chat up to each answer, with and without it.

        Raises:
            LookupError: it does not begin as these do.
        """
        spans = []
        for at in learned:
            after = self.template.render(messages[: at + 1], options)
            before = self.template.render(messages[:at], options, ask=True) if at else "\0"
            if not (text.startswith(after) and after.startswith(before)):
                raise LookupError(
                    f"message {at + 1} is written otherwise by the model's chat template once others follow, so that "
                    "its answer is not found"
                )
            # Behind what a tool returns, some ask with nothing, and write the usual beginning all the same.
            usual = self._known(options)[0][0]
            start = len(before) + (len(usual) if after.startswith(usual, len(before)) else 0)
            tail = self.template.tail if self.template.tail and after.endswith(self.template.tail) else None
            if tail is not None:
                end = len(after) - len(tail) + self.template.end_of_tail
            else:
                found = after.rfind(self.tokenizer.eos_token or "\0", start)
                end = len(after) if found < 0 else found + len(self.tokenizer.eos_token)
            spans.append((start, end))
        return spans, []

    @staticmethod
    def _lacks(skeleton: str, text: str, messages: list[Message], learned: list[int]) -> bool:
        """Return True if the marked chat lacks what a tool has returned."""
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
