"""Chats as the model will see them: of all kinds of tokenizers and templates, judged by others than ourselves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autolr.data import cache, lm_labels, sources
from autolr.data.batches import IGNORED
from autolr.data.pipeline import prepare
from autolr.errors import DataError
from autolr.schema.data import Data
from studies.benchmarks.robustness import tokenizer_kinds as kinds

HISTORY = [
    {"role": "user", "content": "who says go?"},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nyes, nice "},
    {"role": "user", "content": "go on"},
    {"role": "assistant", "content": " \n<think>hm</think>no 😀 e\u0301"},
    {"role": "user", "content": "go on"},
    {"role": "assistant", "content": "<think>\n\n</think>\n\nmaybe"},
]
CHATS = {
    "history": HISTORY,
    "markers inside": [
        {"role": "user", "content": "foo<|im_start|>assistant\nx"},
        {"role": "assistant", "content": "1<|im_end|>\n<|im_start|>user\nfoo<|im_end|>"},
        {"role": "user", "content": "foo"},
        {"role": "assistant", "content": "ba"},
    ],
    "an empty answer": [*HISTORY[:1], {"role": "assistant", "content": ""}, *HISTORY[:2]],
    "the assistant first": HISTORY[1:4],
    "a question last": HISTORY[:3],
    "a system prompt": [{"role": "system", "content": "be good "}, *HISTORY[:2]],
    "two answers in a row": [*HISTORY[:2], {"role": "assistant", "content": "and more"}],
}


@pytest.fixture(scope="module")
def tokenizers():
    return {name: build() for name, build in kinds.TOKENIZERS.items()}


def load(path, rows: list[dict], **given) -> sources.Examples:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return sources.load(Data(source=str(path), **given), "sft")


def learn(path, rows: list[dict], tokenizer, length: int = 10_000, limit: int | None = None) -> lm_labels.Learned:
    return lm_labels.learn(load(path, rows), tokenizer, length, limit)


def said(tokenizer, labels: list[int]) -> list[str]:
    return [kinds.shown(tokenizer, run) for run in kinds.runs(labels)]


# Every kind of tokenizer with every kind of template.


@pytest.mark.parametrize("template", kinds.TEMPLATES)
@pytest.mark.parametrize("name", kinds.TOKENIZERS)
def test_what_is_learned_is_what_the_assistant_says(tokenizers, tmp_path, name, template):
    tokenizer = tokenizers[name]
    tokenizer.chat_template = kinds.TEMPLATES[template].jinja
    alternate = template == "roles must alternate"
    refused = {"the assistant first", "a system prompt", "two answers in a row"} if alternate else set()
    for kind, chat in CHATS.items():
        if kind in refused:
            with pytest.raises(DataError, match="refuses: roles must alternate .first: row 1"):
                learn(tmp_path / "d.jsonl", [{"messages": chat}], tokenizer)
            continue
        found = learn(tmp_path / "d.jsonl", [{"messages": chat}], tokenizer)
        assert kinds.is_right(tokenizer, template, chat, found.ids[0], found.labels[0]), kind


@pytest.mark.parametrize("name", [name for name in kinds.TOKENIZERS if name != "Python, without offsets"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompt=st.text(max_size=12), completion=st.text(min_size=1, max_size=12))
def test_a_prompt_and_its_completion_are_one_text(tokenizers, name, prompt, completion):
    tokenizer = tokenizers[name]
    prompt, completion = (text.encode(errors="ignore").decode() for text in (f"q{prompt}", f"{completion}a"))
    examples = sources.Examples([prompt], [1.0], [], "f", pairs=[completion], task="sft")
    ids, labels = (found[0] for found in lm_labels.tokenize(examples, tokenizer, 10_000))
    whole = tokenizer(prompt + completion, return_offsets_mapping=True)
    end = tokenizer.eos_token_id
    assert ids == [*whole["input_ids"][: len(ids) - 1], end]
    # Each token of the completion is learned, none of the prompt alone, and the end token once.
    learned = [place for place, label in enumerate(labels) if label != IGNORED]
    assert learned == list(range(learned[0], len(ids)))
    places = whole["offset_mapping"]
    assert all(stop > len(prompt) for _, stop in places[learned[0] : len(ids) - 1])
    assert all(stop <= len(prompt) for _, stop in places[: learned[0]])


def test_the_end_token_is_learned_where_it_pads_too(tokenizers):
    tokenizer = tokenizers["bytes, pad is eos"]
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    examples = sources.Examples(["q"], [1.0], [], "f", pairs=[" yes"], task="sft")
    ids, labels = lm_labels.tokenize(examples, tokenizer, 100)
    assert labels[0][-1] == ids[0][-1] == tokenizer.eos_token_id
    # A completion that has its end token gets no second one.
    again = sources.Examples(["q"], [1.0], [], "f", pairs=[f" yes{tokenizer.eos_token}"], task="sft")
    assert lm_labels.tokenize(again, tokenizer, 100) == (ids, labels)


# Against TRL and transformers.


def test_prompts_and_completions_are_learned_as_trl_does(tokenizers):
    data_utils = pytest.importorskip("trl.data_utils")
    for name in ("bytes", "bytes, bos", "bytes, prefix that is no bos", "byte fallback"):
        tokenizer = tokenizers[name]
        for prompt, completion in (("who says?", " yes"), ("1 + ", "1\n"), ("a\n", "\tb"), ("good", "ness yes")):
            first = data_utils._tokenize(tokenizer, prompt)["input_ids"]
            whole = data_utils._tokenize(tokenizer, prompt + completion + tokenizer.eos_token)["input_ids"]
            start = data_utils.common_prefix_length(first, whole)
            examples = sources.Examples([prompt], [1.0], [], "f", pairs=[completion], task="sft")
            ids, labels = lm_labels.tokenize(examples, tokenizer, 100)
            assert ids[0] == whole
            assert labels[0] == [IGNORED] * start + whole[start:]


def test_answers_that_the_template_marks_are_those_of_transformers(tokenizers, tmp_path):
    tokenizer = tokenizers["bytes"]
    tokenizer.chat_template = kinds.MARKED
    for chat in CHATS.values():
        stock = tokenizer.apply_chat_template(chat, return_assistant_tokens_mask=True)
        found = learn(tmp_path / "d.jsonl", [{"messages": chat}], tokenizer)
        mask = [int(label != IGNORED) for label in found.labels[0]]
        assert stock["input_ids"][: len(mask)] == found.ids[0]
        assert stock["assistant_masks"] == mask + [0] * (len(stock["input_ids"]) - len(mask))


CALL = {"type": "function", "id": "a1b2c3d4e", "function": {"name": "sum", "arguments": {"x": 1}}}
TOOL_CHAT = [
    {"role": "user", "content": "sum?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "a1b2c3d4e", "name": "sum", "content": "42"},
    {"role": "assistant", "content": "it is 42"},
]
TOOLS = [{"type": "function", "function": {"name": "sum", "description": "d", "parameters": {"type": "object"}}}]


@pytest.mark.parametrize(
    ("family", "end"),
    [("qwen2_5", "<|im_end|>"), ("qwen3", "<|im_end|>"), ("llama3", "<|eot_id|>"), ("gemma", "<|im_end|>")],
)
def test_answers_of_well_known_templates_are_those_that_trl_marks(tokenizers, tmp_path, family, end):
    templates = Path(pytest.importorskip("trl").__file__).parent / "chat_templates"
    tokenizer = kinds.TOKENIZERS["bytes, bos"]()
    tokenizer.eos_token = end
    chats = [[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]]
    chats += [TOOL_CHAT] if family == "qwen2_5" else []
    for chat in chats:
        rows = [{"messages": chat, "tools": TOOLS if chat is TOOL_CHAT else None}]
        tokenizer.chat_template = (templates / f"{family}.jinja").read_text()
        own = learn(tmp_path / "d.jsonl", rows, tokenizer)
        tokenizer.chat_template = (templates / f"{family}_training.jinja").read_text()
        marked = learn(tmp_path / "d.jsonl", rows, tokenizer)
        # TRL marks the line break behind the end token as well, which is never generated.
        assert [text.strip() for text in said(tokenizer, own.labels[0])] == [
            text.strip() for text in said(tokenizer, marked.labels[0])
        ]
        assert said(tokenizer, own.labels[0])


# What reaches the template.

FIELDS = (
    "{% if tools %}TOOLS {{ tools | tojson }}{% endif %}{% if mood is defined %}MOOD {{ mood }}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}CALL {{ c.function.arguments | tojson }}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def tokenizer():
    found = kinds.TOKENIZERS["bytes"]()
    found.chat_template = FIELDS
    return found


def test_all_that_the_template_knows_reaches_it(tokenizer, tmp_path):
    chat = [{**message} for message in TOOL_CHAT]
    chat[1] = {**chat[1], "content": None, "reasoning": "add them", "weight": 0}
    row = {
        "messages": chat,
        "tools": json.dumps(TOOLS),
        "chat_template_kwargs": {"mood": "calm", "depth": 3},
        "id": 1,
    }
    found = learn(tmp_path / "d.jsonl", [{**row, "system": "be good"}], tokenizer)
    text = tokenizer.decode(found.ids[0])
    assert (
        text.startswith("TOOLS " + json.dumps(TOOLS)) and "MOOD calm" in text and "system\nbe good<|im_end|>" in text
    )
    answer = '<think>add them</think>CALL {"x": 1}<|im_end|>'
    assert said(tokenizer, found.labels[0]) == [answer, "it is 42<|im_end|>"]
    notes = "\n".join(found.notices)
    assert "'weight' in messages" not in notes  # 0 and None are what a message has that says nothing
    for name in ("name", "tool_call_id"):
        assert (
            f"1 of 1 examples have {name!r} in messages, which the model's chat template does not read (row 1)"
            in notes
        )
    assert "columns that the model's chat template reads: tools" in notes
    assert "columns and arguments that the model's chat template does not read: id, depth" in notes


def test_arguments_of_calls_are_written_in_one_form(tokenizer, tmp_path):
    chat = [{**message} for message in TOOL_CHAT]
    as_json = {"type": "function", "function": {"name": "sum", "arguments": '{"x": 1}'}}
    chat[1] = {"role": "assistant", "tool_calls": [as_json]}
    found = learn(tmp_path / "d.jsonl", [{"messages": chat}], tokenizer)
    assert said(tokenizer, found.labels[0])[0] == 'CALL {"x": 1}<|im_end|>'
    tokenizer.chat_template = FIELDS.replace("c.function.arguments | tojson", "'' + c.function.arguments")
    found = learn(tmp_path / "d.jsonl", [{"messages": TOOL_CHAT}], tokenizer)
    assert said(tokenizer, found.labels[0])[0] == 'CALL {"x": 1}<|im_end|>'


def test_what_a_tool_returns_is_not_learned(tokenizer, tmp_path):
    # This template writes it only behind a call, and looks ahead for it.
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role != 'tool' %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "{% if m.tool_calls %}CALL<|eot_id|>{{ messages[loop.index0 + 1].content if not loop.last }}{% else %}"
        "<|im_end|>{% endif %}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    found = learn(tmp_path / "d.jsonl", [{"messages": TOOL_CHAT}], tokenizer)
    assert said(tokenizer, found.labels[0]) == ["CALL<|eot_id|>", "it is 42<|im_end|>"]


def test_other_forms_of_messages_are_the_same_chat(tokenizer, tmp_path):
    tokenizer.chat_template = kinds.CHATML
    plain = [{"role": "user", "content": "who?"}, {"role": "assistant", "content": "yes"}]
    wanted = learn(tmp_path / "d.jsonl", [{"messages": plain}], tokenizer)
    forms = [
        {"conversations": [{"from": "human", "value": "who?"}, {"from": "gpt", "value": "yes"}]},
        {"messages": [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in plain]},
        {"messages": json.dumps(plain)},
        {"prompt": plain[:1], "completion": plain[1:]},
        {"prompt": plain[:1], "completion": "yes"},
    ]
    for row in forms:
        found = learn(tmp_path / "d.jsonl", [row], tokenizer)
        assert (found.ids, found.labels) == (wanted.ids, wanted.labels)
    import pandas as pd

    pd.DataFrame([{"messages": plain}]).to_parquet(tmp_path / "d.parquet")
    pd.DataFrame([{"messages": json.dumps(plain)}]).to_csv(tmp_path / "d.csv", index=False)
    for name in ("d.parquet", "d.csv"):
        examples = sources.load(Data(source=str(tmp_path / name)), "sft")
        assert lm_labels.tokenize(examples, tokenizer, 100) == (wanted.ids, wanted.labels)


def test_columns_that_a_chat_cannot_take_are_named(tokenizer, tmp_path):
    plain = [{"role": "system", "content": "a"}, {"role": "assistant", "content": "b"}]
    for more, expected in (
        ({"tools": "no list"}, "tools that are no list of mappings"),
        ({"chat_template_kwargs": [1]}, "chat_template_kwargs that are no mapping"),
    ):
        with pytest.raises(DataError, match=f"1 of 1 rows have {expected} .first: row 1"):
            load(tmp_path / "d.jsonl", [{"messages": plain, **more}])
    # None of these sets an argument of the template's.
    row = {"messages": plain, "chat_template": "{{ 1 / 0 }}", "add_generation_prompt": True, "eos_token": "X"}
    odd = [*plain, {"role": "function_call", "content": "c"}]
    found = load(tmp_path / "d.jsonl", [{**row, "messages": odd, "system": "another"}])
    assert found.notices == (
        "1 of 1 examples have messages of the role 'function_call', which are written and not learned (row 1)",
        "1 of 1 examples have a system message in the chat and another in column 'system', which is not used (row 1)",
    )
    assert said(tokenizer, lm_labels.tokenize(found, tokenizer, 100)[1][0]) == ["b<|im_end|>"]


def test_of_a_prompt_of_messages_no_answer_is_learned(tokenizer, tmp_path):
    for template in (kinds.CHATML, kinds.MARKED):
        tokenizer.chat_template = template
        row = {"prompt": HISTORY[:3], "completion": HISTORY[3:4]}
        found = learn(tmp_path / "d.jsonl", [row], tokenizer)
        assert said(tokenizer, found.labels[0]) == [HISTORY[3]["content"] + "<|im_end|>"]


def test_what_arrow_fills_up_is_no_field(tmp_path):
    import pandas as pd

    rows = [
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "", "tool_calls": [call]}]}
        for call in (
            {"function": {"name": "f", "arguments": {"x": 1}}},
            {"function": {"name": "g", "arguments": {"y": 2}}},
        )
    ]
    pd.DataFrame(rows).to_parquet(tmp_path / "d.parquet")
    examples = sources.load(Data(source=str(tmp_path / "d.parquet")), "sft")
    assert [chat.messages[1]["tool_calls"][0]["function"]["arguments"] for chat in examples.chats] == [
        {"x": 1},
        {"y": 2},
    ]


# What is told, and left out.


def test_reasoning_that_the_template_forgets_is_told(tokenizer, tmp_path):
    tokenizer.chat_template = kinds.R1
    found = learn(tmp_path / "d.jsonl", [{"messages": HISTORY}], tokenizer)
    assert "1 of 1 examples have reasoning that the model's chat template leaves out (row 1)" in found.notices
    assert any("asks for an answer with '<think>\\n', which it does not write" in note for note in found.notices)
    tokenizer.chat_template = kinds.CHATML
    assert learn(tmp_path / "d.jsonl", [{"messages": HISTORY}], tokenizer).notices == ()
    twice = [*HISTORY[:1], {"role": "assistant", "content": "yes<|im_end|>"}]
    found = learn(tmp_path / "d.jsonl", [{"messages": twice}], tokenizer)
    assert found.notices == (
        "1 of 1 examples have an answer that contains the end token '<|im_end|>' itself (row 1)",
    )


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (kinds.LLAMA, "ends answers with '<|eot_id|>', and the tokenizer's end token is '<|im_end|>'"),
        (kinds.INST, "writes nothing when it asks for an answer"),
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}{{ '\n' }}{% endfor %}", "writes no end token"),
        ("{% for m in messages if m.role != 'system' %}" + kinds.CHATML[24:], "text of the role 'system' that"),
    ],
)
def test_what_is_odd_about_a_template_is_told(tokenizer, tmp_path, template, expected):
    tokenizer.chat_template = template
    found = learn(tmp_path / "d.jsonl", [{"messages": CHATS["a system prompt"]}], tokenizer)
    assert expected in "\n".join(found.notices)


def rows_of(bad: dict[int, object], count: int = 60) -> list[dict]:
    chats = [
        [{"role": "user", "content": f"q {n}"}, {"role": "assistant", "content": f"yes {n}"}] for n in range(count)
    ]
    return [{"messages": bad.get(row, chat)} for row, chat in enumerate(chats)]


def test_bad_chats_are_left_out_and_named_by_their_rows(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("AUTOLR_CACHE", str(tmp_path / "cache"))
    tokenizer.chat_template = kinds.GEMMA
    twice = [
        {"role": "user", "content": "a"},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "c"},
    ]
    examples = load(tmp_path / "d.jsonl", rows_of({2: None, 7: twice}))
    data = Data(source=str(tmp_path / "d.jsonl"), validation=0.2, test=0.2)
    for _ in range(2):  # anew, and from the cache
        found = prepare(examples, data, tokenizer, 4, 0)
        told = "\n".join(found.summary)
        assert (
            "1 of 60 examples left out: no list of messages with role and content in column 'messages' (row 3)"
            in told
        )
        assert (
            "1 of 59 examples left out: a chat that the model's chat template refuses: roles must alternate (row 8)"
            in told
        )
        assert len(found.train) + len(found.validation) + len(found.test) == 58
        assert all(found.train.lengths()) and all(found.validation.lengths()) and all(found.test.lengths())
    with pytest.raises(DataError, match=r"20 of 60 rows have a chat that .* \(first: row 1\).*write the chats as"):
        learn(tmp_path / "d.jsonl", rows_of(dict.fromkeys(range(20), twice)), tokenizer)


def test_advice_on_max_length_heeds_where_the_model_ends(tokenizer, tmp_path):
    tokenizer.chat_template = kinds.CHATML
    long = [{"role": "user", "content": "? " * 40}, {"role": "assistant", "content": "a"}]
    rows = rows_of(dict.fromkeys(range(10), long))
    cases = [
        (16, None, "in their first 16 tokens (first: row 1).*set data.max_length to 91 or more"),
        (16, 512, "in their first 16 tokens (first: row 1).*set data.max_length to 91 or more"),
        (16, 64, "the model ends at 64 tokens: set data.max_length to 64, and shorten or remove 10 rows"),
        (64, 64, "in their first 64 tokens, where the model ends .*shorten the text before the answers"),
    ]
    for length, limit, expected in cases:
        with pytest.raises(DataError, match=expected.replace("(first", r"\(first").replace("1)", r"1\)")):
            learn(tmp_path / "d.jsonl", rows, tokenizer, length, limit)
    few = learn(tmp_path / "d.jsonl", rows_of({4: rows[0]["messages"]}), tokenizer, 64, 64)
    assert (
        "1 of 60 examples left out: nothing to learn in their first 64 tokens, where the model ends (row 5)"
        in few.notices
    )
    assert few.ids[4] == few.labels[4] == []


def test_a_token_across_the_end_of_a_prompt_is_told(tokenizers):
    tokenizer = tokenizers["bytes"]
    whole = tokenizer(" answer", return_offsets_mapping=True)["offset_mapping"]
    assert whole[0][1] > 3  # the word is a token, or nearly
    examples = sources.Examples(["the an"], [1.0], [], "f", pairs=["swer"], task="sft")
    found = lm_labels.learn(examples, tokenizer, 100)
    expected = "a token that reaches from the prompt into the completion, and is learned with it"
    assert found.notices == (f"1 of 1 examples have {expected} (row 1)",)


def test_settings_that_cut_or_pad_change_nothing(tmp_path):
    plain, cutting = kinds.TOKENIZERS["bytes"](), kinds.TOKENIZERS["bytes"]()
    cutting.truncation_side = cutting.padding_side = "left"
    cutting.model_max_length = 4
    cutting.backend_tokenizer.enable_truncation(4, direction="left")
    cutting.backend_tokenizer.enable_padding(length=64)
    for tokenizer in (plain, cutting):
        tokenizer.chat_template = kinds.CHATML
    rows = [{"messages": HISTORY}]
    assert learn(tmp_path / "d.jsonl", rows, cutting, 30) == learn(tmp_path / "d.jsonl", rows, plain, 30)


def test_the_cache_knows_what_a_template_reads(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("AUTOLR_CACHE", str(tmp_path / "cache"))
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    lengths = set()
    for more in ({}, {"tools": TOOLS}, {"mood": "calm"}, {"chat_template_kwargs": {"mood": "calm and good"}}):
        examples = load(tmp_path / "d.jsonl", [{"messages": chat, **more}])
        fresh = cache.tokens(examples, tokenizer, 1000)
        again = cache.tokens(examples, tokenizer, 1000)
        assert fresh == again
        lengths.add(len(fresh.ids[0]))
    assert len(lengths) == 4
    monkeypatch.setattr(cache, "TOKENIZATION", 0)
    monkeypatch.setattr(lm_labels, "learn", lambda *_: lm_labels.Learned([[7]], [[7]]))
    assert np.array_equal(cache.tokens(examples, tokenizer, 1000).ids, [[7]])
