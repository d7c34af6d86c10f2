"""Losses and metrics of tasks are those of torch, scikit-learn and scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics

from autolr.data.tasks import Classification, Regression, task_of

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("classes", [2, 4])
def test_metrics_of_classes(classes):
    labels = RNG.integers(0, classes, 200)
    said = torch.tensor(np.where(RNG.random(200) < 0.6, labels, RNG.integers(0, classes, 200)))
    names = tuple("abcd"[:classes])
    average = "binary" if classes == 2 else "macro"
    for name, expected in (
        ("accuracy", metrics.accuracy_score(labels, said)),
        ("f1", metrics.f1_score(labels, said, average=average)),
        ("matthews", metrics.matthews_corrcoef(labels, said)),
    ):
        assert task_of("classification", names, name).score(said, labels.tolist()) == pytest.approx(expected)


def test_metrics_of_numbers():
    labels = RNG.normal(2, 1, 100)
    said = torch.tensor(labels + RNG.normal(0, 0.5, 100))
    for name, expected in (("pearson", stats.pearsonr), ("spearman", stats.spearmanr)):
        found = task_of("regression", ["value"], name).score(said, labels.tolist())
        assert found == pytest.approx(expected(labels, said.numpy()).statistic)
    assert Regression(("value",), "pearson").score(torch.ones(100), labels.tolist()) == 0.0


def test_losses_are_those_of_torch():
    logits, classes = torch.randn(6, 3), torch.tensor([0, 1, 2, 2, 1, 0])
    own = Classification(("a", "b", "c"))
    assert own.losses(logits, classes).mean() == pytest.approx(float(torch.nn.CrossEntropyLoss()(logits, classes)))
    numbers = torch.randn(6)
    task = task_of("regression", ["value"], None, [1.0, 3.0])
    loss = torch.nn.MSELoss()(logits[:, 0], numbers)
    assert task.losses(logits[:, :1], numbers).mean() == pytest.approx(float(loss))
    assert (task.metric, task.chance) == ("pearson", 1.0)
