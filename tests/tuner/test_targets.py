"""Other matrices than W_q and W_v: alone, and as a choice of the space."""

from __future__ import annotations

import pytest
from peft import PeftConfig

from autolr.errors import DocumentError, ModelError
from autolr.finetune.run import train
from autolr.schema.candidate import Candidate
from autolr.schema.study import Study
from autolr.tuner.run import search
from tests import tiny


def with_targets(study: Study, *targets: str, **more) -> Study:
    content = study.model_dump(mode="json")
    content["space"]["targets"] = list(targets)
    return Study.model_validate({**content, **more})


@pytest.mark.parametrize(("targets", "modules"), [("v", {"value"}), ("qk", {"query", "key"}), ("vo", None)])
def test_a_search_and_its_full_run_train_what_is_asked_and_nothing_else(small_study, tmp_path, targets, modules):
    study = with_targets(small_study, targets, budget={"trials": 5}, baselines=["default", "same_lr"])
    recipe = search(study, tmp_path / "run", device="cpu").recipe
    assert recipe.candidate.targets == targets
    assert set(recipe.rates.trained()) == {*targets, "head"}
    # One rate: there is no ratio to search, to confirm, or to tell of.
    evidence = recipe.evidence
    assert recipe.candidate.ratio == 1 and all(score.candidate.ratio == 1 for score in evidence.scores)
    assert any("same_lr" in score.label and score.gain is None for score in evidence.scores)
    assert "λ" not in evidence.verdict and "atio" not in evidence.verdict and "λ" not in recipe._repr_html_()
    done = train(recipe, tmp_path / "full", device="cpu")
    trained = set(PeftConfig.from_pretrained(done.adapter).target_modules)
    if modules is None:  # every attention.output.dense has a name of its own
        assert sum(name.endswith("attention.output.dense") for name in trained) == len(trained) / 2
    else:
        assert trained == modules


def test_targets_are_a_choice_of_the_space(small_study, tmp_path):
    study = with_targets(small_study, "qv", "kv", "v", budget={"trials": 12})
    result = search(study, tmp_path / "run", device="cpu")
    trials = {trial.baseline or trial.number: trial.candidate.targets for trial in result.trials}
    assert trials["default"] == "qv"
    assert {t for name, t in trials.items() if isinstance(name, int)} <= {"qv", "kv", "v"}
    assert len(set(trials.values())) > 1
    # The comparison with W_k trained as well is not in this space: it is compared, and cannot win.
    assert "with_k" not in trials
    scores = {score.label: score.candidate for score in result.recipe.evidence.scores}
    assert scores["with_k"].targets == "qkv"
    assert result.recipe.candidate.targets in ("qv", "kv", "v")


def test_what_the_rates_are():
    candidate = Candidate(lr_v=8e-4, ratio=4, rank=8, targets="vo")
    assert candidate.rates(1e-3) == {"q": 0, "k": 0, "v": 8e-4, "o": 8e-4, "mlp": 0, "head": 1e-3}
    everything = Candidate(lr_v=8e-4, ratio=4, rank=8, targets="all-linear").rates(1e-3)
    slow, fast = dict.fromkeys("qk", 2e-4), dict.fromkeys(("v", "o", "mlp"), 8e-4)
    assert everything == pytest.approx({**slow, **fast, "head": 1e-3})
    assert Candidate(lr_v=8e-4, ratio=4, rank=8, targets="qk").rates(1e-3)["k"] == pytest.approx(2e-4)


def test_a_ratio_is_named_only_where_it_means_something():
    told = {targets: Candidate(lr_v=8e-4, ratio=4, rank=8, targets=targets) for targets in ("qv", "vo", "qk", "q")}
    assert {targets: one.has_ratio for targets, one in told.items()} == {
        "qv": True,
        "vo": False,
        "qk": False,
        "q": False,
    }
    assert told["qv"].describe() == "λ=4 lr_v=8.00e-04 r=8"
    assert told["vo"].describe() == "lr_v=8.00e-04 r=8 on vo" and told["qk"].describe() == "lr_q=2.00e-04 r=8 on qk"
    assert Candidate(lr_v=8e-4, ratio=1, rank=8, targets="q").describe() == "lr_q=8.00e-04 r=8 on q"


def test_targets_that_are_none(small_study):
    with pytest.raises(ModelError, match="has no W_o"):
        found = tiny.base("bert").projections
        type(found)(tuple(s for s in found.sites if s.role != "o"), found.layers).of("vo")
    with pytest.raises((DocumentError, ValueError), match="targets"):
        with_targets(small_study, "qvx")
    with pytest.raises((DocumentError, ValueError), match="twice"):
        with_targets(small_study, "v", "v")


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family_has_an_output_projection(family):
    found = tiny.base(family).projections
    count = {role: sum(site.role == role for site in found.sites) for role in "vo"}
    assert count["o"] == count["v"]
