"""What is learned of prompts, chats and texts, and what is said where that is not possible."""

from __future__ import annotations

import json

import pytest
from transformers import AutoTokenizer

from autolr.data import lm_labels, sources
from autolr.data.batches import IGNORED
from autolr.data.pipeline import prepare
from autolr.errors import DataError
from autolr.schema.data import Data
from tests.conftest import tokenizer_with


@pytest.fixture
def tokenizer(model_folders):
    return AutoTokenizer.from_pretrained(model_folders["lm"])


def load(path, rows: list[dict], task: str = "sft", **settings) -> sources.Examples:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return sources.load(Data(source=str(path), **settings), task)


def said(tokenizer, ids: list[int], labels: list[int]) -> tuple[str, str]:
    assert all(label in (IGNORED, token) for token, label in zip(ids, labels, strict=True))
    return tokenizer.decode(ids), tokenizer.decode([label for label in labels if label != IGNORED])


PAIRS = [{"question": "word1 word2", "answer": " good word3", "idx": n} for n in range(3)]


def test_of_a_prompt_the_completion_and_the_end_are_learned(tmp_path, tokenizer):
    examples = load(tmp_path / "d.jsonl", PAIRS)
    assert examples.pairs == [" good word3"] * 3 and examples.classes == []
    assert examples.notices == ("columns that are not used: idx",)
    ids, labels = lm_labels.tokenize(examples, tokenizer, 20)
    assert said(tokenizer, ids[0], labels[0]) == ("word1 word2 good word3 [SEP]", "good word3 [SEP]")
    cut, cut_labels = lm_labels.tokenize(examples, tokenizer, 3)
    assert (cut[0], cut_labels[0]) == (ids[0][:3], labels[0][:3])
    with pytest.raises(
        DataError, match="3 of 3 rows have nothing to learn in their first 2 tokens .first: row 1.*to 3 or more"
    ):
        lm_labels.tokenize(examples, tokenizer, 2)


def test_a_begin_token_comes_first_and_is_not_learned(tmp_path):
    from tokenizers.processors import TemplateProcessing

    tokenizer = tokenizer_with(bos_token="[CLS]", eos_token="[SEP]")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A", special_tokens=[("[CLS]", tokenizer.bos_token_id)]
    )
    ids, labels = lm_labels.tokenize(load(tmp_path / "d.jsonl", PAIRS), tokenizer, 20)
    assert said(tokenizer, ids[0], labels[0]) == ("[CLS] word1 word2 good word3 [SEP]", "good word3 [SEP]")


def test_of_a_text_all_is_learned(tmp_path, tokenizer):
    examples = load(tmp_path / "d.jsonl", [{"text": "good word3"}, {"text": "bad"}], "lm")
    ids, labels = lm_labels.tokenize(examples, tokenizer, 20)
    assert ids == labels
    assert tokenizer.decode(ids[0]) == "good word3 [SEP]"
    with pytest.raises(DataError, match="which column holds the texts"):
        load(tmp_path / "e.jsonl", [{"a": "x", "b": "y"}], "lm")


CHAT = [
    {"role": "user", "content": "word1"},
    {"role": "assistant", "content": "good"},
    {"role": "user", "content": "word2"},
    {"role": "assistant", "content": "bad word9"},
]


def test_of_a_chat_all_answers_are_learned_up_to_their_end(tmp_path, tokenizer):
    examples = load(tmp_path / "d.jsonl", [{"messages": CHAT}, {"messages": CHAT[:2]}])
    assert examples.texts[1] == "user: word1\nassistant: good"
    ids, labels = lm_labels.tokenize(examples, tokenizer, 50)
    whole, learned = said(tokenizer, ids[0], labels[0])
    # The template's words that are none of the vocabulary, such as roles, are [UNK].
    assert whole.endswith("bad word9 [SEP]")  # what the template writes after the last answer is left out
    assert learned == "good [SEP] bad word9 [SEP]"
    template = tokenizer.apply_chat_template(CHAT, tokenize=False)
    assert ids[0] == tokenizer(template, add_special_tokens=False)["input_ids"][: len(ids[0])]


@pytest.mark.parametrize(
    ("chat", "expected"),
    [
        ("hello", "1 of 1 rows have no list of messages with role and content in column 'messages' (first: row 1)"),
        ([], "no list of messages with role and content"),
        (["hello"], "no list of messages with role and content"),
        ([{"content": "x"}], "no list of messages with role and content"),
        ([{"role": "user"}], "a message without content"),
        ([{"role": "user", "content": "x"}], "no message of the role 'assistant' to learn"),
        ([{"role": "assistant", "content": " "}], "no message of the role 'assistant' to learn"),
        ([{"role": "assistant", "content": None}], "a message without content"),
        ([{"role": "assistant", "content": 7}], "a message whose content is no text (int)"),
        ([{"role": "user", "content": [{"type": "image"}]}], "a message whose content is no text (image)"),
    ],
)
def test_what_is_no_chat(tmp_path, chat, expected):
    with pytest.raises(DataError) as error:
        load(tmp_path / "d.jsonl", [{"messages": chat}])
    assert expected in str(error.value)


def test_templates_that_do_not_do(tmp_path, tokenizer):
    examples = load(tmp_path / "d.jsonl", [{"messages": [*CHAT, {"role": "judge", "content": "x"}]}])
    with pytest.raises(
        DataError, match="1 of 1 rows have a chat that the model's .* refuses: no judges .first: row 1"
    ):
        lm_labels.tokenize(examples, tokenizer, 50)
    examples = load(tmp_path / "d.jsonl", [{"messages": CHAT}])
    tokenizer.chat_template = "{% for m in messages %}{{ messages[0].content }} {% endfor %}"
    with pytest.raises(DataError, match="1 of 1 rows have no answer in what the model's chat template writes"):
        lm_labels.tokenize(examples, tokenizer, 50)
    twice = "{% for m in messages %}{{ m.content }} {{ m.content }} {{ messages | length }} {% endfor %}"
    tokenizer.chat_template = twice
    with pytest.raises(DataError, match="a chat whose message 2 is written otherwise by the model's chat template"):
        lm_labels.tokenize(examples, tokenizer, 50)
    tokenizer.chat_template = "{% for m in messages %}"
    with pytest.raises(DataError, match="the model's chat template cannot be read: .* Mend chat_template.jinja"):
        lm_labels.tokenize(examples, tokenizer, 50)
    tokenizer.chat_template = None
    with pytest.raises(DataError, match="has no chat template, which a column of messages needs"):
        lm_labels.tokenize(examples, tokenizer, 50)


@pytest.mark.parametrize(
    ("row", "settings", "expected"),
    [
        ({"a": "x", "b": "y"}, {}, "which columns hold prompts and completions"),
        ({"instruction": "x", "input": "z", "output": "y"}, {}, "which columns hold prompts and completions"),
        ({"prompt": "x", "completion": " "}, {}, "1 of 1 rows have no text in column 'completion'"),
        ({"prompt": "x"}, {"prompt_column": "prompt"}, "which columns hold"),
        ({"prompt": "x"}, {"prompt_column": "prompt", "completion_column": "prompt"}, "cannot be both"),
        ({"prompt": "x", "messages": []}, {"prompt_column": "prompt", "messages_column": "messages"}, "give either"),
        ({"prompt": "x"}, {"completion_column": "answer"}, "no column 'answer' (completion_column); it has: prompt"),
    ],
)
def test_columns_that_are_not_there(tmp_path, row, settings, expected):
    with pytest.raises(DataError) as error:
        load(tmp_path / "d.jsonl", [row], **settings)
    assert expected in str(error.value)


def test_splits_are_by_length_and_tokens_are_kept(tmp_path, tokenizer, monkeypatch):
    rows = [{"prompt": " ".join(["word1"] * (1 + n % 40)), "completion": f"good word{n}"} for n in range(200)]
    examples = load(tmp_path / "d.jsonl", rows)
    data = Data(source=str(tmp_path / "d.jsonl"), validation=0.2, test=0.2)
    first = prepare(examples, data, tokenizer, 8, 0)
    for part in (first.train, first.validation, first.test):
        assert sum(part.lengths()) / len(part) == pytest.approx(23.5, abs=1.5)
    assert first.summary[0].startswith("tokens of a text: median ")
    assert "tokens learned of a text: median 3" in first.summary[1]
    monkeypatch.setattr(lm_labels, "tokenize", None)  # calling it again would fail
    again = prepare(examples, data, tokenizer, 8, 0)
    assert again.train.labels == first.train.labels and again.train.ids == first.train.ids
    batch = first.train.collate([0, 1])
    for row in (0, 1):
        own = first.train.labels[row]
        assert batch["labels"][row].tolist() == own + [IGNORED] * (batch["labels"].shape[1] - len(own))
