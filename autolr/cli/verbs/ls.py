"""`autolr ls`: the studies that come with AutoLR."""

from __future__ import annotations

from typing import Any

from autolr.cli.options import AsJson
from autolr.cli.output import echo_json, say


def ls(as_json: AsJson = False) -> None:
    """List the shipped studies. `autolr search NAME` runs a study, `autolr cp NAME` copies it into a file."""
    from autolr.cli.resolve import shipped

    rows = [_row(name) for name in shipped()]
    if as_json:
        echo_json(rows)
        return
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        say(f"{row['name']:<{width}}  {row['task']}, {row['model']} on {row['data']}, {row['trials']} trials")
        say(f"{'':<{width}}  {row['about']}")


def _row(name: str) -> dict[str, Any]:
    from autolr.cli.resolve import load

    study, text = load(name)
    first = next((line.lstrip("# ") for line in text.splitlines() if line.startswith("#")), "")
    return {
        "name": name,
        "task": study.task,
        "model": study.model,
        "data": study.data.source + (f" ({study.data.subset})" if study.data.subset else ""),
        "trials": study.budget.trials,
        "about": first,
    }
