"""What a model is asked to do: a loss for each example, predictions, and a score of them.

A new task (language modelling) is a new class with these methods.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional

from autolr.study import MetricName, TaskName


@dataclass(frozen=True)
class Task(ABC):
    """A task.

    Attributes:
        classes: names of the model's outputs.
        metric: by which predictions are scored, beside the loss.
    """

    classes: tuple[str, ...]
    metric: MetricName = "accuracy"

    @property
    @abstractmethod
    def chance(self) -> float:
        """Loss of a model that knows nothing."""

    @abstractmethod
    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each example, [rows], for `logits` [rows, outputs]."""

    @abstractmethod
    def predictions(self, logits: Tensor) -> Tensor:
        """Return what the model says of each example, [rows]."""

    def score(self, predictions: Tensor, labels: Sequence[float]) -> float:
        """Return the metric of predictions, [rows]; higher is better, 0.0 where it is undefined."""
        found = _METRICS[self.metric](np.asarray(labels), predictions.double().cpu().numpy())
        return found if math.isfinite(found) else 0.0


@dataclass(frozen=True)
class Classification(Task):
    """One class for each text or pair. The loss is the cross-entropy."""

    @property
    def chance(self) -> float:
        """Loss of equal odds, in nats."""
        return math.log(len(self.classes))

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the cross-entropy in nats."""
        return functional.cross_entropy(logits, labels, reduction="none")

    def predictions(self, logits: Tensor) -> Tensor:
        """Return the class of the largest logit."""
        return logits.argmax(-1)


@dataclass(frozen=True)
class Regression(Task):
    """A number for each text or pair. The loss is the squared error.

    Attributes:
        variance: of the labels: the loss of a model that always says their mean.
    """

    variance: float = 1.0

    @property
    def chance(self) -> float:
        """Variance of the labels."""
        return self.variance

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the squared error."""
        return (logits.squeeze(-1) - labels.to(logits.dtype)).square()

    def predictions(self, logits: Tensor) -> Tensor:
        """Return the number itself."""
        return logits.squeeze(-1)


def task_of(name: TaskName, classes: Sequence[str], metric: MetricName | None, labels: Sequence[float] = ()) -> Task:
    """Return a task.

    Args:
        name: of the task.
        classes: names of the model's outputs.
        metric: None: accuracy, or Pearson's correlation.
        labels: of the training examples, whose variance a regression is measured against.
    """
    if name == "regression":
        variance = float(np.var(labels)) if len(labels) else 1.0
        return Regression(tuple(classes), metric or "pearson", variance)
    return Classification(tuple(classes), metric or "accuracy")


def _f1(labels: Any, predictions: Any) -> float:
    from sklearn.metrics import f1_score

    # Of two classes the second is the positive one, as in GLUE; of more, the mean over classes.
    average = "binary" if max(labels.max(), predictions.max()) <= 1 else "macro"
    return float(f1_score(labels, predictions, average=average, zero_division=0.0))


def _matthews(labels: Any, predictions: Any) -> float:
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(labels, predictions))


def _pearson(labels: Any, predictions: Any) -> float:
    if np.ptp(labels) == 0 or np.ptp(predictions) == 0:
        return 0.0
    return float(np.corrcoef(labels, predictions)[0, 1])


def _spearman(labels: Any, predictions: Any) -> float:
    from scipy.stats import rankdata

    return _pearson(rankdata(labels), rankdata(predictions))


_METRICS: dict[str, Callable[[Any, Any], float]] = {
    "accuracy": lambda labels, predictions: float((labels == predictions).mean()),
    "f1": _f1,
    "matthews": _matthews,
    "pearson": _pearson,
    "spearman": _spearman,
}
