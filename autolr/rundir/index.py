"""The runs of a folder: what each has searched, found and cost."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from autolr.errors import AutoLRError, RunError
from autolr.rundir.folder import RunFolder
from autolr.rundir.result import SearchResult
from autolr.schema.yaml_io import Document


class Run(Document):
    """One line of the list of runs.

    Attributes:
        score: test loss of the recipe; the best validation loss if the search is unfinished.
        metric: metric of the recipe on test, by its name.
        problem: why the run cannot be read; all else is empty then.
    """

    folder: str
    state: Literal["finished", "unfinished", "unreadable"]
    name: str = ""
    model: str = ""
    data: str = ""
    total: int = 0
    completed: int = 0
    pruned: int = 0
    diverged: int = 0
    infeasible: int = 0
    failed: int = 0
    score: float | None = None
    metric: dict[str, float] = {}
    candidate: str | None = None
    device_seconds: float = 0.0
    full_runs: float | None = None
    verdict: str | None = None
    problem: str | None = None


def list_runs(folder: str | Path) -> list[Run]:
    """Return the runs in a folder, or the run that the folder is; the newest last.

    Raises:
        RunError: there is no run.
    """
    return [_run(path) for path in folders(folder)]


def folders(folder: str | Path, *, damaged: bool = False) -> list[Path]:
    """Return the run folders in a folder, or the run folder that it is; the newest last.

    Args:
        folder: holds run folders.
        damaged: include folders that lack their study or their trials.

    Raises:
        RunError: there is no run folder.
    """
    top = Path(folder)
    if not top.is_dir():
        raise RunError(f"{folder}: no such folder. Give a folder that holds run folders.")
    runs = [
        path
        for path in (top, *top.iterdir())
        if (path / "study.yaml").is_file() + RunFolder(path).has_trials > (0 if damaged else 1)
    ]
    if not runs:
        raise RunError(f"{folder}: no run in this folder. Start one with: autolr search --out {folder}/NAME")
    return sorted(runs, key=lambda path: (_changed(path), path.name))


def newest(folder: Path) -> Path:
    """Return the run folder that changed last.

    Raises:
        RunError: there is no run folder.
    """
    return folders(folder)[-1]


def _run(path: Path) -> Run:
    try:
        result = SearchResult.load(path)
    except AutoLRError as error:
        return Run(folder=str(path), state="unreadable", problem=" ".join(str(error).splitlines()[:2]))
    outcomes = [trial.outcome for trial in result.trials]
    recipe = result.recipe
    evidence = recipe.evidence if recipe else None
    best = min((t.score for t in result.trials if t.score is not None and t.outcome == "finished"), default=None)
    winner = evidence.scores[0] if evidence else None
    return Run(
        folder=str(path),
        state="finished" if recipe else "unfinished",
        name=result.study.name,
        model=result.study.model,
        data=result.study.data.source,
        total=len(outcomes),
        completed=outcomes.count("finished"),
        pruned=outcomes.count("pruned"),
        diverged=outcomes.count("diverged"),
        infeasible=outcomes.count("infeasible"),
        failed=outcomes.count("interrupted"),
        score=winner.test_loss if winner else best,
        metric={recipe.metric: winner.test_metric} if winner and recipe else {},
        candidate=recipe.candidate.describe() if recipe else None,
        device_seconds=round(sum(phase.seconds for phase in result.phases), 1),
        full_runs=evidence.cost.full_run_equivalents if evidence else None,
        verdict=evidence.verdict if evidence else None,
    )


def _changed(path: Path) -> float:
    folder = RunFolder(path)
    files = (folder.study, folder.journal, folder.trainings, folder.recipe)
    return max((file.stat().st_mtime for file in files if file.is_file()), default=0.0)
