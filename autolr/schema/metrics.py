"""Every metric that a study can name: a new one is one function and one line of `METRICS`."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from autolr.errors import AutoLRError

# Of truth and predictions, both arrays [rows].
Function = Callable[[Any, Any], float]


@dataclass(frozen=True)
class Metric:
    """A score of predictions, shown beside the loss.

    Attributes:
        function: takes the truth and the predictions, arrays [rows]. For a language model the truth is the number
            of learned tokens of each example, and the prediction is what `reads` names.
        tasks: that it fits; it is the default of those that list it first.
        reads: what a language model's prediction of an example is: the share of its learned tokens that are
            likeliest (`right`), or its mean loss in nats (`loss`); None: the metric is of whole examples' labels.
    """

    function: Function
    tasks: tuple[str, ...]
    reads: Literal["right", "loss"] | None = None


def _accuracy(labels: Any, predictions: Any) -> float:
    return float((labels == predictions).mean())


def _f1(labels: Any, predictions: Any) -> float:
    from sklearn.metrics import f1_score

    # Of two classes the second is the positive one, as in GLUE; of more, the mean over classes.
    average = "binary" if max(labels.max(), predictions.max()) <= 1 else "macro"
    return float(f1_score(labels, predictions, average=average, zero_division=0.0))


def _matthews(labels: Any, predictions: Any) -> float:
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(labels, predictions))


def _pearson(labels: Any, predictions: Any) -> float:
    import numpy as np

    if np.ptp(labels) == 0 or np.ptp(predictions) == 0:
        return 0.0
    return float(np.corrcoef(labels, predictions)[0, 1])


def _spearman(labels: Any, predictions: Any) -> float:
    from scipy.stats import rankdata

    return _pearson(rankdata(labels), rankdata(predictions))


def _token_accuracy(counts: Any, right: Any) -> float:
    import numpy as np

    return float(np.average(right, weights=counts))


def _exact_match(counts: Any, right: Any) -> float:
    """Return the share of examples whose every token is the likeliest after those before it.

    Then, and only then, greedy decoding of the prompt gives the completion, token for token.
    """
    return float((right == 1.0).mean())


def _perplexity(counts: Any, losses: Any) -> float:
    import numpy as np

    return math.exp(min(float(np.average(losses, weights=counts)), 700.0))


METRICS: dict[str, Metric] = {
    "accuracy": Metric(_accuracy, ("classification",)),
    "f1": Metric(_f1, ("classification",)),
    "matthews": Metric(_matthews, ("classification",)),
    "pearson": Metric(_pearson, ("regression",)),
    "spearman": Metric(_spearman, ("regression",)),
    "token_accuracy": Metric(_token_accuracy, ("sft", "lm"), reads="right"),
    "exact_match": Metric(_exact_match, ("sft",), reads="right"),
    "perplexity": Metric(_perplexity, ("lm", "sft"), reads="loss"),
}


def metrics_of(task: str) -> list[str]:
    """Return the names of a task's metrics, its default first."""
    names = [name for name, metric in METRICS.items() if task in metric.tasks]
    return sorted(names, key=lambda name: METRICS[name].tasks[0] != task)


def imported(name: str, allow_code: bool) -> Function:
    """Import the function that `my_module:function` names; the working folder is searched first.

    Raises:
        AutoLRError: code must not run, or the function cannot be imported.
    """
    if not allow_code:
        raise AutoLRError(
            f"metric {name}: would run code that lies beside the study; if you trust it, give --allow-code "
            "(allow_code=True in Python)"
        )
    module, _, function = name.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        metric: Function = getattr(importlib.import_module(module), function)
    except Exception as error:
        raise AutoLRError(f"metric {name}: cannot be imported: {type(error).__name__}: {error}") from None
    finally:
        sys.path.remove(str(Path.cwd()))
    if not callable(metric):
        raise AutoLRError(f"metric {name}: is a {type(metric).__name__}, not a function")
    return metric


def called(function: Function, name: str, predictions: Any, labels: Any) -> float:
    """Call the user's own metric.

    Raises:
        AutoLRError: it fails, or returns no number.
    """
    try:
        return float(function(predictions, labels))
    except Exception as error:
        raise AutoLRError(
            f"metric {name}: failed: {type(error).__name__}: {error}; it is called with predictions and labels (of a "
            "language model, with the token ids of one example) and returns a number"
        ) from None
