"""Every block of code in the documentation runs: Python as it stands, commands as far as a tiny model takes them."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml

import autolr
from autolr import cli
from autolr.cli import resolve
from autolr.finetune.run import train
from autolr.pack import slot_count
from autolr.pack.slot_count import Capacity
from autolr.schema import yaml_io
from autolr.schema.study import Study
from autolr.tuner.run import search
from tests.docs.pages import PAGES, ROOT, Block, blocks

# What is begun elsewhere, waits, or needs a machine, an account or models that a test has not: it is parsed alone.
PARSED_ALONE = ("worker", "dashboard")
NEEDS_MORE = ("--storage", "--workers", "--push-to-hub")


@pytest.fixture(scope="module", autouse=True)
def unmeasured() -> Iterator[None]:
    """One thread and two slots, without trying more: that takes longest, and models so small are slower with two."""
    found = Capacity(slots=2, reason="as a test has it", peak_bytes=0, slot_bytes=0, free_bytes=0, rates={}, passes=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slot_count, "measure", lambda *_: found)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def workspace(unmeasured, tmp_path_factory, model_folders, reviews) -> Path:
    """The folder a reader works in: a model, data, and two runs that are through, of the quickstart and of SFT."""
    folder = tmp_path_factory.mktemp("reader")
    shutil.copytree(model_folders["bert"], folder / "my-model")
    shutil.copytree(model_folders["lm"], folder / "my-decoder")
    shutil.copy(reviews, folder / "reviews.csv")
    shutil.copytree(ROOT / "examples" / "accelerate", folder / "examples" / "accelerate")
    numbers = range(60)
    prompts = [{"prompt": f"good word{n % 30} word{n // 2}", "completion": f" word{n % 7}"} for n in numbers]
    chats = [
        {"messages": [{"role": "user", "content": p["prompt"]}, {"role": "assistant", "content": p["completion"]}]}
        for p in prompts
    ]
    for name, rows in (("prompts", prompts), ("chats", chats)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    here = Path.cwd()
    os.chdir(folder)
    try:
        result = search(Study(name="reviews", model="my-model", data={"source": "reviews.csv"}), "runs/reviews")
        train(result.recipe, "runs/reviews/train")
        shutil.copytree("runs/reviews/train", "runs/second/train")
        cheap = {"search": {"stages": [{"to": 0.25}], "seeds": 2}, "baselines": ["default"], "budget": {"trials": 2}}
        search(Study(model="my-decoder", data={"source": "prompts.jsonl"}, task="sft", **cheap), "runs/sft")
    finally:
        os.chdir(here)
    return folder


@pytest.fixture
def reader(workspace, tmp_path, monkeypatch) -> Path:
    """A copy of that folder, to work in."""
    folder = tmp_path / "reader"
    shutil.copytree(workspace, folder)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    return folder


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_code_of_a_page_runs(page, reader, capsys, monkeypatch):
    names: dict = {}
    missing = None
    for block in blocks(page):
        try:
            if block.language == "python":
                run_python(block, names, monkeypatch)
            elif block.language == "bash":
                for line in block.code.splitlines():
                    run_command(block, line, capsys)
            elif block.language == "yaml":
                yaml_io.validate(Study, yaml_io.parse(block.code, block.where), block.where)
            else:
                raise AssertionError(f"{block.where}: nobody runs {block.language}")
        except ModuleNotFoundError as error:
            if error.name != "trl":
                raise
            missing = block.where
    if missing:
        pytest.skip(f"{missing} needs TRL: pip install trl")


def run_python(block: Block, names: dict, monkeypatch) -> None:
    named = re.match(r"# (\w+\.py),", block.code)  # a file that a command reads
    if named:
        Path(named[1]).write_text(block.code, encoding="utf-8")
    if "push_to_hub" in block.code:
        monkeypatch.setattr(autolr, "push_to_hub", lambda folder, name: f"hub/{name}" if folder.is_dir() else None)
    exec(compile(block.code, block.where, "exec"), names)


def run_command(block: Block, line: str, capsys) -> None:
    words = shlex.split(line, comments=True)
    if not words:
        return
    if words[0] in ("accelerate", "torchrun"):
        at = words.index("-m")
        if "--config_file" in words:
            yaml.safe_load(Path(words[words.index("--config_file") + 1]).read_text())
        words = words[at + 1 :]
    if words[0] == "pip":
        installs(words[1:])
    elif words[0] == "autolr":
        autolr_runs(block, words[1:], capsys)
    else:
        assert words == ["hf", "auth", "login"], f"{block.where}: nobody runs {line}"


def installs(words: list[str]) -> None:
    """Check that what is installed is ours, with extras that there are."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    found = re.fullmatch(r"(?:\.|autolr-qv)\[([\w,]+)\]", words[-1])
    assert words[0] == "install" and found and set(found[1].split(",")) <= set(extras), words
    assert all((ROOT / file).is_file() for flag, file in pairwise(words) if flag == "-c")


def autolr_runs(block: Block, words: list[str], capsys) -> None:
    """Run a command; searches and full runs show their plans, since one of each is there already."""
    from typer.main import get_command

    verb, rest = words[0], words[1:]
    command = get_command(cli.app).commands[verb]
    command.make_context(verb, list(rest))  # refuses what the verb does not know
    own = [word for word in rest if word in ("--model", "--out") or Path(word).is_file()]
    if verb == "search" and not own:
        resolve.resolve([word for word in rest[:1] if not word.startswith("-")], {}, None)
        return
    if verb in PARSED_ALONE or any(word in NEEDS_MORE for word in rest):
        return
    if verb in ("search", "train") and "--dry-run" not in rest:
        rest = [*rest, "--dry-run"]
    with pytest.raises(SystemExit) as stop:
        cli.main([verb, *rest])
    said = capsys.readouterr()
    assert stop.value.code == 0, f"{block.where}: autolr {' '.join(rest)}\n{said.err}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_study_and_command_named_in_the_text_is_there(page):
    known = {*cli_verbs(), "--install-completion", "NAME"}
    for verb in re.findall(r"`autolr ([\w-]+)[^`]*`", page.read_text(encoding="utf-8")):
        assert verb in known, verb


def cli_verbs() -> set[str]:
    from typer.main import get_command

    return set(get_command(cli.app).commands)
