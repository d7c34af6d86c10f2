"""Our own way of making tokens is pinned to its version: if it changes, no kept tokens of the old way are found."""

from __future__ import annotations

import hashlib
import json

import pytest

from autolr.data import cache, sources
from autolr.data.pipeline import prepare
from autolr.schema.data import Data
from tests.conftest import CHAT, tokenizer_with

# The sha256 of all that is below, for each version of `cache.TOKENIZATION` that there has been.
PINNED = {
    1: "29c0bc81e6a5921c8a8a07086b3a93a3fd335203b8338dfb947545094bfeacc2",
    2: "29c0bc81e6a5921c8a8a07086b3a93a3fd335203b8338dfb947545094bfeacc2",
}
WORDS = ["good", "bad", "word1", "word2", "word3", "nobody-knows-this", "word4", "word5", "fine", "dull"]


def text(row: int) -> str:
    return " ".join(WORDS[(row * step) % len(WORDS)] for step in range(1, 3 + row % 6))


def chat(row: int) -> list[dict[str, str]]:
    told = [
        ("system", "word1"),
        ("user", text(row)),
        ("assistant", text(row + 1)),
        ("user", "bad"),
        ("assistant", "fine"),
    ]
    return [{"role": role, "content": content} for role, content in told[row % 2 : 3 + 2 * (row % 3 // 2)]]


TASKS = {
    "classification": [{"text": text(row), "label": row % 2} for row in range(24)],
    "pairs": [{"text1": text(row), "text2": text(row + 3), "label": row % 2} for row in range(24)],
    "lm": [{"text": text(row)} for row in range(24)],
    "prompts": [{"prompt": text(row), "completion": f" {text(row + 5)}"} for row in range(24)],
    "chats": [{"messages": chat(row)} for row in range(24)],
}
KINDS = {"classification": "classification", "pairs": "classification", "lm": "lm", "prompts": "sft", "chats": "sft"}


def test_a_change_of_tokens_is_a_new_version(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTOLR_CACHE", str(tmp_path / "cache"))
    tokenizer = tokenizer_with(cls_token="[CLS]", bos_token="[CLS]", eos_token="[SEP]")
    tokenizer.chat_template = CHAT
    made = {}
    for name, rows in TASKS.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        examples = sources.load(Data(source=str(path)), KINDS[name])
        for length in (64, 6) if name in ("classification", "pairs", "lm") else (64,):
            kept = cache.tokens(examples, tokenizer, length)
            made[f"{name} {length}"] = kept.ids, kept.labels or None
    assert {name.split()[0] for name, (ids, _) in made.items() if max(map(len, ids)) > 6} == set(TASKS)
    digest = hashlib.sha256(json.dumps(made).encode()).hexdigest()
    assert digest == PINNED.get(cache.TOKENIZATION), (
        f"other tokens than those of version {cache.TOKENIZATION}: raise cache.TOKENIZATION, and pin {digest}"
    )


def test_another_version_finds_no_kept_tokens(reviews, tmp_path, monkeypatch):
    monkeypatch.setenv("AUTOLR_CACHE", str(tmp_path / "cache"))
    examples, tokenizer = sources.load(Data(source=reviews)), tokenizer_with(cls_token="[CLS]")
    cache.tokens(examples, tokenizer, 8)
    monkeypatch.setattr(cache, "TOKENIZATION", 10_000)
    cache.tokens(examples, tokenizer, 8)
    assert len(list((tmp_path / "cache").iterdir())) == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda tokenizer: tokenizer.add_tokens(["word1 word2"]),
        lambda tokenizer: setattr(tokenizer, "truncation_side", "left"),
        lambda tokenizer: setattr(tokenizer, "chat_template", CHAT),
        lambda tokenizer: setattr(tokenizer, "eos_token", "[SEP]"),
    ],
)
def test_what_a_tokenizer_is_told_by(change):
    tokenizer = tokenizer_with(cls_token="[CLS]")
    before = cache.tokenizer_fingerprint(tokenizer)
    tokenizer(["good bad"] * 3, truncation=True, max_length=1)  # leaves its mark on the tokenizer
    assert (
        cache.tokenizer_fingerprint(tokenizer)
        == before
        == cache.tokenizer_fingerprint(tokenizer_with(cls_token="[CLS]"))
    )
    change(tokenizer)
    assert cache.tokenizer_fingerprint(tokenizer) != before


def test_a_text_a_pair_and_a_chat_of_the_same_letters_are_kept_apart(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTOLR_CACHE", str(tmp_path / "cache"))
    tokenizer = tokenizer_with(cls_token="[CLS]", eos_token="[SEP]")
    whole = sources.Examples(["good\x1dbad"], [0], ["a", "b"], "same")
    pair = sources.Examples(["good"], [0], ["a", "b"], "same", pairs=["bad"])
    assert cache.tokens(whole, tokenizer, 8) == cache.tokens(whole, tokenizer, 8)
    cache.tokens(pair, tokenizer, 8)
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_the_fingerprint_of_what_is_prepared_knows_the_split(reviews):
    tokenizer, data = tokenizer_with(cls_token="[CLS]"), Data(source=reviews)
    examples = sources.load(data)
    first, again, other = (prepare(examples, data, tokenizer, 8, seed).fingerprint() for seed in (0, 0, 1))
    assert first == again != other
