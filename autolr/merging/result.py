"""What a merge has come to: `merge.json`, and what `autolr.merge` returns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import Field

from autolr import display
from autolr.schema.data import TaskName
from autolr.schema.recipe import Interval
from autolr.schema.yaml_io import Document

REPORT = "merge.json"


class Scored(Document):
    """What an adapter has scored on a split."""

    loss: float
    metric: float
    examples: int


class Ingredient(Document):
    """An adapter that was given."""

    label: str
    digest: str = Field(description="sha256 of its weights")
    rank: int | None = Field(None, description="largest rank of its matrices; null: whole matrices")
    validation_loss: float | None = Field(description="of the adapter alone; null: no finite number")
    validation_metric: float
    taken: bool
    merged_loss: float | None = Field(None, description="validation loss of the average with it, when it was tried")
    reason: str


class MergeResult(Document):
    """The result of a merge."""

    format: int = Field(1, ge=1, le=1)
    folder: Path = Field(exclude=True, description="holds the merged adapter")
    verdict: str
    base: str = Field(description="base model")
    base_config: str | None = Field(description="sha256 of the base model's configuration; null: not readable")
    kind: Literal["lora", "full"]
    task: TaskName
    metric: str
    data: str
    best: str = Field(description="the best single adapter on validation")
    ingredients: list[Ingredient] = Field(description="in the order in which they were tried")
    rank: int | None = Field(description="largest rank of the result; null: whole matrices")
    exact_rank: int | None = Field(description="largest rank of the exact average")
    cuts: dict[int, float | None] = Field(description="validation loss at each rank that was tried")
    singular_values: dict[str, list[float]] = Field(description="of the exact average, matrix by matrix")
    validation: Scored
    validation_best: Scored = Field(description="of the best single adapter")
    test: Scored
    test_best: Scored = Field(description="of the best single adapter")
    gain: Interval = Field(
        description="test loss of the best single adapter minus the result's: above 0, it is better"
    )
    level: float = Field(description="of the interval, over examples")
    notes: list[str] = []
    device: str
    versions: dict[str, str] = {}
    commit: str | None = None

    @property
    def taken(self) -> list[str]:
        """The ingredients by their labels, the best first."""
        return [one.label for one in self.ingredients if one.taken]

    def to_json(self) -> str:
        """Return the result as JSON."""
        return json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False)

    def _repr_html_(self) -> str:
        """Return the result as a notebook shows it."""
        rows = [
            ("test loss", f"{display.loss(self.test.loss)}, {self.metric} {self.test.metric:.4f}"),
            (f"test loss of {self.best}", f"{display.loss(self.test_best.loss)}"),
            ("rank", self.rank),
            ("folder", self.folder),
        ]
        heads = ["adapter", "validation loss", "taken", "why"]
        return display.table(self.verdict, rows) + display.grid(heads, [row(one) for one in self.ingredients])


def row(one: Ingredient) -> tuple[str, str, str, str]:
    """Return an ingredient as a row of a table: label, validation loss, whether it was taken, and why."""
    alone = "none" if one.validation_loss is None else display.loss(one.validation_loss)
    with_it = "" if one.merged_loss is None else f" ({display.loss(one.merged_loss)})"
    return one.label, alone, "yes" if one.taken else "no", one.reason + with_it
