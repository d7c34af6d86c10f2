"""What is shipped: wheel and sdist are built the same twice, and hold what they should."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import autolr

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CORE = {"torch", "transformers", "optuna", "peft", "datasets", "plotly"}


def name_of(requirement: str) -> str:
    return re.match(r"[\w.-]+", requirement)[0].lower()


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> list[Path]:
    """Two folders with wheel and sdist, built from copies of the checkout made at other times, with other rights."""
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("needs hatchling: pip install hatchling")
    shown = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if shown.returncode:
        pytest.skip("is no git checkout")
    files = [line for line in shown.stdout.splitlines() if (ROOT / line).is_file()]
    folders = []
    for when, mask in ((1_000_000_000, 0o022), (1_600_000_000, 0o077)):
        copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("dist")
        before = os.umask(mask)
        try:
            for name in files:
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, copy / name)
                os.utime(copy / name, (when, when))
        finally:
            os.umask(before)
        environment = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000"}
        command = [sys.executable, "-m", "hatchling", "build", "-d", str(out)]
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        folders.append(out)
    return folders


def test_two_builds_are_the_same_to_the_bit(built):
    first, second = (
        {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in f.iterdir()} for f in built
    )
    assert first == second
    assert {name.rpartition(".")[2] for name in first} == {"whl", "gz"}


def test_the_wheel_holds_the_package_and_its_studies_and_nothing_else(built):
    with zipfile.ZipFile(next(built[0].glob("*.whl"))) as wheel:
        names = wheel.namelist()
    assert {name.partition("/")[0] for name in names} == {"autolr", f"autolr_qv-{autolr.__version__}.dist-info"}
    shipped = {Path(name).name for name in names if name.startswith("autolr/studies/")}
    assert shipped == {path.name for path in (ROOT / "studies").glob("*.yaml")}
    held = {path.relative_to(ROOT).as_posix() for path in (ROOT / "autolr").rglob("*") if path.is_file()}
    assert {name for name in held if "__pycache__" not in name} <= set(names)  # templates and py.typed with the code


def test_the_sdist_builds_and_tests_itself(built):
    with tarfile.open(next(built[0].glob("*.tar.gz"))) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert {"README.md", "LICENSE", "CITATION.cff", "CHANGELOG.md", "constraints.txt", "tests/tiny.py"} <= names
    assert {"studies/sentiment.yaml", "docs/mkdocs.yml", "examples/slurm.sh"} <= names


def test_the_core_is_lean_and_extras_are_separate():
    core = {name_of(line) for line in PROJECT["dependencies"]}
    extras = {name: {name_of(line) for line in lines} for name, lines in PROJECT["optional-dependencies"].items()}
    assert core >= CORE and len(core) <= 21
    assert set(extras) >= {"demo", "test", "dashboard", "ray", "postgres", "mysql", "trl", "docs"}
    for name, packages in extras.items():
        assert name == "test" or (len(packages) <= 3 and not packages & core), name


def test_the_core_alone_imports_what_it_says_it_needs():
    """Nothing outside the standard library is imported at the top of a module but what is required."""
    told = {name_of(line) for line in PROJECT["dependencies"]}
    own = {"scikit-learn": "sklearn", "pyyaml": "yaml"}
    known = {own.get(name, name) for name in told} | {"huggingface_hub", "markupsafe", "pydantic_core"}
    for path in (ROOT / "autolr").rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            modules = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            for found in {module.partition(".")[0] for module in modules}:
                assert found in known | {"autolr", "__future__"} | sys.stdlib_module_names, f"{path}: {found}"


def test_the_version_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert autolr.__version__ == PROJECT["version"] == citation["version"]
    assert f"{PROJECT['version']} will hold" in (ROOT / "CHANGELOG.md").read_text() or (
        f"## [{PROJECT['version']}]" in (ROOT / "CHANGELOG.md").read_text()
    )
    assert citation["license"] == PROJECT["license"]
    titles = [reference["title"] for reference in citation["references"]]
    assert any("Theoretical Insights" in title for title in titles) and any("Head" in title for title in titles)
