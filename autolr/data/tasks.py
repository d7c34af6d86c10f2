"""What a model is asked to do: a loss for each example, predictions, and a score of them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from autolr.data.batches import IGNORED, Labels, predicting
from autolr.schema.data import LANGUAGE, MetricName, TaskName
from autolr.schema.metrics import METRICS, Function, called, imported, metrics_of


@dataclass(frozen=True)
class Task(ABC):
    """A task.

    Attributes:
        classes: names of the model's outputs; none of a language model's.
        metric: by which predictions are scored, beside the loss.
        own: the user's own function behind that name: of predictions and labels, both arrays [rows]; of a language
            model called for each example, with the token ids it finds likeliest and those it should, two lists.
    """

    classes: tuple[str, ...]
    metric: MetricName = "accuracy"
    own: Function | None = None

    @property
    @abstractmethod
    def chance(self) -> float:
        """Loss of a model that knows nothing."""

    @abstractmethod
    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each example, [rows], for `logits` [rows, outputs]."""

    def batch_losses(self, logits: Tensor, labels: Tensor, slots: int = 1) -> Tensor:
        """Return the loss that each slot's equal share of a batch is trained on, [slots]."""
        return self.losses(logits, labels).view(slots, -1).mean(1)

    def counts(self, labels: Tensor, slots: int = 1) -> Tensor:
        """Return of how many things the loss of each slot's share of a batch is the mean, [slots]: its examples."""
        return labels.new_full((slots,), len(labels) // slots, dtype=torch.int64)

    @abstractmethod
    def predictions(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return what the metric is computed from, [rows]: what the model says of each example."""

    def score(self, predictions: Tensor, labels: Labels) -> float:
        """Return the metric of predictions, [rows]; 0.0 if it is undefined.

        Raises:
            AutoLRError: the user's own metric fails, or returns no number.
        """
        score = self._metric(self._truth(labels), predictions.double().cpu().numpy())
        return score if math.isfinite(score) else 0.0

    @property
    def _metric(self) -> Function:
        own, name = self.own, self.metric
        return METRICS[name].function if own is None else lambda truth, values: called(own, name, values, truth)

    def _truth(self, labels: Labels) -> np.ndarray:
        """Return what predictions are compared with, [rows]."""
        return np.asarray(labels)


@dataclass(frozen=True)
class Classification(Task):
    """One class for each text or pair. The loss is the cross-entropy.

    Attributes:
        numbers: of each class in the data's own order, which metrics such as `f1` mean; none: the classes are in it.
    """

    numbers: tuple[int, ...] = ()

    @property
    def chance(self) -> float:
        """Loss of equal odds, in nats."""
        return math.log(len(self.classes))

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the cross-entropy in nats."""
        return functional.cross_entropy(logits, labels, reduction="none")

    def predictions(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the class of the largest logit."""
        return logits.argmax(-1)

    def score(self, predictions: Tensor, labels: Labels) -> float:
        """Return the metric of predictions, [rows], both of them in the data's own numbers."""
        if not self.numbers:
            return super().score(predictions, labels)
        numbers = torch.tensor(self.numbers)
        return super().score(numbers[predictions.long().cpu()], numbers[torch.as_tensor(labels)].tolist())


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

    def predictions(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the number itself."""
        return logits.squeeze(-1)


@dataclass(frozen=True)
class Language(Task):
    """The next token, wherever it is one that is learned: of a completion, or of the whole text.

    Logits are those of the learned tokens alone, [learned, vocabulary], row after row (see
    `autolr.model.sparse_logits`); labels are token ids [rows, tokens], `IGNORED` where nothing is learned.

    An example's loss is the mean over its learned tokens, so that each counts once where candidates are compared. A
    step trains on the mean over all learned tokens of its batch, which is transformers' own loss.
    """

    metric: MetricName = "token_accuracy"

    @property
    def chance(self) -> float:
        """One nat: a model that knows its language starts far below the odds of its vocabulary."""
        return 1.0

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy of each example's learned tokens, in nats."""
        return _by_example(_token_losses(logits, labels), labels) / _counts(labels)

    def batch_losses(self, logits: Tensor, labels: Tensor, slots: int = 1) -> Tensor:
        """Return the mean over all learned tokens of each slot's share of the batch, [slots]."""
        sums = _by_example(_token_losses(logits, labels), labels).view(slots, -1).sum(1)
        return sums / _counts(labels).view(slots, -1).sum(1)

    def counts(self, labels: Tensor, slots: int = 1) -> Tensor:
        """Return the learned tokens of each slot's share of a batch, [slots]."""
        return _counts(labels).view(slots, -1).sum(1)

    def predictions(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return each example's share of right tokens, its loss, or its own metric: whatever the metric reads."""
        if self.own is not None:
            counts = _counts(labels).tolist()
            likeliest, truth = (
                torch.split(ids.cpu(), counts) for ids in (logits.argmax(-1), _targets(labels, logits))
            )
            pairs = zip(likeliest, truth, strict=True)
            scores = [called(self.own, self.metric, ids.tolist(), right.tolist()) for ids, right in pairs]
            return logits.new_tensor(scores)
        if METRICS[self.metric].reads == "loss":
            return self.losses(logits, labels)
        right = (logits.argmax(-1) == _targets(labels, logits)).to(logits.dtype)
        return _by_example(right, labels) / _counts(labels)

    def _truth(self, labels: Labels) -> np.ndarray:
        """Return how many tokens of each example are learned, [rows]."""
        return np.array([sum(label != IGNORED for label in row[1:]) for row in labels])  # type: ignore[index]

    @property
    def _metric(self) -> Function:
        # The user's own metric was called example by example.
        return super()._metric if self.own is None else lambda _counts, scores: float(scores.mean())


def _targets(labels: Tensor, logits: Tensor) -> Tensor:
    """Return the token that each row of logits is to predict; how many they are is known without asking a GPU."""
    places = torch.nonzero_static(predicting(labels).flatten(), size=len(logits)).squeeze(1)
    return labels.flatten().index_select(0, places + 1)


def _counts(labels: Tensor) -> Tensor:
    return predicting(labels).sum(1)


def _token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(logits, _targets(labels, logits), reduction="none")


def _by_example(values: Tensor, labels: Tensor) -> Tensor:
    """Sum the values of learned tokens, [learned], by example, [rows]."""
    places = predicting(labels)
    return torch.zeros_like(places, dtype=values.dtype).masked_scatter(places, values).sum(1)


def task_of(
    name: TaskName,
    classes: Sequence[str],
    metric: MetricName | None,
    labels: Labels = (),
    *,
    allow_code: bool = False,
    numbers: tuple[int, ...] = (),
) -> Task:
    """Return a task.

    Args:
        name: of the task.
        classes: names of the model's outputs.
        metric: None: the task's default.
        labels: of the training examples, whose variance a regression is measured against.
        allow_code: whether a metric of the user's own may be imported and called.
        numbers: see `Classification`.

    Raises:
        AutoLRError: the metric is the user's own, and must not run or cannot be found.
    """
    metric = metric or metrics_of(name)[0]
    own = imported(metric, allow_code) if ":" in metric else None
    if name in LANGUAGE:
        return Language(tuple(classes), metric, own)
    if name == "regression":
        return Regression(tuple(classes), metric, own, variance=float(np.var(labels)) if len(labels) else 1.0)
    return Classification(tuple(classes), metric, own, numbers=numbers)
