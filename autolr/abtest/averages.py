"""Scores of adapters and of their averages, as stock PEFT loads them: what a merge is chosen by."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from autolr import display
from autolr.abtest.arms import Arm
from autolr.abtest.ingredients import Ingredients, Rank
from autolr.abtest.trained_adapters import load
from autolr.data.batches import TokenSet
from autolr.errors import ModelError
from autolr.finetune.evaluation import outcomes
from autolr.merging.adapter import Adapter
from autolr.merging.average import average
from autolr.merging.cut import Spectrum, smallest_rank
from autolr.merging.greedy import Choice, Tried, choose
from autolr.model.quiet import quiet
from autolr.problem import Problem

# What an automatic rank may cost, as a share of the validation loss.
COST = 0.001


@dataclass(frozen=True)
class Outcome:
    """What an adapter scores on a split.

    Attributes:
        losses: of each example, float64 [examples].
        metric: the task's, over all of them.
    """

    losses: Tensor
    metric: float

    @property
    def loss(self) -> float:
        """The mean loss."""
        return float(self.losses.mean())


class Bench:
    """Scores adapters and averages of them, as stock PEFT loads them.

    Args:
        given: the adapters.
        problem: their base model, the examples, and the task.
        place: a folder for averages.
        say: receives a line for each score.
    """

    def __init__(self, given: Ingredients, problem: Problem, place: Path, say: Callable[[str], None]) -> None:
        self.given, self.problem, self.place, self.say = given, problem, place, say
        self.alone: list[Outcome] = []
        for arm in given.arms:
            self.alone.append(self._outcome(arm, problem.data.validation))
            say(f"{arm.label}: validation loss {display.loss(self.alone[-1].loss)}")
        if not any(math.isfinite(one.loss) for one in self.alone):
            raise ModelError("merge: no adapter has a finite validation loss. Their trainings diverged; train again")

    def validation(self, adapter: Adapter) -> Outcome:
        """Return what an adapter scores on validation."""
        return self._saved(adapter, self.problem.data.validation)

    def test(self, adapter: Adapter) -> Outcome:
        """Return what an adapter scores on test.

        Raises:
            ModelError: the loss is no finite number.
        """
        found = self._saved(adapter, self.problem.data.test)
        if not math.isfinite(found.loss):
            raise ModelError(f"{adapter.label}: has the test loss {found.loss}. Its training diverged; leave it out")
        return found

    def _saved(self, adapter: Adapter, tokens: TokenSet) -> Outcome:
        adapter.save(self.place)
        return self._outcome(Arm(adapter.label, str(self.place), None, self.place), tokens)

    def _outcome(self, arm: Arm, tokens: TokenSet) -> Outcome:
        """Score an adapter; the base is as before when it is done."""
        with quiet():
            tuned = load(arm, self.problem.backbone)
            losses, predictions = outcomes(tuned, tokens, self.problem.task)
            tuned.unload()  # type: ignore[operator]
        return Outcome(losses, self.problem.task.score(predictions, tokens.labels))

    def average(self, places: Sequence[int]) -> Adapter:
        """Return the exact average of the adapters at these places."""
        return average([self.given.held[index] for index in places], base=self.given.model)

    def loss(self, places: Sequence[int]) -> float:
        """Return the validation loss of an average."""
        found = self.validation(self.average(places)).loss
        names = ", ".join(self.given.arms[index].label for index in places)
        self.say(f"average of {names}: validation loss {display.loss(found)}")
        return found

    def choice(self) -> Choice:
        """Choose the ingredients."""
        return choose([one.loss for one in self.alone], self.loss)

    def all(self) -> Choice:
        """Take all adapters.

        Raises:
            ModelError: one has no finite loss.
        """
        losses = [one.loss for one in self.alone]
        for arm, loss in zip(self.given.arms, losses, strict=True):
            if not math.isfinite(loss):
                raise ModelError(f"{arm.source}: has the validation loss {loss}. Its training diverged; leave it out")
        order = tuple(sorted(range(len(losses)), key=losses.__getitem__))
        return Choice(order, self.loss(order), tuple(Tried(index, True, None, "all are taken") for index in order))

    def cut(self, choice: Choice, rank: Rank) -> Cut:
        """Return the average that was chosen, cut to the wanted rank."""
        whole = self.average(choice.taken)
        if whole.kind == "full":
            return Cut(whole, None, {}, {})
        spectrum = Spectrum(whole)
        tried: dict[int, float | None] = {}
        if rank == "exact" or (rank == "auto" and len(choice.taken) == 1):
            rank = spectrum.largest
        elif rank == "auto":
            rank = self._smallest(spectrum, choice, tried)
        return Cut(spectrum.cut(rank), spectrum.largest, dict(sorted(tried.items())), spectrum.values)

    def _smallest(self, spectrum: Spectrum, choice: Choice, tried: dict[int, float | None]) -> int:
        """Return the smallest rank that serves, and write the validation losses of those tried into `tried`."""
        tried[spectrum.largest] = choice.loss

        def loss_of(rank: int) -> float:
            found = self.validation(spectrum.cut(rank)).loss
            tried[rank] = finite(found)
            self.say(f"cut to rank {rank}: validation loss {display.loss(found)}")
            return found

        limit, best = choice.loss + COST * abs(choice.loss), self.alone[choice.taken[0]].loss
        if choice.loss < best:  # the cut must not lose what the merge has gained
            limit = min(limit, best)
        return smallest_rank(spectrum.largest, loss_of, limit)


@dataclass(frozen=True)
class Cut:
    """A merge at its final rank.

    Attributes:
        adapter: the result.
        exact_rank: of the exact average; None: whole matrices.
        tried: validation losses at the ranks that were tried.
        values: singular values of the exact average, by module.
    """

    adapter: Adapter
    exact_rank: int | None
    tried: dict[int, float | None]
    values: dict[str, list[float]]


def finite(value: float) -> float | None:
    """Return a number, or None for what is no finite one."""
    return value if math.isfinite(value) else None
