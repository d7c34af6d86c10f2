"""The study document: what is searched, on which model and data, and for how much.

A study is a YAML file or `Study(...)`. Nothing in it names a machine; `autolr search` adds
the device and the folder.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from autolr.schema import yaml_io
from autolr.schema.budget import Budget
from autolr.schema.data import LANGUAGE, Data, MetricName, TaskName
from autolr.schema.fields import Name, Place
from autolr.schema.method import Method
from autolr.schema.metrics import metrics_of
from autolr.schema.overrides import apply_overrides
from autolr.schema.space import Ratio, Space, has_ratio
from autolr.schema.training import MOST_STEPS, Training
from autolr.schema.yaml_io import Document

# What each of them trains: `autolr.tuner.propose.baselines`.
BaselineName = Literal["default", "same_lr", "paper", "with_k"]


class WarmStart(Document):
    """What an earlier search has found, where a new one begins; `autolr search --warm-start RUN` writes it."""

    source: str = Field(description="the earlier run's name")
    rate: Ratio = Field(description="its best lr_v in units of the rule of thumb's rate for its model")
    ratio: Ratio
    rank: int = Field(ge=0, description="0: its matrices trained whole")


class StageSetting(Document):
    """A stage of the search: how far its trainings go, and how many candidates are promoted into it."""

    to: float | int = Field(
        gt=0, le=MOST_STEPS, description="where its trainings end: a share of the full run, up to 1, or a step"
    )
    promote: int | None = Field(
        None, ge=1, le=1000, description="candidates that are promoted into it, the best so far; none of the trials"
    )

    @field_validator("to")
    @classmethod
    def _share_or_step(cls, to: float) -> float:
        if to > 1 and to != int(to):
            raise ValueError(f"to ({to:g}) must be a share of the full run, up to 1, or a whole number of steps")
        return int(to) if to > 1 else float(to)


_STAGES = [StageSetting(to=0.25), StageSetting(to=0.5, promote=6), StageSetting(to=1.0, promote=2)]
# What settings were called before, and are no longer.
_OLD_SEARCH = ("length", "semifinalists", "finalists", "repeats")
_OLD_BASELINES = {"rule": "default", "winner_lr": "same_lr", "qkv": "with_k"}


class Search(Document):
    """How trials are trained, promoted, pruned and compared."""

    RENAMED = {"prune": "prune_below", "prior": "warm_start"}

    stages: list[StageSetting] = Field(
        _STAGES,
        min_length=1,
        description="trials first, then fewer and fewer candidates that train further; the last stage beyond the "
        "trials chooses the winner, the default baseline beside them",
    )
    rungs: list[int] | None = Field(
        None,
        description="steps at which trials are compared and pruned; none given: about a quarter of the trials",
    )
    prune_below: float = Field(
        0.001, ge=0, lt=1, description="chance of being the best below which a trial ends at a rung; 0: none ends"
    )
    slots: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)] = Field(
        "auto", description="trials trained at once; auto: as many as pay and fit the device's memory"
    )
    seeds: int = Field(3, ge=2, le=1000, description="seeds of the winner and each baseline in the verdict")
    warm_start: list[WarmStart] = Field([], description="earlier searches' winners: tried first, and searched around")

    @model_validator(mode="before")
    @classmethod
    def _new_words(cls, value: Any) -> Any:
        if isinstance(value, dict) and (old := [name for name in _OLD_SEARCH if name in value]):
            raise ValueError(f"{', '.join(old)}: renamed. Write {_in_new_words(value)}")
        return value

    @field_validator("stages")
    @classmethod
    def _narrowing(cls, stages: list[StageSetting]) -> list[StageSetting]:
        first, *later = stages
        if first.promote is not None:
            raise ValueError(f"the first stage is the trials, and promotes nobody: take out promote: {first.promote}")
        counts = [stage.promote for stage in later if stage.promote is not None]
        if len(counts) < len(later):
            raise ValueError("each stage after the first must promote a number of candidates, such as promote: 2")
        if any(count <= following for count, following in itertools.pairwise(counts)):
            raise ValueError(f"fewer candidates must be promoted from stage to stage: {counts}")
        for kind in (float, int):
            ends = [stage.to for stage in later if isinstance(stage.to, kind)]
            if ends != sorted(set(ends)):
                raise ValueError(f"each stage must go further than the one before: {ends}")
        return stages

    @model_validator(mode="after")
    def _inside(self) -> Search:
        end = self.stages[0].to
        if self.rungs is not None and end > 1:
            wrong = [rung for rung in self.rungs if not 0 < rung < end]
            if wrong:
                raise ValueError(f"rungs {wrong} must lie between 0 and the end of the trials ({end})")
        if self.rungs is not None and sorted(set(self.rungs)) != self.rungs:
            raise ValueError(f"rungs must rise: {self.rungs}")
        return self

    def rung_steps(self, length: int) -> tuple[int, ...]:
        """Return the steps of all rungs of trials of `length` steps, their end excluded."""
        # A multiple of the batches' cycle of lengths, so that trials which refill a slot stay in phase. Early losses
        # tell who learns nothing from who does, but favour a quick start: a second rung would drop what wins later.
        rungs = {max(1, round(length / 4 / 8)) * 8} if self.rungs is None else set(self.rungs)
        return tuple(sorted(rung for rung in rungs if 0 < rung < length))


def _in_new_words(search: dict[str, Any]) -> str:
    """Return the settings of a search that was written with the old words as they are written now."""
    length, many, few = search.get("length", "auto"), search.get("semifinalists", 6), search.get("finalists", 2)
    found = [f"{{to: {0.25 if length == 'auto' else length}}}"]
    if few != 1:
        found += [f"{{to: 0.5, promote: {many}}}"] if isinstance(many, int) and many > few else []
        found += [f"{{to: 1.0, promote: {few}}}"]
    seeds = f" and seeds: {search['repeats']}" if "repeats" in search else ""
    return f"stages: [{', '.join(found)}]{seeds}"


# What a resumed search may change: how much it does and how fast, not what it finds.
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
        ["default", "same_lr", "paper", "with_k"],
        description="what the winner is compared with: λ=1 at the rate of the rule of thumb (default, always there), "
        "λ=1 at the winner's rate (same_lr), the paper's λ=4, and W_k trained as well (with_k)",
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
        known = metrics_of(self.task)
        if self.metric is not None and ":" not in self.metric and self.metric not in known:
            raise ValueError(f"metric {self.metric} is none of {self.task}: choose {', '.join(known)}")
        if self.task in LANGUAGE and self.method.lr_head != "auto":
            raise ValueError(
                f"method.lr_head ({self.method.lr_head:g}): {self.task} adds no output layer; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _ratio_of_adapters(self) -> Study:
        if self.method.full and self.space.loraplus_lr_ratio != [1.0]:
            raise ValueError(
                "space.loraplus_lr_ratio is the ratio of B's rate to A's: method.kind full has neither, take it out"
            )
        return self

    @field_validator("baselines", mode="before")
    @classmethod
    def _new_names(cls, names: Any) -> Any:
        old = [name for name in names if name in _OLD_BASELINES] if isinstance(names, (list, tuple)) else []
        if old:
            raise ValueError("; ".join(f"{name} is now called {_OLD_BASELINES[name]}" for name in old))
        return names

    @field_validator("baselines")
    @classmethod
    def _with_default(cls, names: list[BaselineName]) -> list[BaselineName]:
        if len(set(names)) != len(names):
            raise ValueError(f"a baseline is listed twice: {names}")
        return names if "default" in names else ["default", *names]

    @classmethod
    def load(cls, path: str | Path, overrides: list[str] | None = None) -> Study:
        """Read a study file.

        Args:
            path: the YAML file.
            overrides: dotted assignments such as `space.rank=[8,16]`, applied in their order.

        Raises:
            DocumentError: the file cannot be read, or is wrong; all its problems are listed.
        """
        content, text = yaml_io.read_yaml(Path(path))
        apply_overrides(content, overrides or [])
        return yaml_io.validate(cls, content, str(path), text)

    def usual(self) -> dict[str, Any]:
        """Return what baselines have where the space is a choice between names: the first."""
        return {"targets": self.space.targets[0], "kind": self.method.kind[0]}

    def fixed(self) -> dict[str, Any]:
        """Return what all candidates share where there is no choice, and rank 0 if full.

        Where all that is trained has one rate, λ is 1: `lr_v` is that rate.
        """
        choices = {
            "targets": self.space.targets,
            "kind": self.method.kind,
            "loraplus_lr_ratio": self.space.loraplus_lr_ratio,
        }
        found: dict[str, Any] = {
            name: values[0] for name, values in choices.items() if isinstance(values, list) and len(values) == 1
        }
        if not any(map(has_ratio, self.space.targets)):
            found["ratio"] = 1.0
        return {**found, **({"rank": 0} if self.method.full else {})}

    def save(self, path: str | Path) -> None:
        """Write the study, every setting spelled out, as YAML."""
        yaml_io.write_text(Path(path), yaml_io.to_yaml(self.model_dump(mode="json")))

    def identity(self) -> str:
        """Return eight characters that change with everything but the budget, the slots and `train`."""
        content = self.model_dump(mode="json", exclude=NOT_IDENTITY)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]
