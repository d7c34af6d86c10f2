"""The study document: all its errors at once, overrides, identity."""

from __future__ import annotations

import pytest

from autolr.cli import resolve
from autolr.errors import DocumentError
from autolr.schema import yaml_io
from autolr.schema.candidate import Candidate
from autolr.schema.overrides import apply_overrides
from autolr.schema.recipe import Rates
from autolr.schema.study import Study
from autolr.schema.yaml_io import to_yaml

MINIMAL = {"model": "m", "data": "d.csv"}


def test_all_problems_of_a_file_are_told_at_once_with_their_lines(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(
        "model: m\n"
        "data: {source: d.csv}\n"
        "colour: blue\n"
        "space:\n"
        "  lr_v: {low: 1e-2, high: 1e-4}\n"
        "  rank: [0, 8]\n"
        "training:\n"
        "  batch_size: many\n"
        "search:\n"
        "  stages: [{to: 10}]\n"
        "  rungs: [20]\n"
    )
    with pytest.raises(DocumentError) as error:
        Study.load(path)
    text = str(error.value)
    assert len(error.value.problems) == 5, text
    for expected in ("line 3: colour: unknown key", "line 5: space.lr_v", "line 6: space.rank", "line 8", "line 9"):
        assert expected in text
    assert "exchange them" in text and "'many'" in text and "rungs [20]" in text
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is empty"),
        ("[1, 2]", "holds a list"),
        ("model: [", "is not YAML"),
        ("model: a\nmodel: b\ndata: c\n", "'model' twice"),
        ("model: !!python/object/apply:os.system ['true']\ndata: x\n", "is not YAML"),
        ("model: m\n", "data: is missing"),
        ("model: m\ndata: x\nspace: {lr_v: .nan}\n", "space.lr_v"),
        ("model: m\ndata: x\nspace: {rank: []}\n", "space.rank"),
        ("model: m\ndata: x\nbudget: {time: soon}\n", "90s, 10m or 1.5h"),
        ("model: m\ndata: {source: x, validation: 0.5, test: 0.4}\n", "leave less than"),
        ("model: m\ndata: x\ntraining: {horizon: {steps: 5, epochs: 1}}\n", "either epochs or steps"),
    ],
)
def test_one_clear_error(tmp_path, text, expected):
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(DocumentError, match="study.yaml") as error:
        Study.load(path)
    assert expected in str(error.value)


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "study.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DocumentError, match="UTF-8"):
        Study.load(tmp_path / "study.yaml")
    with pytest.raises(DocumentError, match="no such file"):
        Study.load(tmp_path / "none.yaml")


def test_a_study_survives_its_own_file(tmp_path):
    study = Study(**MINIMAL, space={"lr_v": [1e-4, 3e-4], "ratio": 4, "rank": 8}, budget={"time": "1.5h"})
    study.save(tmp_path / "study.yaml")
    assert Study.load(tmp_path / "study.yaml") == study
    assert study.budget.time == 5400


def test_old_documents_without_rates_of_heads_load_and_others_name_the_key(tmp_path):
    assert Study.model_validate({**MINIMAL, "space": {"guide": ["none"], "rank": 4}}).space.rank == [4]
    (tmp_path / "study.yaml").write_text(to_yaml({**MINIMAL, "space": {"guide": ["none", "heads"], "ratoi": 3}}))
    with pytest.raises(DocumentError) as error:
        Study.load(tmp_path / "study.yaml")
    first, second = error.value.problems
    assert first.startswith("line 4: space.guide: rates of single heads were removed") and "Remove" in first
    assert second.startswith("line 5: space.ratoi: unknown key; known here: lr_v, ratio")
    old = {"lr_v": 1e-3, "ratio": 2.0, "rank": 4}
    assert Candidate.model_validate({**old, "guide": "none"}) == Candidate.model_validate(old)
    assert yaml_io.validate(Rates, {"v": 1e-3, "heads": {}}, "recipe.yaml") == Rates(v=1e-3)
    with pytest.raises(DocumentError, match="- heads: rates of single heads were removed"):
        yaml_io.validate(Rates, {"v": 1e-3, "heads": {"encoder.0": [1.0, 2.0]}}, "recipe.yaml")


def test_overrides():
    content = {"model": "m", "data": "d.csv", "space": {"rank": [4]}}
    apply_overrides(content, ["space.rank=[8,16]", "data.text_column=body", "space.lr_v={low: 1e-4, high: 1e-2}"])
    study = Study(**content)
    assert study.space.rank == [8, 16]
    assert study.data.text_column == "body" and study.data.source == "d.csv"
    assert study.space.lr_v.low == 1e-4
    with pytest.raises(DocumentError, match="key=value"):
        apply_overrides(content, ["space.rank"])


def test_identity_is_that_of_the_search_not_of_its_budget():
    study = Study(**MINIMAL)
    assert Study(**MINIMAL, budget={"trials": 99}, train=True).identity() == study.identity()
    assert Study(**MINIMAL, seed=1).identity() != study.identity()


def test_the_rule_is_always_in_the_comparison():
    assert Study(**MINIMAL, baselines=["paper"]).baselines == ["default", "paper"]


@pytest.mark.parametrize("name", resolve.shipped())
def test_shipped_studies_are_sound(name):
    study = resolve.resolve([name], {}, None)
    assert study.name == name
    assert to_yaml(study.model_dump(mode="json"))


OLD_NAMES = """\
model: m
data: {source: d.csv, select: 0.2, confirm: 0.1, most: 10, select_split: s, confirm_split: c}
space: {rho: [1, 2]}
method: {alpha: 8}
training: {schedule: constant, warmup: 0.1, clip_norm: 1, checkpointing: true, attention: sdpa}
search: {prune: 0.1, prior: []}
baselines: [rule, winner_lr, qkv]
"""


def test_every_old_name_is_answered_with_the_new_one(tmp_path):
    path = tmp_path / "old.yaml"
    path.write_text(OLD_NAMES)
    with pytest.raises(DocumentError) as caught:
        Study.load(path)
    text = str(caught.value)
    for name in (
        *("validation", "test", "max_eval_samples", "validation_split", "test_split", "loraplus_lr_ratio"),
        *("lora_alpha", "lr_scheduler_type", "warmup_ratio", "max_grad_norm", "gradient_checkpointing"),
        *("attn_implementation", "prune_below", "warm_start"),
    ):
        assert f"is called {name} now" in text, name
    assert "rule is now called default; winner_lr is now called same_lr; qkv is now called with_k" in text
    assert len(caught.value.problems) == 15
