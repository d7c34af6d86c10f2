"""The study document: what is searched, on which model and data, and for how much.

A study is a YAML file or `Study(...)`. Nothing in it names a machine; `autolr search` adds
the device and the folder.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, field_validator, model_validator

from autolr import documents
from autolr.documents import Document
from autolr.errors import DocumentError
from autolr.metrics import metrics_of
from autolr.places import Name, Place

Role = Literal["q", "k", "v", "o", "mlp", "head"]
# What is trained beside the head: W_q, W_k, W_v, the output projection W_o; all of them and the MLP's matrices.
Targets = Literal["qv", "qkv", "q", "k", "v", "qk", "kv", "vo", "all-linear"]
# What each of them trains: `autolr.search.baselines`.
BaselineName = Literal["default", "same_lr", "paper", "with_k"]
Precision = Literal["auto", "fp32", "bf16", "int8", "nf4"]
TaskName = Literal["classification", "regression", "sft", "lm"]
# Tasks of language models, which get no head: the tokens of a text, or of its completion, are what is learned.
LANGUAGE: tuple[TaskName, ...] = ("sft", "lm")
# A metric of AutoLR's, or the user's own: `my_module:function`.
MetricName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$|^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
Attention = Literal["auto", "sdpa", "eager", "flash_attention_2"]
MethodKind = Literal["lora", "rslora", "dora", "full"]
# What is said of documents that ask for rates of attention heads, which AutoLR had before 0.1.0.
NO_HEAD_RATES = "rates of single heads were removed, since they improved nothing. Remove this key"

Rate = Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)]
Ratio = Annotated[float, Field(gt=0, le=1e4, allow_inf_nan=False)]
Rank = Annotated[int, Field(ge=1, le=4096)]

# What acts through the softmax alone, and learns at the rate of W_q.
SOFTMAX: frozenset[Role] = frozenset({"q", "k"})


def roles_of(targets: Targets) -> tuple[Role, ...]:
    """Return the roles that `targets` names."""
    return ("q", "k", "v", "o", "mlp") if targets == "all-linear" else tuple(targets)  # type: ignore[arg-type]


def has_ratio(targets: Targets) -> bool:
    """Tell whether λ means something for `targets`: whether matrices of either rate are among them."""
    roles = set(roles_of(targets))
    return bool(roles & SOFTMAX) and bool(roles - SOFTMAX)


def _seconds(value: Any) -> Any:
    """Read `90`, `"90s"`, `"10m"`, `"1.5h"` as seconds."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*([0-9.]+)\s*([smh]?)\s*", value)
    try:
        number = float(match.group(1)) if match else math.nan
    except ValueError:
        number = math.nan
    if not match or math.isnan(number):
        raise ValueError("must be a time such as 90s, 10m or 1.5h")
    return number * {"": 1, "s": 1, "m": 60, "h": 3600}[match.group(2)]


Seconds = Annotated[float, BeforeValidator(_seconds), Field(gt=0, allow_inf_nan=False)]


class Range(Document):
    """A range of a dimension, sampled evenly in its logarithm (`log: true`) or in itself."""

    low: float = Field(gt=0, allow_inf_nan=False)
    high: float = Field(gt=0, allow_inf_nan=False)
    log: bool = True

    @model_validator(mode="after")
    def _upright(self) -> Range:
        if self.low > self.high:
            raise ValueError(f"low ({self.low:g}) is above high ({self.high:g}): exchange them")
        return self


def _one_as_list(value: Any) -> Any:
    return [value] if isinstance(value, (int, float, str)) and not isinstance(value, bool) else value


def _rate_choice(value: Any) -> Any:
    """Turn a single number into a list of one, and say plainly what is accepted."""
    value = value if isinstance(value, str) else _one_as_list(value)
    if not isinstance(value, (dict, list, tuple, Range)):
        raise ValueError(f"must be a range {{low: , high: }}, a list or a number (given: {value!r})")
    return value


# All combinations of choices are looked at.
MOST_CHOICES = 100


class Space(Document):
    """The dimensions of the search. A list holds choices, a single number fixes the dimension."""

    REMOVED = {"guide": (("none", ["none"]), NO_HEAD_RATES)}

    lr_v: Literal["auto"] | Annotated[Range | list[Rate], BeforeValidator(_rate_choice)] = Field(
        "auto", description="rate of W_v; auto: a factor of 10 around the rule of thumb for the model's width"
    )
    ratio: Annotated[Range | list[Ratio], BeforeValidator(_rate_choice)] = Field(
        Range(low=0.5, high=32.0), description="λ = lr_v / lr_q; below 1 is legal"
    )
    rank: Annotated[list[Rank], BeforeValidator(_one_as_list)] = Field(
        [4, 8, 16], min_length=1, description="of adapters; method.kind full has none"
    )
    rho: Annotated[Range | list[Ratio], BeforeValidator(_rate_choice)] = Field(
        [1.0], description="LoRA+: ρ = lr_B / lr_A, the rate of every B by that of its A"
    )
    targets: Annotated[list[Targets], BeforeValidator(_one_as_list)] = Field(
        ["qv"],
        min_length=1,
        description="matrices that are trained: q, k, v, o, or all-linear, which has the MLP's as well; several "
        "choices are compared in one search",
    )

    @model_validator(mode="after")
    def _sound(self) -> Space:
        for name, limit in (("lr_v", 10.0), ("ratio", 1e4), ("rho", 1e4)):
            value = getattr(self, name)
            if isinstance(value, Range) and value.high > limit:
                raise ValueError(f"{name}.high ({value.high:g}) is above {limit:g}")
            if isinstance(value, list) and len(value) > MOST_CHOICES:
                raise ValueError(f"{name} lists {len(value)} values; give a range {{low: , high: }} instead")
            if isinstance(value, list) and (not value or len(set(value)) != len(value)):
                raise ValueError(f"{name} must list at least one value, and each value once: {value}")
        for name in ("rank", "targets"):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise ValueError(f"{name} lists a value twice: {values}")
        return self


class Data(Document):
    """Where the examples come from and how they are split.

    One table is split into *train*, *select* (pruning and choosing) and *confirm* (the numbers
    a user is told), stratified by label, or by length where texts are learned; a text that occurs twice
    stays on one side. Select and confirm may also be splits or files of their own.
    """

    source: Place = Field(
        description="demo:rotten-tomatoes, a csv/tsv/json/jsonl/parquet/arrow file, a folder datasets saved, or a "
        "hub data set",
    )
    subset: str | None = Field(None, description="configuration of a hub data set, such as sst2 of glue")
    split: str = Field("train", description="split of a hub data set or of a saved DatasetDict")
    select_split: Place | None = Field(
        None, description="split or file whose examples are select; none: cut from train"
    )
    confirm_split: Place | None = Field(
        None, description="split or file whose examples are confirm; none: cut from train"
    )
    text_column: str | None = Field(None, description="found by itself where unambiguous")
    pair_column: str | None = Field(None, description="second text of pairs; found by itself under usual names")
    label_column: str | None = Field(None, description="found by itself where unambiguous")
    prompt_column: str | None = Field(None, description="of sft; found by itself under usual names")
    completion_column: str | None = Field(None, description="of sft; found by itself under usual names")
    messages_column: str | None = Field(None, description="chats of sft; found by itself under usual names")
    select: float = Field(0.1, gt=0, lt=1, description="share of the examples for choosing")
    confirm: float = Field(0.15, gt=0, lt=1, description="share of the examples for judging")
    most: int = Field(2000, ge=2, description="examples of select, and of confirm, are no more than this")
    max_length: int = Field(128, ge=4, le=2**24, description="tokens kept of a text")

    @model_validator(mode="after")
    def _leaves_something(self) -> Data:
        if self.select + self.confirm > 0.8:
            raise ValueError(
                f"select ({self.select:g}) and confirm ({self.confirm:g}) leave less than 0.2 for training"
            )
        return self


class Method(Document):
    """What is trained beside the frozen base: the matrices in space.targets or adapters of them, and the new head."""

    kind: Annotated[list[MethodKind], BeforeValidator(_one_as_list)] = Field(
        ["lora"],
        min_length=1,
        description="lora; rslora: scaled by alpha / sqrt(rank); dora: the length of each row learns by itself; "
        "several are compared in one search. full: the matrices themselves",
    )
    alpha: float = Field(
        16.0,
        gt=0,
        allow_inf_nan=False,
        description="LoRA's alpha, one for all ranks (lora and dora are scaled by alpha / rank)",
    )
    lr_head: Literal["auto"] | Rate = Field(
        "auto", description="rate of the new output layer, the same for all candidates; auto: 2 / the model's width"
    )
    max_lr_b: Literal["auto"] | Rate = Field(
        "auto",
        description="ratios multiply: whatever λ and ρ say, no B learns faster than this; auto: ten times the rule "
        "of thumb's rate, or the highest lr_v of the space",
    )

    @field_validator("kind")
    @classmethod
    def _comparable(cls, kinds: list[MethodKind]) -> list[MethodKind]:
        if len(set(kinds)) != len(kinds):
            raise ValueError(f"kind lists a value twice: {kinds}")
        if "full" in kinds and len(kinds) > 1:
            raise ValueError(
                "full has no rank, and rates of another order than adapters: search it in a study of its own"
            )
        return kinds

    @property
    def full(self) -> bool:
        """Whether the matrices train themselves."""
        return self.kind == ["full"]


# More are a slip of the pen: all batches of a run are drawn before it.
MOST_STEPS = 10**7


class Horizon(Document):
    """Length of the full run, in epochs over *train* or in optimizer steps."""

    epochs: float | None = Field(None, gt=0, le=10_000)
    steps: int | None = Field(None, ge=1, le=MOST_STEPS)

    @model_validator(mode="after")
    def _one(self) -> Horizon:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give either epochs or steps")
        return self


class Training(Document):
    """Settings that every trial and the full run share."""

    batch_size: int = Field(16, ge=1, le=2**20, description="examples per optimizer step, over all devices")
    horizon: Horizon = Horizon(epochs=3.0)
    schedule: Literal["linear", "constant"] = Field("linear", description="linear: down to 0 at the last step")
    warmup: float = Field(0.0, ge=0, lt=1, description="share of the steps over which rates rise from 0")
    weight_decay: float = Field(0.0, ge=0, le=1)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    clip_norm: float | None = Field(1.0, gt=0, description="largest norm of a trial's gradient; null: none")
    precision: Precision = Field(
        "auto",
        description="of products with frozen weights; auto: bf16 where the device is fast at it, else fp32; int8 and "
        "nf4: weights are kept in 8 or 4 bits by bitsandbytes",
    )
    attention: Attention = Field("auto", description="how attention is computed; auto: as transformers chooses")
    checkpointing: bool = Field(
        False, description="keep the inputs of layers alone and compute the rest once more: less memory, more time"
    )

    @field_validator("betas")
    @classmethod
    def _below_one(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must be at least 0 and below 1: {list(betas)}")
        return betas


class Earlier(Document):
    """What an earlier search has found, where a new one begins; `autolr search --prior RUN` writes it."""

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
    prune: float = Field(
        0.001, ge=0, lt=1, description="chance of being the best below which a trial ends at a rung; 0: none ends"
    )
    slots: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)] = Field(
        "auto", description="trials trained at once; auto: as many as pay and fit the device's memory"
    )
    seeds: int = Field(3, ge=2, le=1000, description="seeds of the winner and each baseline in the verdict")
    prior: list[Earlier] = Field([], description="earlier searches' winners: tried first, and searched around")

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


class Budget(Document):
    """When the search stops: a total of trials, and a time after which no trial starts."""

    trials: int = Field(16, ge=1, le=10**6, description="a total: a search that goes on counts what it has")
    time: Annotated[Seconds, PlainSerializer(lambda s: f"{s:g}s", return_type=str)] | None = Field(
        None, description="such as 90s, 10m, 1.5h; null: none"
    )


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
    def _rho_of_adapters(self) -> Study:
        if self.method.full and self.space.rho != [1.0]:
            raise ValueError("space.rho is the ratio of B's rate to A's: method.kind full has neither, take it out")
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
        content, text = documents.read_yaml(Path(path))
        apply_overrides(content, overrides or [])
        return documents.validate(cls, content, str(path), text)

    def usual(self) -> dict[str, Any]:
        """Return what baselines have where the space is a choice between names: the first."""
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


def apply_overrides(content: dict[str, Any], overrides: list[str]) -> None:
    """Apply dotted assignments to the mapping of a study file, in place.

    Raises:
        DocumentError: an assignment has no `=`, a bad value, or goes through something that
            has no keys.
    """
    problems = []
    for override in overrides:
        key, equals, value = override.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(parts):
            problems.append(f"{override!r} is not of the form key=value, such as space.rank=[8,16]")
            continue
        try:
            parsed = documents.parse(value, override)
        except DocumentError:
            problems.append(f"{override!r}: {value!r} is not a YAML value")
            continue
        target = content
        for part in parts[:-1]:
            inner = target.setdefault(part, {})
            if isinstance(inner, str) and part == "data":
                inner = target[part] = {"source": inner}
            if not isinstance(inner, dict):
                inner = target[part] = {}
            target = inner
        target[parts[-1]] = parsed
    if problems:
        raise DocumentError("command line", problems)
