"""What a search's winner is compared with: candidates that need no search. Add one here, and its name to the study's.

A baseline inside the space is tried first, since it costs no more than any trial; one outside it is trained only in
the stages that compare.
"""

from __future__ import annotations

from enum import StrEnum

from autolr.schema.candidate import Candidate
from autolr.schema.space import Targets
from autolr.schema.study import Study
from autolr.tuner.propose.space import SearchSpace

USUAL_RANK = 8
PAPER_LR_Q, PAPER_RATIO = 1e-4, 4.0


class Baseline(StrEnum):
    """A candidate that needs no search, named as in the study."""

    DEFAULT = "default"
    SAME_LR = "same_lr"
    PAPER = "paper"
    WITH_K = "with_k"

    def candidate(self, space: SearchSpace, winner: Candidate | None = None) -> Candidate | None:
        """Return what the baseline trains; None if that depends on a winner who is not known yet."""
        if self is Baseline.SAME_LR:
            return winner.model_copy(update={"ratio": 1.0}) if winner else None
        ranks = getattr(space.distributions.get("rank"), "choices", (0,))
        point = {**space.usual, "rank": min(ranks, key=lambda r: (abs(r - USUAL_RANK), r))}
        if self is Baseline.PAPER:
            paper = Candidate(lr_v=PAPER_LR_Q * PAPER_RATIO, ratio=PAPER_RATIO, **point)
            return paper.model_copy(update={"lr_v": paper.rate, "ratio": 1.0}) if "ratio" in space.fixed else paper
        if self is Baseline.WITH_K:
            point["targets"] = WITH_K_TARGETS
        return Candidate(lr_v=space.rate, ratio=1.0, **point)

    def title(self, *, has_ratio: bool = True) -> str:
        """Return what the baseline is called in a sentence about a winner that has a ratio, or none."""
        return {
            Baseline.DEFAULT: "the default",
            Baseline.SAME_LR: "λ=1 at the same lr_v",
            Baseline.PAPER: "the paper's λ=4 at η_Q=1e-4" if has_ratio else "the paper's rate",
            Baseline.WITH_K: "training W_k too (λ=1)" if has_ratio else "training W_q, W_k and W_v (λ=1)",
        }[self]

    def is_in(self, label: str) -> bool:
        """Return True if a label names the baseline, alone or among others."""
        return self in label.split(" + ")


WITH_K_TARGETS: Targets = "qkv"


def default(space: SearchSpace) -> Candidate:
    """Return λ = 1 at the rate of the rule of thumb, the candidate that everything is measured against."""
    found = Baseline.DEFAULT.candidate(space)
    assert found is not None
    return found


def of(study: Study) -> tuple[Baseline, ...]:
    """Return a study's baselines."""
    return tuple(map(Baseline, study.baselines))


def targets_of(study: Study) -> list[Targets]:
    """Return all choices of matrices that are trained, by candidates or by baselines."""
    return [*study.space.targets, *([WITH_K_TARGETS] if Baseline.WITH_K in of(study) else [])]
