"""Commands, modules and results that documents name are there."""

from __future__ import annotations

import importlib.util
import re

import pytest

from studies import STUDIES

ROOT = STUDIES.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs" / "pages").rglob("*.md"))]
TABLES = {"benchmarks": STUDIES / "benchmarks" / "README.md", "research": STUDIES / "research" / "README.md"}
SCRIPTS = [path for path in sorted(STUDIES.rglob("*.py")) if "__main__" in path.read_text(encoding="utf-8")]


def module_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")


def rows(text):
    """Yield command and results of each row of a table's first section."""
    for line in text.partition("\n## ")[0].splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split("|")]
        if line.startswith("|") and cells[2].startswith("`") and "..." not in cells[2]:
            yield cells[2].strip("`").split()[0].rstrip("`,"), re.findall(r"`([\w*]+)`", cells[-2])


@pytest.mark.parametrize("path", [*DOCUMENTS, *SCRIPTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_name_modules_that_are_there(path):
    text = path.read_text(encoding="utf-8")
    for name in re.findall(r"python3?\s+-m\s+(studies[\w.]+)", text):
        assert importlib.util.find_spec(name), name
    for name in re.findall(r"(?<!tests/)\bstudies/[\w/.-]+\.(?:py|yaml|csv|json)\b", text):
        assert (ROOT / name).is_file(), name


@pytest.mark.parametrize("room", TABLES)
def test_each_script_has_a_row_and_each_row_its_script_and_results(room):
    listed = list(rows(TABLES[room].read_text(encoding="utf-8")))
    scripts = {module_of(path) for path in SCRIPTS if path.is_relative_to(STUDIES / room)}
    scripts -= {"studies.research.oracle.sections"}  # it makes the data of an oracle
    assert {f"studies.{room}.{name}" for name, _ in listed} == scripts
    for _, results in listed:
        for name in results:
            assert list((STUDIES / "benchmarks" / "results").glob(f"{name}-*.json")), name
