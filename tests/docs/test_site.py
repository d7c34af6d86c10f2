"""The site builds without a warning, and what it says of the code is so."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from html import unescape
from pathlib import Path

import pytest

import autolr
from autolr.integrations.registry import TOOLS
from autolr.schema.recipe import Recipe
from autolr.schema.study import Study
from tests.docs.pages import PAGES, ROOT

TROUBLE = ROOT / "docs" / "pages" / "troubleshooting.md"


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site as it is built: a warning is an error."""
    for name in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(name, reason="needs mkdocs: pip install 'autolr-qv[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-f", "docs/mkdocs.yml", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


def text_of(site: Path, page: str) -> str:
    return unescape(re.sub(r"<[^>]+>", "", (site / page).read_text(encoding="utf-8")))


def test_every_page_is_there_and_loads_nothing_from_elsewhere(site):
    for page in [
        *PAGES,
        *(ROOT / "docs" / "pages" / "reference" / f"{n}.md" for n in ("study", "recipe", "commands")),
    ]:
        html = (site / page.relative_to(ROOT / "docs" / "pages")).with_suffix(".html").read_text(encoding="utf-8")
        assert not re.findall(
            r'<(?:script|link|img)[^>]+(?:src|href)="https?://[^"]+\.(?:js|css|woff2?|png|svg)"', html
        )
        assert "{{ README" not in html and "{{ TABLE" not in html


def test_the_reference_holds_every_setting(site):
    for kind, page in ((Study, "study"), (Recipe, "recipe")):
        text = text_of(site, f"reference/{page}.html")
        for name, field in kind.model_fields.items():
            assert re.search(rf"^{name}$", text, re.MULTILINE), name
            assert " ".join((field.description or "").split())[:60] in text
    study = text_of(site, "reference/study.html")
    assert "space.ratio" in study and "training.horizon.steps" in study and "search.warm_start.rate" in study
    assert "whole number, ≥ 2, ≤ 1,000" in study  # limits come along


def test_the_reference_holds_every_command_and_public_name(site):
    from typer.main import get_command

    from autolr.cli import app

    commands, python = text_of(site, "reference/commands.html"), text_of(site, "reference/python.html")
    for name, command in get_command(app).commands.items():
        assert f"autolr {name}" in commands
        for parameter in command.params:
            if parameter.param_type_name == "option" and not getattr(parameter, "hidden", False):
                assert parameter.opts[0] in commands, (name, parameter.opts)
    source = (ROOT / "docs" / "pages" / "reference" / "python.md").read_text(encoding="utf-8")
    for name in autolr.__all__:
        assert f"::: {autolr._HOMES[name]}.{name}\n" in source, name
        assert name in python


def test_the_tools_are_the_same_everywhere(site):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    row = next(line for line in readme.splitlines() if line.startswith("| `autolr export"))
    assert set(re.findall(r"[\w-]+", row)) >= set(TOOLS)
    table = text_of(site, "trainer.html")
    for tool in TOOLS:
        assert re.search(rf"^{tool}$\s+^(yes|no)", table, re.MULTILINE), tool
        assert f"`{tool}`" in readme[readme.index("`autolr export RECIPE") :] or f"--to {tool}" in readme


def test_the_readme_leads_to_pages_that_are_there():
    pages = re.findall(r"\]\((docs/pages/[\w./-]+)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(pages) > 10 and all((ROOT / page).is_file() for page in pages)


# Messages.


@cache
def _messages() -> list[str]:
    """Return every text of the package's code; what differs in it is `…`."""
    return [text for path in sorted((ROOT / "autolr").rglob("*.py")) for text in _texts(ast.parse(path.read_text()))]


def _texts(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def is_said(message: str) -> bool:
    """Return True if the code has a text with all parts of a message, in their order."""
    parts = [re.escape(part) for part in message.split("…") if part.strip()]
    pattern = re.compile(".*?".join(parts), re.DOTALL)
    return any(pattern.search(text) for text in _messages())


def quoted() -> list[str]:
    rows = [line for line in TROUBLE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    return [re.match(r"\| `(.+?)` \|", row)[1] for row in rows]


@pytest.mark.parametrize("message", quoted())
def test_each_message_of_the_troubleshooting_page_is_one_of_the_codes(message):
    assert is_said(message)


def test_a_message_that_nobody_says_would_be_noticed():
    assert len(quoted()) > 50
    assert not is_said("model …: is made of cheese") and not is_said("to one of: … which column holds the texts?")
