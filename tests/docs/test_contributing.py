"""The documents send readers to files that exist."""

from __future__ import annotations

import re

import pytest

from tests.docs.pages import PAGES, ROOT


def rows() -> list[str]:
    """Return the rows of the table "I want to change X: the file"."""
    section = (
        (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## Where is it?")[2].partition("## ")[0]
    )
    return [line for line in section.splitlines() if line.startswith("| ")][1:]


def test_each_row_names_files_that_exist():
    assert len(rows()) >= 20
    for row in rows():
        paths = re.findall(r"`([\w./-]+)`", row)
        assert paths, row
        assert [path for path in paths if not (ROOT / path).exists()] == [], row


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES], ids=lambda page: page.name)
def test_a_file_of_the_project_that_a_page_names_exists(page):
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"(?<![\w/.])((?:autolr|tests|studies|docs|examples)/[\w./-]+\.\w+)", text))
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []
    assert named or page.name != "README.md"
