"""The study document: what is searched, on which model and data, and for how much.

A study is a YAML file or `Study(...)`. Nothing in it names a machine; `autolr search` adds
the device and the folder.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from autolr import documents
from autolr.documents import Document
from autolr.places import Name, Place
from autolr.schema.budget import Budget
from autolr.schema.budget import Seconds as Seconds
from autolr.schema.data import LANGUAGE as LANGUAGE
from autolr.schema.data import METRICS as METRICS
from autolr.schema.data import Data as Data
from autolr.schema.data import MetricName as MetricName
from autolr.schema.data import TaskName as TaskName
from autolr.schema.method import Method as Method
from autolr.schema.overrides import apply_overrides as apply_overrides
from autolr.schema.space import NO_HEAD_RATES as NO_HEAD_RATES
from autolr.schema.space import SOFTMAX as SOFTMAX
from autolr.schema.space import MethodKind as MethodKind
from autolr.schema.space import Range as Range
from autolr.schema.space import Rate as Rate
from autolr.schema.space import Ratio as Ratio
from autolr.schema.space import Role as Role
from autolr.schema.space import Space
from autolr.schema.space import Targets as Targets
from autolr.schema.space import has_ratio as has_ratio
from autolr.schema.space import roles_of as roles_of
from autolr.schema.training import MOST_STEPS as MOST_STEPS
from autolr.schema.training import Attention as Attention
from autolr.schema.training import Horizon as Horizon
from autolr.schema.training import Precision as Precision
from autolr.schema.training import Training as Training

BaselineName = Literal["rule", "winner_lr", "paper", "qkv"]


class Earlier(Document):
    """What an earlier search has found, where a new one begins; `autolr search --prior RUN` writes it."""

    source: str = Field(description="the earlier run's name")
    rate: Ratio = Field(description="its best lr_v in units of the rule of thumb's rate for its model")
    ratio: Ratio
    rank: int = Field(ge=0, description="0: its matrices trained whole")


class Search(Document):
    """How trials are trained, pruned and confirmed."""

    length: Literal["auto"] | Annotated[int, Field(ge=2, le=MOST_STEPS)] = Field(
        "auto", description="optimizer steps of a trial, the first of its full run; auto: a quarter of the horizon"
    )
    rungs: list[int] | None = Field(
        None,
        description="steps at which trials are compared and pruned; none given: about a quarter of the length",
    )
    prune: float = Field(
        0.001, ge=0, lt=1, description="chance of being the best below which a trial ends at a rung; 0: none ends"
    )
    slots: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)] = Field(
        "auto", description="trials trained at once; auto: as many as pay and fit the device's memory"
    )
    semifinalists: int = Field(
        6, ge=0, le=1000, description="best trials that go on to half of the full run; `finalists` or fewer: none do"
    )
    finalists: int = Field(
        2,
        ge=1,
        le=1000,
        description="best candidates, of which the winner is chosen: where trials are shorter than the full run, "
        "theirs go on to its end with the rule of thumb's; 1: the search's best, without finals",
    )
    repeats: int = Field(3, ge=2, le=1000, description="seeds of the winner and each rule in the verdict")
    prior: list[Earlier] = Field([], description="earlier searches' winners: tried first, and searched around")

    @model_validator(mode="after")
    def _inside(self) -> Search:
        if self.rungs is not None and isinstance(self.length, int):
            wrong = [rung for rung in self.rungs if not 0 < rung < self.length]
            if wrong:
                raise ValueError(f"rungs {wrong} must lie between 0 and length ({self.length})")
        if self.rungs is not None and sorted(set(self.rungs)) != self.rungs:
            raise ValueError(f"rungs must rise: {self.rungs}")
        return self

    def has_finals(self, length: int, steps: int) -> bool:
        """Tell whether the winner is chosen at the end of the full run: there are several, and trials are shorter."""
        return self.finalists > 1 and length < steps

    def rung_steps(self, length: int) -> tuple[int, ...]:
        """Return the steps of all rungs of trials of `length` steps, their end excluded."""
        # A multiple of the batches' cycle of lengths, so that trials which refill a slot stay in phase. Early losses
        # tell who learns nothing from who does, but favour a quick start: a second rung would drop what wins later.
        rungs = {max(1, round(length / 4 / 8)) * 8} if self.rungs is None else set(self.rungs)
        return tuple(sorted(rung for rung in rungs if 0 < rung < length))


# What a search that goes on may change: how much it does and how fast, not what it finds.
NOT_IDENTITY: dict[str, Any] = {
    "budget": True,
    "train": True,
    "name": True,
    "search": {"slots"},
    "trust_remote_code": True,
}


class Study(Document):
    """What is searched: model, data, task, space, budget."""

    name: Name = "study"
    model: Place = Field(description="demo:all-MiniLM-L6-v2, a local folder, or a hub id")
    trust_remote_code: bool = Field(
        False, description="run Python code that came with the model; needs --trust-remote-code as well"
    )
    data: Data
    task: TaskName = Field(
        "classification",
        description="regression: the labels are numbers; sft: completions of prompts or chats; lm: whole texts",
    )
    metric: MetricName | None = Field(
        None,
        description="shown beside the loss, by which all is chosen; none given: accuracy, pearson, token_accuracy or "
        "perplexity; my_module:function is your own, and needs --allow-code",
    )
    space: Space = Space()
    method: Method = Method()
    training: Training = Training()
    search: Search = Search()
    baselines: list[BaselineName] = Field(
        ["rule", "winner_lr", "paper", "qkv"],
        description="rules of thumb in the comparison; rule is always there",
    )
    budget: Budget = Budget()
    seed: int = Field(0, ge=0, lt=2**31)
    train: bool = Field(False, description="do the full run after the search")

    @field_validator("data", mode="before")
    @classmethod
    def _source_alone(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _fits_the_task(self) -> Study:
        known = METRICS[self.task]
        if self.metric is not None and ":" not in self.metric and self.metric not in known:
            raise ValueError(f"metric {self.metric} is none of {self.task}: choose {', '.join(known)}")
        if self.task in LANGUAGE and self.method.lr_head != "auto":
            raise ValueError(
                f"method.lr_head ({self.method.lr_head:g}): {self.task} adds no output layer; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _rho_of_adapters(self) -> Study:
        if self.method.full and self.space.rho != [1.0]:
            raise ValueError("space.rho is the ratio of B's rate to A's: method.kind full has neither, take it out")
        return self

    @field_validator("baselines")
    @classmethod
    def _with_rule(cls, names: list[BaselineName]) -> list[BaselineName]:
        if len(set(names)) != len(names):
            raise ValueError(f"a baseline is listed twice: {names}")
        return names if "rule" in names else ["rule", *names]

    @classmethod
    def load(cls, path: str | Path, overrides: list[str] | None = None) -> Study:
        """Read a study file.

        Args:
            path: the YAML file.
            overrides: dotted assignments such as `space.rank=[8,16]`, applied in their order.

        Raises:
            DocumentError: the file cannot be read, or is wrong; all its problems are listed.
        """
        content, text = documents.read_yaml(Path(path))
        apply_overrides(content, overrides or [])
        return documents.validate(cls, content, str(path), text)

    def usual(self) -> dict[str, Any]:
        """Return what the rules of thumb have where the space is a choice between names: the first."""
        return {"targets": self.space.targets[0], "kind": self.method.kind[0]}

    def fixed(self) -> dict[str, Any]:
        """Return what all candidates share where there is no choice, and rank 0 if full.

        Where all that is trained has one rate, λ is 1: `lr_v` is that rate.
        """
        choices = {"targets": self.space.targets, "kind": self.method.kind, "rho": self.space.rho}
        found: dict[str, Any] = {
            name: values[0] for name, values in choices.items() if isinstance(values, list) and len(values) == 1
        }
        if not any(map(has_ratio, self.space.targets)):
            found["ratio"] = 1.0
        return {**found, **({"rank": 0} if self.method.full else {})}

    def save(self, path: str | Path) -> None:
        """Write the study, every setting spelled out, as YAML."""
        documents.write_text(Path(path), documents.to_yaml(self.model_dump(mode="json")))

    def identity(self) -> str:
        """Return eight characters that change with everything but the budget, the slots and `train`."""
        content = self.model_dump(mode="json", exclude=NOT_IDENTITY)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]
