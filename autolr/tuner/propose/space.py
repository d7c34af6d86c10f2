"""The space as Optuna sees it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from autolr.errors import ModelError
from autolr.model import adapters
from autolr.model.backbone import Backbone
from autolr.pack.slots import SlotConfig
from autolr.schema.candidate import Candidate
from autolr.schema.space import Range, has_ratio
from autolr.schema.study import Study

# The Tinker cookbook's get_lr: 5e-4 * (2000 / hidden) ** p, with p fitted per family.
RULE_EXPONENTS = {"qwen": 0.0775}
RULE_EXPONENT = 0.781
# "LoRA Without Regret" (Schulman et al., 2025) finds LoRA's best rate ten times that of full fine-tuning.
FULL_SHARE = 0.1
# An automatic range reaches this factor below and above the default's rate.
AUTO_FACTOR = 10.0
HEAD_STEP = 2.0


def rule_rate(hidden_size: int, model_type: str, *, full: bool = False) -> float:
    """Return the rule of thumb for the rate of a model of this width and family: of LoRA, or of full matrices."""
    exponent = next((p for name, p in RULE_EXPONENTS.items() if model_type.startswith(name)), RULE_EXPONENT)
    return float(f"{5e-4 * (FULL_SHARE if full else 1.0) * (2000 / hidden_size) ** exponent:.3g}")


def describe(distribution: BaseDistribution) -> str:
    """Return in words what a dimension ranges over."""
    if isinstance(distribution, CategoricalDistribution):
        return ", ".join(c if isinstance(c, str) else f"{c:g}" for c in distribution.choices)
    assert isinstance(distribution, FloatDistribution)
    return f"{distribution.low:.3g} to {distribution.high:.3g}" + (" (log)" if distribution.log else "")


@dataclass(frozen=True)
class SearchSpace:
    """A study's space for one model.

    Attributes:
        distributions: Optuna's, for `lr_v` and, unless matrices train whole, `rank`; for `ratio` where anything
            has one; for `targets`, `kind` and `loraplus_lr_ratio` where there is a choice.
        fixed: what every candidate has where there is no choice.
        usual: `targets` and `kind` of baselines: the first choices.
        rate: the rule of thumb's rate for the model.
        lr_head: rate of the head, the same for all candidates; 0 where the model has none.
        max_lr_b: the largest rate of any B.
        steps: of the full run.
    """

    distributions: dict[str, BaseDistribution]
    fixed: dict[str, Any]
    usual: dict[str, Any]
    rate: float
    lr_head: float
    max_lr_b: float
    steps: int

    @classmethod
    def of(cls, study: Study, backbone: Backbone, steps: int) -> SearchSpace:
        """Fit the study's space to the model and to full runs of `steps`.

        Raises:
            ModelError: a rank is larger than a matrix allows, or a method cannot train the matrices.
        """
        space, method = study.space, study.method
        limit = backbone.projections.largest_rank
        if max(space.rank) > limit and not method.full:
            raise ModelError(
                f"space.rank {max(space.rank)}: the smallest of the tuned matrices of {study.model!r} "
                f"allows at most {limit}"
            )
        for targets, kind in itertools.product(space.targets, method.kind):
            adapters.check(backbone, backbone.projections.of(targets), kind)
        rate = rule_rate(backbone.hidden_size, backbone.model_type, full=method.full)
        lr_head: str | float = method.lr_head
        if not backbone.head:
            lr_head = 0.0
        elif lr_head == "auto":
            # Adam moves each weight of the head by about the rate, and a logit sums them over the width.
            lr_head = float(f"{HEAD_STEP / backbone.hidden_size:.3g}")
        return cls.around(study, rate, float(lr_head), steps)

    @classmethod
    def around(cls, study: Study, rate: float, lr_head: float, steps: int) -> SearchSpace:
        """Return the study's space around a rate, whatever the model.

        Args:
            study: gives the space.
            rate: what an automatic range of lr_v is centred on, and the baselines train at.
            lr_head: rate of the head; 0 where there is none.
            steps: of the full run.
        """
        method, dimensions = study.method, _distributions(study, rate)
        most = max(_decimal(AUTO_FACTOR * rate), _largest(dimensions["lr_v"]))
        max_lr_b = most if method.max_lr_b == "auto" else method.max_lr_b
        return cls(dimensions, study.fixed(), study.usual(), rate, lr_head, max_lr_b, steps)

    def candidate(self, params: Mapping[str, Any]) -> Candidate:
        """Return Optuna's parameters as a candidate."""
        return Candidate(**{**self.fixed, **params})

    def params(self, candidate: Candidate) -> dict[str, Any]:
        """Return a candidate as Optuna's parameters."""
        return candidate.model_dump(include=set(self.distributions))

    def slot(self, candidate: Candidate, seed: int, length: int) -> SlotConfig:
        """Return the first `length` steps of the candidate's full run."""
        rates, rates_b = candidate.rates(self.lr_head), candidate.rates_b(self.max_lr_b)
        return SlotConfig.of(candidate, rates, rates_b, seed, self.steps, length)

    def holds(self, candidate: Candidate) -> bool:
        """Return True if the candidate is a point of the space."""
        values = candidate.model_dump()
        if any(values[name] != value for name, value in self.fixed.items()):
            return False
        return all(
            value in d.choices if isinstance(d, CategoricalDistribution) else d.low <= value <= d.high  # type: ignore[attr-defined]
            for value, d in ((values[name], d) for name, d in self.distributions.items())
        )

    def points(self) -> list[dict[str, float]] | None:
        """Return all points of a space of choices alone; None where a dimension is a range."""
        choices: list[list[Any]] = []
        for distribution in self.distributions.values():
            if isinstance(distribution, CategoricalDistribution):
                choices.append(list(distribution.choices))
            elif isinstance(distribution, FloatDistribution) and distribution.single():
                choices.append([distribution.low])
            else:
                return None
        return [dict(zip(self.distributions, point, strict=True)) for point in itertools.product(*choices)]


def _largest(distribution: BaseDistribution) -> float:
    if isinstance(distribution, CategoricalDistribution):
        return max(float(choice) for choice in distribution.choices)  # type: ignore[arg-type]
    assert isinstance(distribution, FloatDistribution)
    return distribution.high


def _distributions(study: Study, rate: float) -> dict[str, BaseDistribution]:
    space = study.space
    auto = Range(low=_decimal(rate / AUTO_FACTOR), high=_decimal(rate * AUTO_FACTOR))
    lr_v = auto if isinstance(space.lr_v, str) else space.lr_v
    found: dict[str, BaseDistribution] = {"lr_v": _distribution(lr_v)}
    if any(map(has_ratio, space.targets)):
        found["ratio"] = _distribution(space.ratio)
    if not study.method.full:
        found["rank"] = CategoricalDistribution(sorted(space.rank))
    if len(space.targets) > 1:
        found["targets"] = CategoricalDistribution(space.targets)
    if len(study.method.kind) > 1:
        found["kind"] = CategoricalDistribution(study.method.kind)
    if isinstance(space.loraplus_lr_ratio, Range) or len(space.loraplus_lr_ratio) > 1:
        found["loraplus_lr_ratio"] = _distribution(space.loraplus_lr_ratio)
    return found


def _decimal(rate: float) -> float:
    """Return a rate as it is written: 0.0181, not 0.018099999999999998."""
    return float(f"{rate:.6g}")


def _distribution(values: Range | list[float]) -> BaseDistribution:
    if isinstance(values, Range):
        return FloatDistribution(values.low, values.high, log=values.log)
    return CategoricalDistribution(sorted(values))
