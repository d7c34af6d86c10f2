"""Tokens are kept, found again, and never of another tokenizer, text or length."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from autolr.data import cache, sources
from autolr.data.batches import tokenize
from autolr.schema.data import Data


@pytest.fixture
def given(reviews, model_folders, tmp_path, monkeypatch):
    monkeypatch.setenv("AUTOLR_CACHE", str(tmp_path / "cache"))
    return sources.load(Data(source=reviews)), AutoTokenizer.from_pretrained(model_folders["bert"])


def files():
    return sorted(cache.folder().glob("*"))


def test_kept_tokens_are_those_of_the_tokenizer(given, monkeypatch):
    examples, tokenizer = given
    fresh = tokenize(tokenizer, examples.texts, 8)
    assert cache.tokens(examples, tokenizer, 8).ids == fresh
    assert len(files()) == 1
    monkeypatch.setattr(cache, "tokenize", None)  # calling it again would fail
    assert cache.tokens(examples, tokenizer, 8).ids == fresh


def test_another_length_text_or_tokenizer_is_another_file(given):
    examples, tokenizer = given
    cache.tokens(examples, tokenizer, 8)
    cache.tokens(examples, tokenizer, 4)
    other = sources.Examples(["x", *examples.texts[1:]], examples.labels, examples.classes, "other")
    assert cache.tokens(other, tokenizer, 8) != cache.tokens(examples, tokenizer, 8)
    tokenizer.add_tokens(["word1 word2"])
    cache.tokens(examples, tokenizer, 8)
    assert len(files()) == 4


@pytest.mark.parametrize("damage", [b"", b"\x08\0\0\0\0\0\0\0{}      ", b"nonsense"])
def test_a_damaged_file_is_made_anew(given, damage):
    examples, tokenizer = given
    fresh = cache.tokens(examples, tokenizer, 8)
    whole = files()[0].read_bytes()
    for content in (damage, whole[: len(whole) // 2]):
        files()[0].write_bytes(content)
        assert cache.tokens(examples, tokenizer, 8) == fresh
        assert files()[0].read_bytes() == whole


def test_a_folder_that_cannot_be_made_costs_nothing(given, tmp_path, monkeypatch):
    examples, tokenizer = given
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AUTOLR_CACHE", str(tmp_path / "file" / "cache"))
    assert len(cache.tokens(examples, tokenizer, 8).ids) == len(examples)


def test_old_files_go(given, monkeypatch):
    examples, tokenizer = given
    monkeypatch.setattr(cache, "MAX_FILES", 3)
    for length in range(4, 10):
        cache.tokens(examples, tokenizer, length)
    assert len(files()) == 3
