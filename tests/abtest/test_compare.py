"""An A/B comparison trains what PEFT trains, pairs what belongs together, and says what it does not know."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import autolr
from autolr.abtest.arms import Arm, read_arms, varied
from autolr.abtest.compare import compare
from autolr.abtest.comparison import Pair, pair_of, sentence
from autolr.data.batches import batch_order
from autolr.errors import AutoLRError, DocumentError, RunError
from autolr.finetune.run import train
from autolr.problem import load_problem
from autolr.progress import resources
from autolr.progress.callbacks import Callback
from autolr.report.comparison import render
from autolr.rundir import records
from autolr.rundir.records import Record
from autolr.schema.recipe import Interval, Rates, Recipe


@pytest.fixture(scope="module")
def recipe(small_recipe) -> Recipe:
    return small_recipe.model_copy(
        update={"training": small_recipe.training.model_copy(update={"precision": "fp32"})}
    )


class Count(Callback):
    def __init__(self) -> None:
        self.trainings = 0

    def ended(self, running) -> None:
        self.trainings += 1


@pytest.fixture(scope="module")
def found(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare") / "ab"
    vary = ["lr_v=1e-6 lr_head=1e-6", "targets=qkv kind=dora"]
    return compare([recipe], vary=vary, seeds=3, out=folder, device="cpu"), folder


def test_all_are_trained_with_the_same_seeds_and_measured_against_the_first(found):
    result, folder = found
    assert [arm.label for arm in result.arms] == [
        "small", "small with lr_v=1e-6 lr_head=1e-6", "small with targets=qkv kind=dora",
    ]  # fmt: skip
    frozen = result.pairs[0]
    assert frozen.level == pytest.approx(0.95)  # two intervals, which hold together with 90 %
    assert frozen.gain.mean == pytest.approx(result.arms[0].test_loss - result.arms[1].test_loss, abs=1e-6)
    assert json.loads((folder / "comparison.json").read_text())["verdict"] == result.verdict
    kept = records.parsed(folder / "trainings.jsonl", Record)
    assert {(r.label, r.seed) for r in kept} == {(arm.label, seed) for arm in result.arms for seed in (1, 2, 3)}
    # Same seed, same data: the trainings of a seed have seen the same tokens.
    assert len({(r.seed, r.tokens) for r in kept}) == 3
    taken = resources.usage(folder / "resources.parquet")["comparison"]
    assert taken.tokens == sum(r.tokens for r in kept) and taken.peak_bytes > 0 and taken.seconds > 0


def test_a_training_is_that_of_stock_peft(found, recipe):
    from autolr.finetune.param_groups import create_optimizer
    from autolr.model import adapters
    from autolr.pack.schedule import schedule_factor

    _, folder = found
    mine = varied(recipe, "targets=qkv kind=dora")
    material = load_problem(mine, torch.device("cpu"))
    model = adapters.peft_model(material.backbone, "qkv", 4, mine.method.lora_alpha, 1, "dora")
    optimizer = create_optimizer(model, mine)
    bases = [group["lr"] for group in optimizer.param_groups]
    losses = []
    for step, rows in enumerate(batch_order(material.data.train.lengths(), 8, 24, 1)):
        for group, base in zip(optimizer.param_groups, bases, strict=True):
            group["lr"] = base * schedule_factor(mine.training, step, 24)
        batch = material.data.train.collate(rows)
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        loss = material.task.losses(logits, batch["labels"]).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    kept = records.parsed(folder / "trainings.jsonl", Record)
    packed = next(r for r in kept if r.label.endswith("kind=dora") and r.seed == 1)
    np.testing.assert_allclose(packed.curve, losses, rtol=2e-3)


def test_more_seeds_train_only_what_is_missing(found, recipe):
    result, folder = found
    count = Count()
    vary = [arm.label.removeprefix("small with ") for arm in result.arms[1:]]
    same = compare([recipe], vary=vary, seeds=3, out=folder, device="cpu", callback=count)
    assert count.trainings == 0 and same.pairs == result.pairs
    more = compare([recipe], vary=vary, seeds=4, out=folder, device="cpu", callback=count)
    assert count.trainings == 3 and more.seeds == [1, 2, 3, 4]
    with pytest.raises(RunError, match="another comparison"):
        compare([recipe], vary=["ratio=1"], out=folder, device="cpu")


def test_trained_adapters_are_scored_as_they_are(recipe, tmp_path):
    good = train(recipe, tmp_path / "good" / "train", device="cpu")
    bad = train(varied(recipe, "lr_v=1e-6 lr_head=1e-6"), tmp_path / "bad" / "train", device="cpu")
    result = autolr.compare([tmp_path / "good" / "train", bad.adapter], out=tmp_path / "ab", device="cpu")
    assert result.seeds == [] and result.pairs[0].p_seeds is None
    assert [arm.label for arm in result.arms] == ["good", "bad"]
    assert result.arms[0].test_loss == pytest.approx(good.test["loss"], rel=1e-5)
    assert result.arms[1].test_loss == pytest.approx(bad.test["loss"], rel=1e-5)
    assert result.arms[0].test_metric == good.test["accuracy"]
    assert "seeds" not in result.verdict
    with pytest.raises(RunError, match="adapters with adapters"):
        read_arms([good.adapter, recipe])
    (bad.folder / "recipe.yaml").unlink()
    with pytest.raises(RunError, match="--data"):
        compare([good.adapter, bad.adapter], out=tmp_path / "c", device="cpu")
    alone = compare(
        [good.adapter, bad.adapter], data=recipe.data, model=recipe.model, out=tmp_path / "d", device="cpu"
    )
    assert alone.arms[1].test_loss == pytest.approx(bad.test["loss"], rel=1e-5)
    assert any("is not known" in note for note in alone.notes)
    (bad.adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(AutoLRError, match="never loaded"):
        compare([good.adapter, bad.adapter], data=recipe.data, model=recipe.model, out=tmp_path / "e")


def test_other_data_needs_to_be_said(recipe, tmp_path, reviews):
    other = recipe.model_copy(update={"data": recipe.data.model_copy(update={"validation": 0.3})})
    with pytest.raises(RunError, match="say which one to compare on: --data"):
        compare([recipe, other], out=tmp_path / "a")
    assert not (tmp_path / "a").exists()
    result = compare([recipe, other], data=reviews, seeds=2, steps=4, out=tmp_path / "b", device="cpu")
    # The same recipe twice, with the same luck: no difference at all.
    assert result.pairs[0].gain == Interval(mean=0, low=0, high=0) and result.pairs[0].outcome == "equal"
    assert result.arms[1].label == "small (2)"


def test_a_change_changes_the_rates_and_nothing_else(recipe):
    changed = varied(recipe, "ratio=1 targets=qkv")
    assert changed.rates == Rates(q=2e-2, k=2e-2, v=2e-2, head=1e-2)
    assert changed.training == recipe.training and changed.candidate.rank == 4
    for change, said in (("colour=2", "lr_v, ratio"), ("ratio=-1", "ratio"), ("lr_head=auto", "rate"), ("", "empty")):
        with pytest.raises(DocumentError, match=said):
            varied(recipe, change)


@pytest.mark.parametrize(
    ("mean", "worth", "outcome"),
    [(0.05, 0.01, "better"), (-0.05, 0.01, "worse"), (0.0, 0.02, "equal"), (0.0, 0.001, "inconclusive")],
)
def test_the_outcome_of_a_pair(recipe, mean, worth, outcome):
    rng = np.random.default_rng(3)
    common = rng.normal(0.5, 0.3, 200)

    def over_seeds(label, gain):
        return [
            Record(
                label=label, candidate=recipe.candidate, seed=seed, validation_loss=0.5, validation_metric=0.8,
                test_loss=0.5, test_metric=0.8, losses=(common - gain + rng.normal(0, 0.03, 200)).tolist(),
            )
            for seed in range(4)
        ]  # fmt: skip

    first, arm = Arm("A", "a", recipe), Arm("B", "b", recipe)
    pair = pair_of(first, arm, {"A": over_seeds("A", 0.0), "B": over_seeds("B", mean)}, worth, 1)
    assert pair.outcome == outcome and pair.gain.mean == pytest.approx(mean, abs=0.01)
    assert pair.size == max(abs(pair.gain.mean), worth)
    assert (pair.p_seeds < 0.01) == (outcome in ("better", "worse"))
    assert (pair.power > 0.8) == (worth >= pair.detectable)


def test_what_the_sentence_says():
    def pair(outcome, mean, low, high, seeds=7, examples=None):
        return Pair(
            label="B", outcome=outcome, gain=Interval(mean=mean, low=low, high=high), level=0.9, p_examples=0.1,
            power=0.4, detectable=0.02, size=0.01, seeds_needed=seeds, examples_needed=examples,
        )  # fmt: skip

    assert sentence("A", [pair("better", 0.02, 0.01, 0.03)], 0.005, trained=True) == (
        "B is better than A by 0.0200 of test loss (90% interval 0.0100 to 0.0300)."
    )
    assert "less than what matters" in sentence("A", [pair("better", 0.002, 0.001, 0.003)], 0.005, trained=True)
    text = sentence("A", [pair("inconclusive", 0.01, -0.01, 0.03, 7, 4000)], 0.005, trained=True)
    assert (
        "is inconclusive" in text and "7 seeds or 4,000 test examples would show it" in text and "40% chance" in text
    )
    assert "take more of both" in sentence("A", [pair("inconclusive", 0.01, -0.01, 0.03, None)], 0.005, trained=True)
    assert "differ by nothing that matters" in sentence("A", [pair("equal", 0.0, 0.0, 0.001)], 0.005, trained=True)


def test_the_page_is_whole_and_hostile_names_stay_text(found):
    result, _ = found
    evil = "</script><img src=x onerror=alert(1)>"
    arms = [result.arms[0], *(arm.model_copy(update={"label": evil, "setting": evil}) for arm in result.arms[1:])]
    pairs = [pair.model_copy(update={"label": evil}) for pair in result.pairs]
    page = render(result.model_copy(update={"arms": arms, "pairs": pairs, "data": evil, "verdict": evil}))
    assert "<img src=x" not in page and 'id="figure-gains"' in page
    assert page.count("</script>") == render(result).count("</script>")
    assert "95 %" in render(result)
