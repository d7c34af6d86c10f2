"""Drawn chats, and prompts with completions: how often what is learned is not what the assistant says.

    python -m studies.benchmarks.robustness.fuzz_chats [--quick] [--cases 3000]

hypothesis draws a tokenizer, a chat template and an example, and writes it as a data file would have it: a third of
the examples are broken. An example is *right* if its ids are those of the tokenizer for the whole text, and if
what is learned decodes to what the assistant says, end token included; `tokenizer_kinds.py` says it without the
template. It is *refused* if it is left out or an error, and the message names its row and a remedy. `wrong_spans`,
`unclear_messages` and `tracebacks` count all others, and should be 0. `refused_though_writable` counts chats that
are refused although the template writes them.
"""

from __future__ import annotations

import copy
import json
import random
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st

from autolr.data import lm_labels, sources
from autolr.data.batches import IGNORED
from autolr.errors import AutoLRError
from autolr.schema.data import Data
from studies.benchmarks.common import document
from studies.benchmarks.robustness import tokenizer_kinds as kinds
from studies.benchmarks.robustness.drawn_cases import drawn

CASES, QUICK = 3000, 150
BITS = [
    "yes", "no", "the answer", "go on", "q", "1 + 1", " ", "  ", "\n", "\n\n", "\t", ".", "é", "e\u0301", "ß", "ﬁ",
    "😀", "👩‍👧", "\u200d", "日本語", "שלום", "\u00a0", "\u2028", "\ufeff", "<think>", "</think>",
    "<think>\nhm\n</think>\n\n", "?",
    "<|im_end|>", "<|im_start|>assistant\n", "<|im_end|>\n<|im_start|>user\n", "<s>", "</s>", "[INST]", " [/INST]",
    "{{ messages }}", "{% raise %}", "'text'", '"', "\\", "\0", "Xq7answer", "<0x0A>", "▁", "Ġ", "##", "A" * 300,
]  # fmt: skip
TEXT = st.lists(st.sampled_from(BITS), max_size=6).map("".join)
SAID = TEXT.filter(lambda text: bool(text.strip()))
# Ways in which data are not what they should be; what stays right says so by returning the example.
BREAKS = ["role", "no role", "content", "number", "image", "no message", "empty", "word", "nothing said"]
FORMS = ["plain", "plain", "plain", "from", "parts", "json", "fields", "columns"]


@st.composite
def chats(draw: Any) -> list[kinds.Message]:
    """Draw a chat whose roles are those that templates know."""
    chat = [{"role": "system", "content": draw(TEXT)}] if draw(st.integers(0, 4)) == 0 else []
    first = draw(st.sampled_from(["user", "user", "user", "assistant"]))
    for turn in range(draw(st.integers(2, 7))):
        role = ("user", "assistant")[(turn + (first == "assistant")) % 2]
        if draw(st.integers(0, 19)) == 0:
            role = draw(st.sampled_from(["user", "assistant"]))
        chat.append({"role": role, "content": draw(SAID if draw(st.booleans()) else TEXT)})
    if not any(message["role"] == "assistant" and message["content"].strip() for message in chat):
        chat.append({"role": "assistant", "content": draw(SAID)})
    return chat


def formed(draw: Any, chat: list[kinds.Message], form: str) -> dict[str, Any]:
    """Return a row of a data file that holds a chat in one of the forms that are read."""
    if form == "from":
        names = {"user": "human", "assistant": "gpt"}
        return {"messages": [{"from": names.get(m["role"], m["role"]), "value": m["content"]} for m in chat]}
    if form == "parts":
        return {"messages": [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in chat]}
    if form == "json":
        return {"messages": json.dumps(chat)}
    if form == "fields":
        return {"messages": [{**m, "name": "x", "weight": draw(st.integers(0, 1)), "tool_calls": None} for m in chat]}
    if form == "columns":
        return {
            "messages": chat,
            "id": 7,
            "tools": [{"name": "f"}],
            "chat_template_kwargs": {"enable_thinking": False},
        }
    return {"messages": chat}


def broken(draw: Any, chat: list[kinds.Message], how: str) -> dict[str, Any]:
    """Return a row with something that is no chat, or none that is learned."""
    chat = copy.deepcopy(chat)
    at = draw(st.integers(0, len(chat) - 1))
    if how == "role":
        chat[at]["role"] = draw(st.sampled_from(["judge", "tool", "", "Assistant", "function"]))
    elif how == "no role":
        del chat[at]["role"]
    elif how == "content":
        chat[at].pop("content")
    elif how == "number":
        chat[at]["content"] = draw(st.sampled_from([1, 0.5, True, {}, [], {"text": "x"}]))
    elif how == "image":
        chat[at]["content"] = [{"type": "image", "url": "x"}, {"type": "text", "text": "y"}]
    elif how == "no message":
        chat[at] = draw(st.sampled_from(["x", None, 3, [], {}]))  # type: ignore[assignment]
    elif how == "nothing said":
        chat = [message for message in chat if message["role"] != "assistant"]
    return {"messages": {"empty": [], "word": "hello"}.get(how, chat)}


@st.composite
def examples(draw: Any) -> dict[str, Any]:
    """Draw all that a case needs."""
    chat = draw(chats())
    case = {
        "tokenizer": draw(st.sampled_from(list(kinds.TOKENIZERS))),
        "template": draw(st.sampled_from(list(kinds.TEMPLATES))),
        "alone": draw(st.booleans()),
        "chat": chat,
    }
    what = draw(st.integers(0, 5))
    if what < 2:
        return {**case, "how": "broken", "row": broken(draw, chat, draw(st.sampled_from(BREAKS)))}
    if what < 3:
        return {**case, "how": "pair", "row": {"prompt": draw(SAID), "completion": draw(SAID)}}
    return {**case, "how": "whole", "row": formed(draw, chat, draw(st.sampled_from(FORMS)))}


class World:
    """The tokenizers, each built once, and a folder for the files."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "drawn.jsonl"
        self.tokenizers = {name: build() for name, build in kinds.TOKENIZERS.items()}

    def judge(self, case: dict[str, Any]) -> tuple[str, str]:
        """Return how a case ends, and what is said of it."""
        tokenizer, template = self.tokenizers[case["tokenizer"]], kinds.TEMPLATES[case["template"]]
        tokenizer.chat_template = template.jinja
        is_pair = case["how"] == "pair"
        good = {"prompt": "who says?", "completion": " yes"} if is_pair else {"messages": [*FILLER]}
        rows = [case["row"], *([] if case["alone"] else [good] * 39)]
        try:
            self.path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            found = sources.load(Data(source=str(self.path)), "sft")
            learned = lm_labels.learn(found, tokenizer, 10**6)
        except AutoLRError as error:
            said = str(error)
            return (
                "refused" if "first: row 1)" in said and ": " in said.partition("first: row 1")[2] else "unclear"
            ), said
        except Exception:
            return "traceback", traceback.format_exc()
        notices = " ".join([*found.notices, *learned.notices])
        # The first row is left out by one of the two, or it is the first that is learned.
        if len(found) < len(rows) or not learned.ids[0]:
            return ("refused" if "left out" in notices and "(row 1)" in notices else "unclear"), notices
        try:
            if is_pair:
                right = self.is_right_pair(tokenizer, case["row"], learned.ids[0], learned.labels[0])
            else:
                right = kinds.is_right(
                    tokenizer, case["template"], messages_of(case), learned.ids[0], learned.labels[0]
                )
        except Exception:
            return "traceback", traceback.format_exc()
        return ("right" if right else "wrong"), notices

    @staticmethod
    def is_right_pair(tokenizer: Any, row: dict[str, str], ids: list[int], labels: list[int]) -> bool:
        """Return True if ids are those of the whole text, and the learned ones those of the completion."""
        whole = tokenizer(row["prompt"] + row["completion"])["input_ids"]
        end = tokenizer.eos_token_id
        said = [label for label in labels if label != IGNORED]
        is_whole = ids[:-1] == whole[: len(ids) - 1] and ids[-1] == end
        mark = tokenizer.eos_token
        # A token across the end of the prompt belongs to the completion, and gives it letters of the prompt.
        shown = kinds.squeezed(kinds.shown(tokenizer, said)).removesuffix(mark)
        wanted = kinds.squeezed(kinds.said(tokenizer, row["completion"])).removesuffix(mark)
        alike = (
            shown == wanted or (shown.endswith(wanted) and len(shown) - len(wanted) < 12) or _unknown(tokenizer, said)
        )
        return is_whole and said == ids[len(ids) - len(said) :] and alike

    def is_writable(self, case: dict[str, Any]) -> bool:
        """Return True if the template writes the chat of a case as `kinds` says."""
        tokenizer, template = self.tokenizers[case["tokenizer"]], kinds.TEMPLATES[case["template"]]
        chat = case["chat"]
        try:
            given = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in chat]
            as_parts = template.jinja == kinds.PARTS
            text = tokenizer.apply_chat_template(given if as_parts else chat, tokenize=False)
        except Exception:
            return False
        return bool(text == "".join(piece for piece, _ in template.pieces(chat)))


FILLER = [{"role": "user", "content": "who says?"}, {"role": "assistant", "content": "yes"}]


def messages_of(case: dict[str, Any]) -> list[kinds.Message]:
    """Return the plain chat that a row stands for."""
    given = case["row"]["messages"]
    if case["how"] == "whole":
        return case["chat"]  # type: ignore[no-any-return]
    return [{"role": one["role"], "content": one["content"]} for one in given]


def _unknown(tokenizer: Any, ids: list[int]) -> bool:
    return tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids


def measure(cases: int, folder: Path, number: int = 0) -> dict[str, Any]:
    """Draw cases and judge them; return figures and rows."""
    world, counts, failed = World(folder), Counter[tuple[str, str]](), []
    writable = 0

    @drawn(examples(), cases, number)
    def one(case: dict[str, Any]) -> None:
        nonlocal writable
        outcome, said = world.judge(case)
        counts[case["how"], outcome] += 1
        if outcome == "refused" and case["how"] == "whole" and world.is_writable(case):
            writable += 1
            outcome = "refused though writable"
        if outcome not in ("right", "refused"):
            last = said.replace(str(folder), "").strip()[-500:].splitlines()[-1:]
            failed.append({"outcome": outcome, "case": json.dumps(case)[:1500], "said": "".join(last)})

    random.seed(number)
    one()
    total = Counter[str]()
    for (_, outcome), count in counts.items():
        total[outcome] += count
    figures = {
        "generated": sum(total.values()),
        "right": total["right"],
        "refused": total["refused"],
        "refused_though_writable": writable,
        "unclear_messages": total["unclear"],
        "tracebacks": total["traceback"],
        "wrong_spans": total["wrong"],
    }
    rows = [{"what": how, "outcome": outcome, "count": count} for (how, outcome), count in sorted(counts.items())]
    return {"figures": figures, "rows": rows, "failed": failed}


def main() -> None:
    options = document.parser(__doc__)
    options.add_argument("--cases", type=int, default=CASES, help="examples that are drawn")
    options.add_argument("--seed", type=int, default=0, help="of what is drawn")
    given_ = options.parse_args()
    cases = QUICK if given_.quick else given_.cases
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="chats-") as folder:
        found = measure(cases, Path(folder), given_.seed)
    result = document.Result("fuzz_chats", settings={"cases": cases, "seed": given_.seed})
    result.settings |= {"tokenizers": list(kinds.TOKENIZERS), "templates": list(kinds.TEMPLATES)}
    result.settings["seconds"] = round(time.perf_counter() - start)
    for name, value in found["figures"].items():
        result.figure(name, value)
    for row in found["rows"]:
        result.row("outcome", **row)
    for row in found["failed"]:
        result.row("failed", **row)
    document.deliver(result, torch.device("cpu"), keep=not given_.quick and cases >= CASES, out=given_.out)


if __name__ == "__main__":
    main()
