"""AutoLR: finds how fast W_q and W_v should learn when a transformer is fine-tuned with LoRA.

import autolr

result = autolr.search(autolr.Study(model="...", data="reviews.csv"))
print(result.recipe.evidence.verdict)
autolr.train(result.recipe, out="full-run")
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from autolr.candidate import Candidate as Candidate
    from autolr.errors import AutoLRError as AutoLRError
    from autolr.foreign.export import export as export
    from autolr.foreign.terms import lora_config as lora_config
    from autolr.heads import Heads as Heads
    from autolr.heads import heads as heads
    from autolr.merging.result import MergeResult as MergeResult
    from autolr.recipe import Recipe as Recipe
    from autolr.report.figures import figure as figure
    from autolr.report.page import write_report as write_report
    from autolr.search.compare import Comparison as Comparison
    from autolr.search.compare import compare as compare
    from autolr.search.merge import merge as merge
    from autolr.search.result import SearchResult as SearchResult
    from autolr.search.run import search as search
    from autolr.study import Study as Study
    from autolr.theory import Theory as Theory
    from autolr.theory import theory as theory
    from autolr.train.hub import push_to_hub as push_to_hub
    from autolr.train.optimizer import create_optimizer as create_optimizer
    from autolr.train.optimizer import parameter_groups as parameter_groups
    from autolr.train.run import TrainResult as TrainResult
    from autolr.train.run import train as train
    from autolr.train.trainers import LogRates as LogRates
    from autolr.train.trainers import RoleRates as RoleRates
    from autolr.train.trainers import with_rates as with_rates
    from autolr.tune.function import tune as tune
    from autolr.tune.trainer import tune_trainer as tune_trainer

# Names and where they live; imported on first use, so that `import autolr` costs nothing.
_HOMES = {
    "AutoLRError": "autolr.errors",
    "Candidate": "autolr.candidate",
    "Comparison": "autolr.search.compare",
    "Heads": "autolr.heads",
    "LogRates": "autolr.train.trainers",
    "MergeResult": "autolr.merging.result",
    "Recipe": "autolr.recipe",
    "RoleRates": "autolr.train.trainers",
    "SearchResult": "autolr.search.result",
    "Study": "autolr.study",
    "Theory": "autolr.theory",
    "TrainResult": "autolr.train.run",
    "compare": "autolr.search.compare",
    "create_optimizer": "autolr.train.optimizer",
    "export": "autolr.foreign.export",
    "figure": "autolr.report.figures",
    "heads": "autolr.heads",
    "lora_config": "autolr.foreign.terms",
    "merge": "autolr.search.merge",
    "parameter_groups": "autolr.train.optimizer",
    "push_to_hub": "autolr.train.hub",
    "search": "autolr.search.run",
    "theory": "autolr.theory",
    "train": "autolr.train.run",
    "tune": "autolr.tune.function",
    "tune_trainer": "autolr.tune.trainer",
    "with_rates": "autolr.train.trainers",
    "write_report": "autolr.report.page",
}

__all__ = sorted(_HOMES)


class _Package(ModuleType):
    """Keeps `autolr.search`, `autolr.train`, `autolr.heads` and `autolr.theory` the functions, not their rooms."""

    def __setattr__(self, name: str, value: Any) -> None:
        # Importing autolr.search.run would bind the package autolr.search here.
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name == "figures":
        return importlib.import_module("autolr.figures")
    if name not in _HOMES:
        raise AttributeError(f"module 'autolr' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__", "figures"]
