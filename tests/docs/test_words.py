"""Sentences of the README, the pages and the help texts are short enough to read once."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from autolr.cli import app
from tests.docs.pages import PAGES, ROOT

LONGEST = 35  # words of a sentence; a piece of code is one word
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES, *sorted((ROOT / "studies").rglob("README.md"))]


def prose(markdown: str) -> Iterator[str]:
    """Yield paragraphs, items and cells, without blocks of code."""
    text = re.sub(r"^```.*?^```$|^::: .*?$", "\n\n", markdown, flags=re.MULTILINE | re.DOTALL)
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )|\n(?=#)", text):
        yield from re.split(r"[|\n]", block) if block.lstrip().startswith("|") else [block]


def sentences(text: str) -> list[str]:
    """Return the sentences of a paragraph; code counts as one word, and a link as its text."""
    flat = re.sub(r"\]\([^)]*\)", "]", re.sub(r"`[^`]*`", "code", " ".join(text.split())))
    return re.split(r"(?<=[.!?])\s+|(?<=:)\s+(?=[A-Z*])", flat)


def too_long(text: str) -> list[str]:
    return [s for s in sentences(text) if len(re.findall(r"[\w’'-]*\w[\w’'-]*", s)) > LONGEST]


def helps() -> Iterator[tuple[str, str]]:
    """Yield what `--help` says of each verb and option."""
    for name, verb in typer.main.get_command(app).commands.items():
        for paragraph in (verb.help or "").split("\n\n"):
            yield f"autolr {name}", paragraph
        for option in verb.params:
            yield f"autolr {name} {option.name}", getattr(option, "help", None) or ""


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_sentence_of_the_documents_is_too_long(path: Path):
    found = [sentence for part in prose(path.read_text(encoding="utf-8")) for sentence in too_long(part)]
    assert not found, "\n".join(found)


def test_no_sentence_of_a_help_text_is_too_long():
    found = [f"{where}: {sentence}" for where, text in helps() for sentence in too_long(text)]
    assert len(list(helps())) > 100 and not found, "\n".join(found)


def test_a_long_sentence_is_found_in_each_kind_of_text():
    long = " ".join(["word"] * (LONGEST + 1)) + "."
    for markdown in (long, f"- item\n- {long}", f"| a | {long} |\n|---|---|", f"Short. {long} Short."):
        assert len([one for part in prose(markdown) for one in too_long(part)]) == 1
    for markdown in (f"```\n{long}\n```", f"`{long}`", "One two. " * LONGEST):
        assert not [one for part in prose(markdown) for one in too_long(part)]
