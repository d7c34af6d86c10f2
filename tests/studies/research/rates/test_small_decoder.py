"""The searches on a decoder, on a tiny model of its kind."""

from __future__ import annotations

import json

import pytest

from studies.research.rates import small_decoder


@pytest.mark.parametrize("task", ["sft", "classification"])
def test_a_search_on_a_decoder_leaves_its_document(model_folders, tmp_path, capsys, task):
    small_decoder.main(
        ["--quick", "--device", "cpu", "--task", task, "--model", model_folders["lm"], "--out", str(tmp_path)]
    )
    document = json.loads(next(tmp_path.glob("smollm2_*.json")).read_text())
    assert document["name"] == f"smollm2_{task}"
    metric = "exact_match" if task == "sft" else "accuracy"
    labels = " + ".join(row["label"] for row in document["rows"] if row["kind"] == "score").split(" + ")
    assert sorted(labels) == ["default", "finalist 1"]
    assert any(name.startswith(f"confirm_{metric}_") for name in document["figures"])
    assert document["settings"]["study"]["task"] == task
    assert ("untrained_confirm_loss" in document["figures"]) == (task == "sft")
