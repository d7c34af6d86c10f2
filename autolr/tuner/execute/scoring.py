"""How candidates are scored: trials at their rungs, later trainings at their end. All by their averaged weights.

A high rate makes weights noisy; their running average predicts the end of the full run better.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from autolr.data.batches import TokenSet, joined
from autolr.data.pipeline import Prepared
from autolr.divergence import first_without_number, stand_in
from autolr.pack.pack import Pack
from autolr.progress.jobs import Running
from autolr.schema.study import Study
from autolr.tuner.execute.held_out import judges, last_steps
from autolr.tuner.execute.rung_examples import Subset
from autolr.tuner.stages import Judge, Stage
from autolr.tuner.workers.leases import Leases

# Attribute of the Optuna study: examples that each rung is scored on.
EXAMPLES = "rung_examples"


class Score(NamedTuple):
    """Loss and metric of a trial at a rung; or the place of an example that has no finite loss."""

    loss: float
    metric: float | None = None
    without: int | None = None


class RungScorer(Protocol):
    """Scores trials of one step."""

    evaluated_tokens: int

    def score(self, group: Sequence[Running]) -> list[Score]:
        """Return the score of each trial."""


class EndScorer(Protocol):
    """Scores trainings that are through."""

    evaluated_tokens: int

    def score(self, running: Sequence[Running]) -> list[bool]:
        """Score trainings; return for each whether all its losses are finite."""

    def record(self, one: Running) -> dict[str, Any]:
        """Return what the record of a training says of its losses; a diverged one's are filled in."""


class SubsetScorer:
    """Scores trials on as many held-out examples as tell them apart, the same for all workers.

    Args:
        pack: holds the trials.
        data: its *validation* judges them, and what they do not come to of *train*.
        study: gives the seed and the batch size.
        length: steps of a trial.
        claims: the first worker at a rung chooses the examples for all.
    """

    def __init__(self, pack: Pack, data: Prepared, study: Study, length: int, claims: Leases) -> None:
        self.pack = pack
        self.claims = claims
        self.data = data
        self.study = study
        self.length = length
        self.evaluated_tokens = 0

    @cached_property
    def subset(self) -> Subset:
        """The examples of each rung; those that come first choose how many."""
        parts = judges(self.study, self.data, self.length)
        return Subset(parts, self.study.training.batch_size, self.study.seed)

    def score(self, group: Sequence[Running]) -> list[Score]:
        """Return the score of each trial; all are at the same step."""
        slots = [one.slot for one in group]

        def evaluate(data: TokenSet) -> tuple[Tensor, Tensor]:
            self.evaluated_tokens += len(slots) * sum(data.lengths())
            return self.pack.evaluate(slots, data, averaged=True)

        step = slots[0].step
        since = step - max((rung for rung in self.study.search.rung_steps(self.length) if rung < step), default=0)
        if step in self.subset.counts:
            losses, said, labels = self.subset.score(evaluate, step, since)
        else:
            study = self.claims.study
            with self.claims.lock():
                known = study.user_attrs.get(EXAMPLES, {})
                self.subset.counts |= {int(at): int(count) for at, count in known.items()}
                losses, said, labels = self.subset.score(evaluate, step, since)
                study.set_user_attr(EXAMPLES, {str(at): count for at, count in self.subset.counts.items()})
        found = []
        for own, predictions in zip(losses, said, strict=True):
            place = first_without_number(own.tolist())
            metric = self.pack.task.score(predictions, labels) if place is None else None
            found.append(Score(float(own.mean()), metric, place))
        return found


class PackScorer:
    """Scores trainings at their end, on *validation* and what else their stage looks at.

    Args:
        pack: holds the trainings.
        data: the splits.
        study: of a search, whose trainings are also judged by examples of *train* that they have not learned from.
        stage: of the search. If it is judged on what is held out, it does not look at *test*.
    """

    def __init__(self, pack: Pack, data: Prepared, study: Study | None = None, stage: Stage | None = None) -> None:
        self.pack = pack
        self.data = data
        self.study = study
        self.sets = [data.validation, data.test]
        if study and stage and stage.judged_on is Judge.HELD_OUT:
            self.sets = [joined(judges(study, data, stage.steps))]
        self.evaluated_tokens = 0
        self._scores: dict[Running, list[tuple[Tensor, Tensor]]] = {}

    def score(self, running: Sequence[Running]) -> list[bool]:
        """Score trainings; return for each whether all its losses are finite."""
        for data in self.sets:
            losses, said = self.pack.evaluate([one.slot for one in running], data, averaged=True)
            self.evaluated_tokens += len(running) * sum(data.lengths())
            for place, one in enumerate(running):
                self._scores.setdefault(one, []).append((losses[place], said[place]))
        return [all(bool(losses.isfinite().all()) for losses, _ in self._scores[one]) for one in running]

    def record(self, one: Running) -> dict[str, Any]:
        """Return what the record of a training says of its losses; a diverged one's are filled in."""
        if one not in self._scores:
            self.score([one])
        task, (validation, test), count = (
            self.pack.task,
            (self.data.validation, self.data.test),
            len(self.data.validation),
        )
        least = stand_in(one.slot.losses, task.chance)  # a diverged training gives some examples no number
        scored = [(losses.where(losses.isfinite(), least), said) for losses, said in self._scores.pop(one)]
        losses, said = scored[0]
        one.score = float(losses.mean())
        found = {
            "validation_loss": float(losses[:count].mean()),
            "validation_metric": task.score(said[:count], validation.labels),
            "validation_losses": _rounded(losses[:count]),
            "unseen_losses": _rounded(losses[count:]),
            "unseen_examples": len(losses) - count,
        }
        if len(scored) > 1:
            losses, said = scored[1]
            found |= self._last_steps(one) | {
                "test_loss": float(losses.mean()),
                "test_metric": task.score(said, test.labels),
                "losses": _rounded(losses),
            }
        return found

    def _last_steps(self, one: Running) -> dict[str, Any]:
        """Return the losses of a full run's last steps, each from before it was learned."""
        slot, unseen = one.slot, range(0)
        if self.study and one.outcome == "finished":
            unseen = last_steps(self.study, slot, len(self.data.validation))
        return {
            "unseen_losses": [float(f"{slot.losses[step]:.8g}") for step in unseen],
            "unseen_examples": sum(len(slot.order[step]) for step in unseen),
        }


def _rounded(losses: Tensor) -> list[float]:
    return [float(f"{loss:.8g}") for loss in losses.tolist()]
