"""Shell completion of arguments: studies, runs and recipes."""

from __future__ import annotations

from pathlib import Path


def studies(incomplete: str) -> list[str]:
    """Return shipped studies and study files that start with `incomplete`."""
    from autolr.cli.resolve import shipped

    return [name for name in shipped() if name.startswith(incomplete)] + _paths(incomplete, ".yaml")


def shipped(incomplete: str) -> list[str]:
    """Return shipped studies that start with `incomplete`."""
    from autolr.cli import resolve

    return [name for name in resolve.shipped() if name.startswith(incomplete)]


def runs(incomplete: str) -> list[str]:
    """Return folders that start with `incomplete`, those in `runs/` first."""
    known = [str(path) for path in sorted(Path("runs").glob("*/")) if (path / "study.yaml").is_file()]
    return list(dict.fromkeys([*(run for run in known if run.startswith(incomplete)), *_paths(incomplete)]))


def recipes(incomplete: str) -> list[str]:
    """Return run folders and recipe files that start with `incomplete`."""
    return list(dict.fromkeys([*runs(incomplete), *_paths(incomplete, ".yaml")]))


def _paths(incomplete: str, ending: str | None = None) -> list[str]:
    """Return folders, and files of that ending, whose path starts with `incomplete`."""
    folder, _, start = incomplete.rpartition("/")
    here = Path(folder + "/" if incomplete.startswith("/") or folder else ".")
    if not here.is_dir():
        return []
    prefix = f"{folder}/" if "/" in incomplete else ""
    return [
        prefix + path.name + ("/" if path.is_dir() else "")
        for path in sorted(here.iterdir())
        if path.name.startswith(start)
        and not path.name.startswith(".")
        and (path.is_dir() or (ending is not None and path.suffix == ending))
    ]
