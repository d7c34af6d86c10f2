"""What a training function of the user's own tells, and is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from autolr.pack.slots import SlotConfig
from autolr.schema.recipe import Rates


@dataclass
class Steps:
    """How far a training is: what those who watch see of a slot.

    Attributes:
        config: the length of the training, and its seed.
        losses: those reported.
    """

    config: SlotConfig
    step: int = 0
    losses: list[float] = field(default_factory=list)
    tokens: int = 0
    unfit: str | None = None

    @property
    def done(self) -> bool:
        """Whether the training is at its end."""
        return self.step >= self.config.length


class Report:
    """Given to a training function: takes the losses it measures, and says when to stop.

    Attributes:
        seed: of this training; draw adapters and data order from it.
        steps: optimizer steps to train.
        horizon: optimizer steps of the full run, whose schedule this training begins.
        rates: of each role, as `autolr.with_rates` takes them.
        is_tested: whether this training is compared on examples that no choice has seen, so that what the function
            returns counts.
    """

    def __init__(self, slot: Steps, reached: Callable[[float], None], *, is_tested: bool = False) -> None:
        self.seed = slot.config.seed
        self.steps = slot.config.length
        self.horizon = slot.config.steps
        rates = {role: rate for role, rate in slot.config.rates.items() if rate > 0}
        self.rates = Rates.model_validate({**rates, "b": dict(slot.config.rates_b)})
        self.is_tested = is_tested
        self._slot = slot
        self._reached = reached
        self._stopped = False

    def __call__(self, step: int, loss: float) -> None:
        """Tell the loss on *validation*: examples that are not trained on, and by which candidates are chosen.

        Args:
            step: optimizer steps done, 1 to `steps`; at least one report must be of the last.
            loss: lower is better; a mean over examples, whatever its unit: any number that `float` takes. One that is
                no finite number says that the training has diverged.

        Raises:
            TypeError: the loss is no number.
            ValueError: steps go backwards, or past the end.
        """
        step, loss = int(step), _number(loss, step)
        if not self._slot.step < step <= self.steps:
            raise ValueError(f"report({step}, ...): steps rise, after {self._slot.step} up to {self.steps}")
        self._slot.step = step
        self._slot.losses.append(loss)
        self._reached(loss)

    def stop(self) -> None:
        """Let `should_stop` say so from now on."""
        self._stopped = True

    def should_stop(self) -> bool:
        """Return True if the function must return now: the trial is pruned, has diverged, or is at its end."""
        return self._stopped or self._slot.done


def judged(returned: Any, validation: float) -> list[float]:
    """Return what a training function has returned as losses of *test*: of each example, or one mean.

    Args:
        returned: losses of examples that no choice has seen, numbers of any library; None: there are none, and
            `validation` stands for them.
        validation: the last loss reported.

    Raises:
        TypeError: it is something else.
    """
    if returned is None:
        return [validation]
    losses: list[float] = []
    if not isinstance(returned, (str, bytes, Mapping, Set)):
        with suppress(TypeError, ValueError, OverflowError):
            losses = _floats(returned)
    if not losses:
        raise TypeError(
            "a training function returns the loss on examples that no choice has seen, one number or a list with one "
            f"for each example, or None; not {type(returned).__name__}"
        )
    return losses


def _floats(returned: Any) -> list[float]:
    """Return one number, such as an array without dimensions, as a list of one; otherwise each of several."""
    try:
        several = list(returned)
    except TypeError:
        return [float(returned)]
    return [float(loss) for loss in several]


def _number(loss: Any, step: int) -> float:
    try:
        return float(loss)
    except (TypeError, ValueError, OverflowError):
        raise TypeError(f"report({step}, {loss!r}): the loss must be one number, not {type(loss).__name__}") from None
