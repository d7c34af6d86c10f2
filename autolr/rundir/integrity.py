"""Is a run folder sound, and if it is not, what of it can be saved?"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from autolr.errors import AutoLRError
from autolr.rundir.folder import RunFolder
from autolr.rundir.records import Phase, Record, TrialRecord
from autolr.schema.recipe import Recipe
from autolr.schema.study import Study
from autolr.schema.yaml_io import Document


class Check(Document):
    """What was found in a run folder.

    Attributes:
        sound: what is whole, in words.
        damaged: what is not, and what follows for it.
        remedy: what to do; None where all is sound.
    """

    folder: str
    sound: list[str]
    damaged: list[str]
    remedy: str | None = None


def check(path: str | Path) -> Check:
    """Read every file of a run folder; nothing is changed."""
    run, sound, damaged = RunFolder(path), [], []

    def look(file: Path, read: Callable[[Path], str], lost: str) -> bool:
        if not file.is_file():
            return True
        try:
            sound.append(f"{file.relative_to(run.path)}: {read(file)}")
        except (AutoLRError, OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            reason = next((line.strip(" -") for line in reversed(str(error).splitlines())), type(error).__name__)
            damaged.append(f"{file.relative_to(run.path)}: {reason[:200]}; {lost}")
            return False
        return True

    study = look(run.study, lambda file: f"study {Study.load(file).name}", "a search needs it: put the study back")
    if not run.study.is_file():
        study = False
        damaged.append("study.yaml: is missing; a search needs it: put the study back")
    look(run.database, _json, "it should name the database that holds the trials")
    journal = look(run.journal, _journal, "what comes after is not read")
    for file, kind, what in (
        (run.curves, TrialRecord, "curves of trials"),
        (run.trainings, Record, "trainings after the trials"),
        (run.phases, Phase, "visits to stages"),
    ):
        whole, broken = _records(file, kind)
        if whole:
            sound.append(f"{file.name}: {whole} {what}")
        if broken:
            damaged.append(f"{file.name}: {broken} of {whole + broken} lines are damaged; the others are read")
    look(run.recipe, lambda file: f"recipe {Recipe.load(file).candidate.describe()}", "made again by the search")
    look(run.machine, _json, "made again by the search")
    look(run.live, _json, "made again by the search")
    look(run.resources, _parquet, "the report is without its figures of memory")
    look(run.train / "metrics.json", _json, "made again by: autolr train")
    look(run.train / "adapter" / "adapter_model.safetensors", _tensors, "made again by: autolr train")
    remedy = None
    if damaged:
        remedy = _remedy(run, study, journal)
    return Check(folder=str(path), sound=sound, damaged=damaged, remedy=remedy)


def _remedy(run: RunFolder, study: bool, journal: bool) -> str:
    if not study:
        return (
            "give the study to a search in another --out; recipe, adapter and records named above can be used as "
            "they are"
        )
    if not journal:
        kept = _whole_lines(run.journal)
        return (
            f"the first {kept} lines of journal.log are whole, and a search resumes from them. Keep a copy, then: "
            f"head -n {kept} journal.log > whole && mv whole journal.log"
        )
    return f"sound files are used as they are; resume with: autolr search --out {run.path}"


def _journal(path: Path) -> str:
    """Return what a journal holds.

    Raises:
        ValueError: a line is damaged, other than the end of the last.
    """
    lines = path.read_bytes().split(b"\n")
    whole = _whole_lines(path)
    if whole < len(lines) - 1:
        raise ValueError(f"line {whole + 1} of {len(lines) - 1} is damaged")
    trials = sum(json.loads(line).get("op_code") == 4 for line in lines[:whole])
    cut = f", and {len(lines[-1])} bytes of a line that was cut off" if lines[-1] else ""
    return f"{trials} trials in {whole} lines{cut}"


def _whole_lines(path: Path) -> int:
    """Return how many lines from the beginning are what Optuna has written."""
    count = 0
    for line in path.read_bytes().split(b"\n")[:-1]:
        try:
            if not isinstance(json.loads(line).get("op_code"), int):
                break
        except (ValueError, AttributeError):
            break
        count += 1
    return count


def _records(path: Path, kind: type[Document]) -> tuple[int, int]:
    """Count the whole and the damaged lines of a file of records."""
    whole = broken = 0
    if path.is_file():
        for line in path.read_bytes().splitlines():
            try:
                content: Any = json.loads(line)
                # A trial's rungs and score lie in the journal.
                kind.model_validate(content)
                whole += 1
            except (ValueError, ValidationError):
                broken += 1
    return whole, broken


def _json(path: Path) -> str:
    if not isinstance(json.loads(path.read_text(encoding="utf-8")), dict):
        raise ValueError("holds no keys and values")
    return "whole"


def _parquet(path: Path) -> str:
    import pyarrow
    from pyarrow import parquet

    try:
        return f"{parquet.read_table(path).num_rows} samples"
    except pyarrow.ArrowException as error:
        raise ValueError(str(error)) from None


def _tensors(path: Path) -> str:
    with safe_open(path, framework="pt") as tensors:
        names = list(tensors.keys())
        for name in names:
            tensors.get_tensor(name)
    return f"{len(names)} tensors"
