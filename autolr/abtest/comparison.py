"""The result of an A/B comparison: scores of its arms, tests against the first, and what they say."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from autolr import display
from autolr.abtest.arms import Arm
from autolr.rundir.records import Record, losses_of
from autolr.schema.recipe import Interval
from autolr.schema.yaml_io import Document
from autolr.tuner.judge.paired_stats import LEVEL, POWER, PairedDifference, p_value

Outcome = Literal["better", "worse", "equal", "inconclusive"]


class ArmScore(Document):
    """What an arm has scored, mean over its seeds."""

    label: str
    source: str
    setting: str = Field(description="candidate, method and steps in words")
    validation_loss: float
    test_loss: float
    test_metric: float
    diverged: int = Field(0, description="runs that diverged; the mean includes them with a loss at chance level")
    tokens: int = 0
    seconds: float = 0.0


class Pair(Document):
    """An arm against the first."""

    label: str
    outcome: Outcome = Field(
        description="of this arm; equal: no difference that matters; inconclusive: neither is shown"
    )
    gain: Interval = Field(description="test loss of the first minus this arm's: above 0, this arm is better")
    level: float = Field(description="confidence level of the interval, corrected for several arms")
    p_examples: float = Field(description="paired t-test over examples, each its mean over the seeds")
    p_seeds: float | None = Field(None, description="paired t-test over seeds, each its mean over the examples")
    power: float = Field(description="power: probability of detecting a difference of `worth`")
    detectable: float = Field(description="smallest true difference that is detected with a power of 80 %")
    size: float = Field(description="difference that seeds_needed and examples_needed detect with a power of 80 %")
    seeds_needed: int | None = Field(None, description="with as many examples; null: no number of seeds does")
    examples_needed: int | None = Field(None, description="with as many seeds; null: no number of examples does")


class Comparison(Document):
    """The result of an A/B comparison; the first arm is what the others are measured against."""

    format: int = Field(1, ge=1, le=1)
    data: str
    metric: str
    examples: int = Field(description="of test, on which all are judged")
    seeds: list[int] = Field(description="of the trainings; empty for adapters that came trained")
    worth: float = Field(description="the smallest difference of test loss that matters")
    verdict: str
    notes: list[str] = []
    arms: list[ArmScore]
    pairs: list[Pair]
    device: str
    versions: dict[str, str] = {}
    commit: str | None = None

    def _repr_html_(self) -> str:
        """Return the comparison as a notebook shows it."""
        judged = f"{self.examples} test examples of {self.data}, {len(self.seeds) or 1} trainings of each"
        gains = {pair.label: pair for pair in self.pairs}
        rows = [
            (
                arm.label,
                arm.setting,
                f"{display.loss(arm.test_loss)}",
                f"{arm.test_metric:.4f}",
                ""
                if (pair := gains.get(arm.label)) is None
                else f"{display.gap(pair.gain.mean)} ({display.gap(pair.gain.low)} to {display.gap(pair.gain.high)})",
            )
            for arm in self.arms
        ]
        heads = ["who", "what", "test loss", self.metric, "gain over the first"]
        return display.table(self.verdict, [("judged on", judged)]) + display.grid(heads, rows)

    def to_json(self) -> str:
        """Return the comparison as JSON."""
        return json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False)


def sentence(first: str, pairs: Sequence[Pair], worth: float, *, trained: bool) -> str:
    """Return what the comparison has shown, and what would settle what it has not."""
    return " ".join(_say(first, pair, worth, trained=trained) for pair in pairs)


def _say(first: str, pair: Pair, worth: float, *, trained: bool) -> str:
    gain = pair.gain
    by = f"{display.loss(abs(gain.mean))} of test loss"
    bounds = sorted([abs(gain.low), abs(gain.high)])
    level = f"{100 * pair.level:.3g}% interval"
    if pair.outcome in ("better", "worse"):
        little = "" if abs(gain.mean) >= worth else f", which is less than what matters ({worth:.2g})"
        shown = f"{by} ({level} {display.loss(bounds[0])} to {display.loss(bounds[1])})"
        return f"{pair.label} is {pair.outcome} than {first} by {shown}{little}."
    seen = f"{display.gap(gain.mean)}, {level} {display.gap(gain.low)} to {display.gap(gain.high)}"
    if pair.outcome == "equal":
        return f"{pair.label} and {first} differ by nothing that matters ({worth:.2g}): {seen}."
    text = (
        f"It is inconclusive whether {pair.label} is better than {first}: {seen}; a difference of {worth:.2g} would "
        f"be found with {100 * pair.power:.0f}% chance."
    )
    ways = []
    if trained and pair.seeds_needed is not None:
        ways.append(f"{pair.seeds_needed} seeds")
    if pair.examples_needed is not None:
        ways.append(f"{pair.examples_needed:,} test examples")
    if ways:
        return f"{text} If {pair.size:.2g} is the truth, {' or '.join(ways)} would show it in 8 of 10 cases."
    return f"{text} Neither more seeds nor more examples alone would settle {pair.size:.2g}: take more of both."


def arm_score(arm: Arm, trainings: Sequence[Record]) -> ArmScore:
    """Return the scores of an arm, each the mean over its trainings."""

    def mean(value: Callable[[Record], float]) -> float:
        return float(np.mean([value(record) for record in trainings]))

    recipe = arm.recipe
    setting = "adapter" if arm.adapter is not None else ""
    if recipe is not None:
        length = "" if arm.adapter is not None else f", {max(len(record.curve) for record in trainings)} steps"
        setting = f"{setting} {recipe.candidate.describe()}{length}".strip()
    return ArmScore(
        label=arm.label,
        source=arm.source,
        setting=setting,
        validation_loss=mean(lambda record: record.validation_loss),
        test_loss=mean(lambda record: record.tested),
        test_metric=mean(lambda record: record.test_metric or 0.0),
        diverged=sum(record.diverged for record in trainings),
        tokens=sum(record.tokens for record in trainings),
        seconds=round(sum(record.seconds for record in trainings), 2),
    )


def pair_of(first: Arm, arm: Arm, trainings: dict[str, list[Record]], worth: float, pairs: int) -> Pair:
    """Compare an arm with the first; with several arms the intervals are simultaneous 90 % ones (Bonferroni)."""
    differences = losses_of(trainings[first.label]) - losses_of(trainings[arm.label])
    spread, level = PairedDifference.of(differences), 1 - (1 - LEVEL) / pairs
    gain = spread.interval(level)
    size = max(abs(gain.mean), worth)
    outcome: Outcome = "inconclusive"
    if gain.low > 0 or gain.high < 0:
        outcome = "better" if gain.mean > 0 else "worse"
    elif max(-gain.low, gain.high) < worth:
        outcome = "equal"
    return Pair(
        label=arm.label,
        outcome=outcome,
        gain=gain,
        level=level,
        p_examples=p_value(differences.mean(0)),
        p_seeds=p_value(differences.mean(1)) if len(differences) > 1 else None,
        power=spread.power(worth, level),
        detectable=spread.detectable(level, POWER),
        size=size,
        seeds_needed=spread.seeds_needed(size, level),
        examples_needed=spread.examples_needed(size, level),
    )


def notes_on(arms: Sequence[Arm], seeds: int, trainings: dict[str, list[Record]]) -> list[str]:
    """Return what a reader must know beside the scores."""
    notes = [
        f"{arm.label}: {count} of {seeds} trainings diverged; the mean includes them"
        for arm in arms
        if (count := sum(record.diverged for record in trainings[arm.label]))
    ]
    if len({arm.to_train.steps for arm in arms}) > 1:
        notes.append("the recipes have full runs of different lengths")
    return notes
