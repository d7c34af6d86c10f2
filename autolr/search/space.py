"""The space as Optuna sees it, and the rules of thumb as points in it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from autolr.candidate import Candidate
from autolr.errors import ModelError
from autolr.model.backbone import Backbone
from autolr.pack.pack import SlotConfig
from autolr.study import BaselineName, Range, Space, Study, Targets

# The Tinker cookbook's get_lr: 5e-4 * (2000 / hidden) ** p, with p fitted per family.
RULE_EXPONENTS = {"qwen": 0.0775}
RULE_EXPONENT = 0.781
# An automatic range reaches this factor below and above the rule's rate.
AUTO_FACTOR = 10.0
RULE_RANK = 8
HEAD_STEP = 2.0
PAPER_LR_Q, PAPER_RATIO = 1e-4, 4.0


def rule_rate(hidden_size: int, model_type: str) -> float:
    """Return the rule of thumb for the LoRA rate of a model of this width and family."""
    exponent = next((p for name, p in RULE_EXPONENTS.items() if model_type.startswith(name)), RULE_EXPONENT)
    return float(f"{5e-4 * (2000 / hidden_size) ** exponent:.3g}")


def describe(distribution: BaseDistribution) -> str:
    """Say in words what a dimension ranges over."""
    if isinstance(distribution, CategoricalDistribution):
        return ", ".join(c if isinstance(c, str) else f"{c:g}" for c in distribution.choices)
    assert isinstance(distribution, FloatDistribution)
    return f"{distribution.low:.3g} to {distribution.high:.3g}" + (" (log)" if distribution.log else "")


@dataclass(frozen=True)
class SearchSpace:
    """A study's space for one model.

    Attributes:
        distributions: Optuna's, for `lr_v`, `ratio` and `rank`; for `targets` where there is a choice.
        rate: the rule of thumb's rate for the model.
        lr_head: rate of the head, the same for all candidates; 0 where the model has none.
        steps: of the full run.
        targets: what is trained where there is no choice, and by the rules of thumb.
    """

    distributions: dict[str, BaseDistribution]
    rate: float
    lr_head: float
    steps: int
    targets: Targets = "qv"

    @classmethod
    def of(cls, study: Study, backbone: Backbone, steps: int) -> SearchSpace:
        """Fit the study's space to the model and to full runs of `steps`.

        Raises:
            ModelError: a rank is larger than a matrix allows.
        """
        limit = backbone.projections.largest_rank
        if max(study.space.rank) > limit:
            raise ModelError(
                f"space.rank {max(study.space.rank)}: the smallest of the tuned matrices of {study.model!r} "
                f"allows at most {limit}"
            )
        rate = rule_rate(backbone.hidden_size, backbone.model_type)
        lr_head = study.method.lr_head
        if not backbone.head:
            lr_head = 0.0
        elif lr_head == "auto":
            # Adam moves each weight of the head by about the rate, and a logit sums them over the width.
            lr_head = float(f"{HEAD_STEP / backbone.hidden_size:.3g}")
        for targets in study.space.targets:
            backbone.projections.of(targets)
        return cls(_distributions(study.space, rate), rate, lr_head, steps, study.space.targets[0])

    def candidate(self, params: Mapping[str, Any]) -> Candidate:
        """Return Optuna's parameters as a candidate."""
        return Candidate(**{"targets": self.targets, **params})

    def params(self, candidate: Candidate) -> dict[str, Any]:
        """Return a candidate as Optuna's parameters."""
        return candidate.model_dump(include=set(self.distributions))

    def slot(self, candidate: Candidate, seed: int, length: int) -> SlotConfig:
        """Return the first `length` steps of the candidate's full run."""
        return SlotConfig(candidate.rates(self.lr_head), candidate.rank, seed, self.steps, stop=length)

    def holds(self, candidate: Candidate) -> bool:
        """Tell whether the candidate is a point of the space."""
        values = candidate.model_dump()
        if "targets" not in self.distributions and candidate.targets != self.targets:
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

    def rule(self, name: BaselineName, winner: Candidate | None = None) -> Candidate:
        """Return a rule of thumb as a candidate.

        Args:
            name: `rule`: λ = 1 at the rule's rate; `paper`: η_Q = 1e-4 and λ = 4; `qkv`: as
                `rule`, W_k trained as well; `winner_lr`: λ = 1 at the winner's lr_v and rank.
            winner: needed for `winner_lr`.
        """
        ranks = self.distributions["rank"].choices  # type: ignore[attr-defined]
        rank = min(ranks, key=lambda r: (abs(r - RULE_RANK), r))
        if name == "paper":
            return Candidate(lr_v=PAPER_LR_Q * PAPER_RATIO, ratio=PAPER_RATIO, rank=rank, targets=self.targets)
        if name == "winner_lr":
            assert winner is not None
            return winner.model_copy(update={"ratio": 1.0})
        return Candidate(lr_v=self.rate, ratio=1.0, rank=rank, targets="qkv" if name == "qkv" else self.targets)


def _distributions(space: Space, rate: float) -> dict[str, BaseDistribution]:
    lr_v = Range(low=rate / AUTO_FACTOR, high=rate * AUTO_FACTOR) if isinstance(space.lr_v, str) else space.lr_v
    found: dict[str, BaseDistribution] = {
        "lr_v": _distribution(lr_v),
        "ratio": _distribution(space.ratio),
        "rank": CategoricalDistribution(sorted(space.rank)),
    }
    if len(space.targets) > 1:
        found["targets"] = CategoricalDistribution(space.targets)
    return found


def _distribution(values: Range | list[float]) -> BaseDistribution:
    if isinstance(values, Range):
        return FloatDistribution(values.low, values.high, log=values.log)
    return CategoricalDistribution(sorted(values))
