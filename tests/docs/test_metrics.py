"""The tables of tasks in README and docs list the metrics that the code has."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from autolr.schema.data import TaskName
from autolr.schema.metrics import METRICS, metrics_of

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("page", ["README.md", "docs/pages/data.md"])
def test_the_table_of_tasks_lists_their_metrics(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    rows = {row[1]: row[2] for row in re.finditer(r"^\| `(\w+)` \|.*\| ([^|]+) \|$", text, re.MULTILINE)}
    assert {task: re.findall(r"`(\w+)`", rows[task]) for task in get_args(TaskName)} == {
        task: metrics_of(task) for task in get_args(TaskName)
    }


def test_every_metric_is_of_a_task_that_there_is():
    tasks = {task for metric in METRICS.values() for task in metric.tasks}
    assert tasks == set(get_args(TaskName))
