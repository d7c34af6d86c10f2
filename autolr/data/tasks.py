"""What a model is asked to do: a loss for each example, predictions, and a score of them."""

from __future__ import annotations

import importlib
import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from autolr.data.batches import IGNORED, Labels, predicting
from autolr.errors import AutoLRError
from autolr.study import LANGUAGE, METRICS, MetricName, TaskName

Metric = Callable[[Any, Any], float]


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
    own: Metric | None = None

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
        """Return the metric of predictions, [rows]; 0.0 where it is undefined.

        Raises:
            AutoLRError: the user's own metric fails, or returns no number.
        """
        said, truth = predictions.double().cpu().numpy(), np.asarray(labels)
        found = (
            _METRICS[self.metric](truth, said) if self.own is None else _called(self.own, self.metric, said, truth)
        )
        return found if math.isfinite(found) else 0.0


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
        own = torch.tensor(self.numbers)
        return super().score(own[predictions.long().cpu()], own[torch.as_tensor(labels)].tolist())


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
    `autolr.model.labelled`); labels are token ids [rows, tokens], `IGNORED` where nothing is learned.

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
        """Return the share of right tokens of each example; for the perplexity, its loss; or its own metric."""
        if self.metric == "perplexity":
            return self.losses(logits, labels)
        if self.own is not None:
            counts = _counts(labels).tolist()
            likeliest, truth = (
                torch.split(ids.cpu(), counts) for ids in (logits.argmax(-1), _targets(labels, logits))
            )
            pairs = zip(likeliest, truth, strict=True)
            scores = [_called(self.own, self.metric, said.tolist(), right.tolist()) for said, right in pairs]
            return logits.new_tensor(scores)
        right = (logits.argmax(-1) == _targets(labels, logits)).to(logits.dtype)
        return _by_example(right, labels) / _counts(labels)

    def score(self, predictions: Tensor, labels: Labels) -> float:
        """Return the metric over all learned tokens; of `exact_match` and the user's own, over examples.

        An example matches exactly where each of its tokens is the likeliest after those before it: then, and only
        then, greedy decoding of its prompt gives its completion, token for token.
        """
        said = predictions.double().cpu().numpy()
        if self.metric == "exact_match":
            return float((said == 1.0).mean())
        if self.own is not None:
            return float(said.mean()) if np.isfinite(said).all() else 0.0
        counts = [sum(label != IGNORED for label in own[1:]) for own in labels]  # type: ignore[index]
        mean = float(np.average(said, weights=counts))
        return math.exp(min(mean, 700.0)) if self.metric == "perplexity" else mean


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
        metric: None: the first that `METRICS` lists for the task.
        labels: of the training examples, whose variance a regression is measured against.
        allow_code: whether a metric of the user's own may be imported and called.
        numbers: see `Classification`.

    Raises:
        AutoLRError: the metric is the user's own, and must not run or cannot be found.
    """
    metric = metric or METRICS[name][0]
    found: Task = Classification(tuple(classes), metric, numbers=numbers)
    if name in LANGUAGE:
        found = Language(tuple(classes), metric)
    elif name == "regression":
        variance = float(np.var(labels)) if len(labels) else 1.0
        found = Regression(tuple(classes), metric, variance=variance)
    return replace(found, own=_own(metric, allow_code)) if ":" in metric else found


def _own(metric: str, allow_code: bool) -> Metric:
    """Import the function that `my_module:function` names; the folder we are in is searched first."""
    if not allow_code:
        raise AutoLRError(
            f"metric {metric}: would run code that lies beside the study; if you trust it, give --allow-code "
            "(allow_code=True in Python)"
        )
    module, _, function = metric.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found: Metric = getattr(importlib.import_module(module), function)
    except Exception as error:
        raise AutoLRError(f"metric {metric}: cannot be imported: {type(error).__name__}: {error}") from None
    finally:
        sys.path.remove(str(Path.cwd()))
    if not callable(found):
        raise AutoLRError(f"metric {metric}: is a {type(found).__name__}, not a function")
    return found


def _called(own: Metric, name: str, predictions: Any, labels: Any) -> float:
    try:
        return float(own(predictions, labels))
    except Exception as error:
        raise AutoLRError(
            f"metric {name}: failed: {type(error).__name__}: {error}; it is called with predictions and labels (of a "
            "language model, with the token ids of one example) and returns a number"
        ) from None


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
