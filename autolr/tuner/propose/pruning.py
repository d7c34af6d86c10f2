"""Which pruner a search uses, and why a trial was pruned.

A new pruner is any pruner of Optuna: its class in a file of its own, and a line here. If users choose it in a study
file, `autolr/schema/study.py` gets the setting.
"""

from __future__ import annotations

import optuna
from optuna.pruners import BasePruner, NopPruner
from optuna.trial import FrozenTrial

from autolr.schema.study import Search
from autolr.tuner.propose.pruner import ChancePruner


def make_pruner(search: Search, length: int) -> BasePruner:
    """Return the pruner that a study asks for.

    Args:
        search: the study's settings.
        length: steps of a trial.
    """
    if search.prune_below == 0:
        return NopPruner()
    return ChancePruner(search.rung_steps(length), length, search.prune_below)


def reason(study: optuna.Study, trial: FrozenTrial) -> str:
    """Return why the study's pruner ended a trial, in the pruner's own words if it has a method `reason`."""
    own = getattr(study.pruner, "reason", None)
    return str(own(study, trial)) if own else f"pruned by {type(study.pruner).__name__}"
