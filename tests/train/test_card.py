"""The card: its code runs, and it tells nothing of the machine."""

from __future__ import annotations

import re

import pytest
import torch

from autolr.train.card import base_name
from autolr.train.run import train
from tests.train.test_run import recipe  # noqa: F401 (a fixture)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_the_code_on_the_card_loads_the_adapter(recipe, model_folders, tmp_path, family):  # noqa: F811
    result = train(recipe.model_copy(update={"model": model_folders[family]}), tmp_path / "run", device="cpu")
    card = (result.adapter / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", card, re.S)[1]
    code = code.replace("path/to/this/folder", str(result.adapter)).replace(
        f"path/to/{family}", model_folders[family]
    )
    names = {}
    exec(code, names)
    texts = names["tokenizer"](["good word1", "bad"], return_tensors="pt", padding=True)
    with torch.no_grad():
        assert names["model"](input_ids=texts["input_ids"], attention_mask=texts["attention_mask"]).logits.shape == (
            2,
            2,
        )


def test_no_folder_of_the_machine_is_published(recipe, tmp_path):  # noqa: F811
    result = train(recipe, tmp_path / "run", device="cpu")
    for file in [*result.adapter.glob("*.json"), result.adapter / "README.md"]:
        for folder in (str(tmp_path.parent), recipe.model, recipe.data.source):
            assert folder not in file.read_text(), file.name
    assert base_name("demo:all-MiniLM-L6-v2") == "sentence-transformers/all-MiniLM-L6-v2"
    assert base_name("org/model") == "org/model"


def test_the_rate_of_k_is_on_the_card_where_k_is_trained(recipe, tmp_path):  # noqa: F811
    candidate = recipe.candidate.model_copy(update={"targets": "qkv"})
    rates = recipe.rates.model_copy(update={"k": 5e-3})
    result = train(recipe.model_copy(update={"candidate": candidate, "rates": rates}), tmp_path / "run", device="cpu")
    card = (result.adapter / "README.md").read_text()
    assert "| lr_k | 0.005 |" in card
    assert "W_q, W_k and W_v" in card
