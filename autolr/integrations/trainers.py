"""A recipe's rates in the trainers people have: transformers.Trainer and what is built on it, such as TRL's.

    import autolr

    Trainer = autolr.with_rates(SFTTrainer, autolr.Recipe.load("runs/mine/recipe.yaml"))

or, the same as a class of one's own:

    class MyTrainer(autolr.RoleRates, SFTTrainer):
        rates = {"lr_q": 1e-4, "ratio": 8}
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from torch import nn, optim
from transformers import Trainer, TrainerCallback
from transformers.trainer_optimizer import is_optimizer_factory

from autolr.errors import AutoLRError
from autolr.finetune.param_groups import UNDECAYED, RatesLike, groups_at, split_by_decay

T = TypeVar("T", bound=type)


class LogRates(TrainerCallback):
    """Adds the rate of each role to what a Trainer logs: `lr_q`, `lr_v`, `lr_head`, ...

    A Trainer's own `learning_rate` is that of its first group alone. Trackers, such as W&B, see the rates if this
    callback comes before theirs, which `RoleRates` sees to.
    """

    def __init__(self) -> None:
        self._rates: dict[str, float] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        """Remember the rates of this step; the schedule changes them before they are told."""
        groups = [group for group in optimizer.param_groups if not group.get("name", "").endswith(UNDECAYED)]
        self._rates = {f"lr_{group['name']}": float(group["lr"]) for group in groups if "name" in group}

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Add the rates where a Trainer tells its own."""
        if not logs or "learning_rate" not in logs:
            return
        logs.update(self._rates)
        if state.log_history and state.log_history[-1].get("step") == state.global_step:
            state.log_history[-1].update(self._rates)


class RoleRates:
    """Mixin for subclasses of transformers.Trainer: each role learns at its own rate.

    Put it before the trainer: `class MyTrainer(RoleRates, SFTTrainer)`. Optimizer, schedule, weight decay and all
    else come from the trainer's arguments; their `learning_rate` alone counts for nothing. A schedule scales the
    rates of all roles alike, so the ratio holds from the first step to the last.

    Attributes:
        rates: a recipe or its `rates`, or keyword arguments of `autolr.parameter_groups`, such as
            `{"lr_q": 1e-4, "ratio": 8}`.
    """

    rates: RatesLike | None = None

    def create_optimizer(self: Any, model: nn.Module | None = None) -> optim.Optimizer:
        """Return the arguments' optimizer over groups that hold every trainable parameter exactly once.

        Raises:
            ValueError: see `autolr.parameter_groups`.
            AutoLRError: no rates are given, the optimizer chooses its parameters itself, or it was made elsewhere.
        """
        kinds = type(self).__mro__
        _refuse_own(kinds[kinds.index(RoleRates) + 1 :])
        if self.optimizer is not None and not all("name" in group for group in self.optimizer.param_groups):
            raise AutoLRError(
                "optimizers=: this optimizer's groups are not the roles' groups. Give "
                "optimizer_cls_and_kwargs=(kind, options), or autolr.create_optimizer(model, recipe)"
            )
        if self.optimizer is None:
            model = self.model if model is None else model
            kind, options = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(self.args, model)
            if is_optimizer_factory(kind) or {"params", "model", "optimizer_dict"} & options.keys():
                raise AutoLRError(
                    f"optim {self.args.optim}: chooses its parameters and their rates itself; take adamw_torch or "
                    "another that is given groups"
                )
            if self.rates is None:
                raise AutoLRError(
                    f"{type(self).__name__}: has no rates; write in the class rates = autolr.Recipe.load(...), or "
                    'rates = {"lr_q": 1e-4, "ratio": 8}'
                )
            decayed = self.get_decay_parameter_names(model)
            groups = split_by_decay(model, groups_at(model, self.rates), self.args.weight_decay, decayed)
            self.optimizer = kind(groups, **options)
            if not any(isinstance(one, LogRates) for one in self.callback_handler.callbacks):
                self.callback_handler.callbacks.insert(0, LogRates())  # before the trackers
        optimizer: optim.Optimizer = self.optimizer
        return optimizer


def with_rates(trainer: T, rates: RatesLike) -> T:
    """Return a trainer's class with a rate for each role; use it in place of the trainer.

    Args:
        trainer: transformers.Trainer or a subclass, such as TRL's SFTTrainer or DPOTrainer.
        rates: a recipe or its `rates`, or keyword arguments of `autolr.parameter_groups`.

    Raises:
        TypeError: it is no such class.
        AutoLRError: it makes an optimizer of its own.
    """
    if not (isinstance(trainer, type) and issubclass(trainer, Trainer)):
        raise TypeError(f"with_rates is for subclasses of transformers.Trainer: {trainer!r}")
    _refuse_own(trainer.__mro__)
    return type(trainer.__name__, (RoleRates, trainer), {"rates": rates, "__module__": trainer.__module__})  # type: ignore[return-value]


def _refuse_own(kinds: Sequence[type]) -> None:
    """Refuse trainers whose own optimizer the rates of the roles would replace without a word.

    Raises:
        AutoLRError: a class makes one. What transformers and TRL make is AdamW by the arguments.
    """
    for kind in kinds:
        if issubclass(kind, RoleRates) or kind.__module__.partition(".")[0] in ("transformers", "trl", "builtins"):
            continue
        for name in ("create_optimizer", "create_optimizer_and_scheduler"):
            if name in vars(kind):
                raise AutoLRError(
                    f"{kind.__name__}.{name}: makes an optimizer of its own, which the rates of the roles would "
                    "replace. Remove it and give optimizer_cls_and_kwargs=(kind, options), or give its groups by "
                    "autolr.parameter_groups"
                )
