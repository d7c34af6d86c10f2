"""The average of adapters is the average of the models they make, to the last digit, whatever they are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from peft import LNTuningConfig, get_peft_model

from autolr.errors import DocumentError
from autolr.merging.average import average
from autolr.merging.compatible import RELATED, problems, relation
from tests.merging import made


def merged(tmp_path: Path, folders: list[Path], weights: list[float] | None = None) -> Path:
    average([made.read(folder) for folder in folders], weights).save(tmp_path / "merge")
    return tmp_path / "merge"


@pytest.mark.parametrize("family", ["bert", "llama/lm", "gpt2", "gpt2/lm"])
@pytest.mark.parametrize(
    "options",
    [
        [{}, {}],
        [{"r": 2}, {"r": 3, "lora_alpha": 5, "use_rslora": True}, {"r": 4, "lora_alpha": 1}],
    ],
    ids=["alike", "ranks-alphas-rslora"],
)
def test_the_average_is_that_of_the_dense_models(tmp_path, family, options):
    folders = [made.saved(tmp_path / str(i), family, i, **own) for i, own in enumerate(options)]
    model = made.loaded(family, merged(tmp_path, folders))
    equal = [1 / len(folders)] * len(folders)
    expected = made.logits(made.dense(family, folders, equal))
    torch.testing.assert_close(made.logits(model), expected, rtol=1e-12, atol=1e-12)
    assert model.peft_config["default"].r == sum(own.get("r", 4) for own in options)
    assert not torch.allclose(expected, made.logits(made.loaded(family, folders[0])), atol=1e-3)


def test_ranks_by_pattern_other_targets_and_weights(tmp_path):
    last = "bert.encoder.layer.1.attention.self.query"
    folders = [
        made.saved(tmp_path / "a", "bert", 1, rank_pattern={last: 7}, alpha_pattern={last: 3}),
        made.saved(tmp_path / "b", "bert", 2, target_modules=["query", "key"]),
        made.saved(tmp_path / "c", "bert", 3, target_modules=r".*layer\.0.*(query|dense)", bias="none"),
    ]
    weights = [0.5, 0.7, -0.2]
    model = made.loaded("bert", merged(tmp_path, folders, weights))
    expected = made.logits(made.dense("bert", folders, weights))
    torch.testing.assert_close(made.logits(model), expected, rtol=1e-12, atol=1e-12)
    ranks = {name: len(p) for name, p in model.named_parameters() if "lora_A" in name}
    assert ranks[f"base_model.model.{last}.lora_A.default.weight"] == 11
    assert ranks["base_model.model.bert.encoder.layer.0.attention.self.value.lora_A.default.weight"] == 4


def test_embeddings_tied_heads_and_biases(tmp_path):
    # GPT-2's output layer is its embedding; both an adapter on it and a trained copy of it leave the base's alone.
    for number, options in enumerate(
        [
            {"target_modules": ["c_attn", "wte"]},
            {"modules_to_save": ["lm_head"]},
            {"target_modules": ["c_attn", "lm_head"]},
            {"bias": "lora_only"},
        ]
    ):
        place = tmp_path / str(number)
        folders = [made.saved(place / str(seed), "gpt2/lm", seed, **options) for seed in range(3)]
        one = made.loaded("gpt2/lm", merged(place, folders))
        states = [made.loaded("gpt2/lm", folder).state_dict() for folder in folders]
        for name, value in one.state_dict().items():
            if "lora_" not in name:
                expected = sum(state[name] for state in states) / 3
                torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
        for name, layer in one.named_modules():
            if hasattr(layer, "get_delta_weight"):
                deltas = [
                    made.loaded("gpt2/lm", folder).get_submodule(name).get_delta_weight("default")
                    for folder in folders
                ]
                own = layer.get_delta_weight("default")
                torch.testing.assert_close(own, sum(deltas) / 3, rtol=1e-10, atol=1e-12)


def test_as_peft_concatenates(tmp_path):
    folders = [made.saved(tmp_path / str(i), "gpt2/lm", i, r=r, lora_alpha=6) for i, r in enumerate((2, 4))]
    model = made.loaded("gpt2/lm", folders[0])
    model.load_adapter(folders[1], "other", autocast_adapter_dtype=False)
    model.add_weighted_adapter(["default", "other"], [0.25, 0.75], "cat", combination_type="cat")
    own = average([made.read(folder) for folder in folders], [0.25, 0.75])
    theirs = {name.replace(".cat.", "."): p for name, p in model.named_parameters() if ".cat." in name}
    names = [name for name in own.tensors if "lora_" in name]
    assert len(names) == 4
    for name in names:
        torch.testing.assert_close(own.tensors[name], theirs[name].detach(), rtol=1e-12, atol=0)


def test_adding_factors_one_by_one_is_another_thing(tmp_path):
    """PEFT's `linear` adds A to A and B to B; it agrees for a single adapter alone."""
    folders = [made.saved(tmp_path / str(i), "llama/lm", i) for i in range(2)]
    model = made.loaded("llama/lm", folders[0])
    model.load_adapter(folders[1], "other", autocast_adapter_dtype=False)
    model.add_weighted_adapter(["default"], [0.5], "single", combination_type="linear")
    model.add_weighted_adapter(["default", "other"], [0.5, 0.5], "both", combination_type="linear")
    place = "base_model.model.model.layers.0.self_attn.q_proj"
    layer = model.get_submodule(place)
    first = made.read(folders[0])

    def delta(adapter):
        module = place.removeprefix("base_model.model.")
        a, b = (adapter.tensors[name] for name in adapter.factors()[module])
        return adapter.scaling(module) * b @ a

    half = average([first], [0.5])
    both = average([first, made.read(folders[1])])
    torch.testing.assert_close(delta(half), layer.get_delta_weight("single"), rtol=1e-10, atol=1e-12)
    assert not torch.allclose(delta(both), layer.get_delta_weight("both"), atol=1e-4)


def test_whole_matrices_are_averaged_as_they_are(tmp_path):
    folders = []
    for seed in range(3):
        model = get_peft_model(made.base("bert"), LNTuningConfig(target_modules=["query", "classifier"]))
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter += torch.randn_like(parameter)
        model.peft_config["default"].base_model_name_or_path = "tiny-bert"
        model.save_pretrained(tmp_path / str(seed))
        folders.append(tmp_path / str(seed))
    own = made.loaded("bert", merged(tmp_path, folders))
    expected = made.logits(made.dense("bert", folders, [1 / 3] * 3))
    torch.testing.assert_close(made.logits(own), expected, rtol=1e-12, atol=1e-12)


def test_half_precision_ingredients_lose_nothing_more(tmp_path):
    folders = [made.saved(tmp_path / str(i), "bert", i, r=3, lora_alpha=7) for i in range(2)]
    for folder in folders:
        adapter = made.read(folder)
        adapter.tensors.update({name: tensor.bfloat16() for name, tensor in adapter.tensors.items()})
        adapter.save(folder)
    own = average([made.read(folder) for folder in folders])
    assert {tensor.dtype for tensor in own.tensors.values()} == {torch.float32}
    expected = made.logits(made.dense("bert", folders, [0.5, 0.5]))
    model = made.loaded("bert", merged(tmp_path, folders))
    torch.testing.assert_close(made.logits(model), expected, rtol=1e-5, atol=1e-6)


def test_one_adapter_alone_is_its_own_average(tmp_path):
    adapter = made.read(made.saved(tmp_path / "a", "bert", 1))
    assert average([adapter]) is adapter


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"use_dora": True}, "is a DoRA adapter"),
        ({"lora_bias": True}, "uses lora_bias"),
        ({"modules_to_save": ["classifier"]}, "its base_model.model.bert.pooler.dense.bias is missing"),
        ({"bias": "all"}, "has bias all"),
    ],
)
def test_what_has_no_exact_average_is_refused_with_the_reason(tmp_path, options, said):
    pair = [made.saved(tmp_path / "good", "bert", 1), made.saved(tmp_path / "bad", "bert", 2, **options)]
    with pytest.raises(DocumentError, match=f"bad: {re.escape(said)}"):
        average([made.read(folder) for folder in pair])


def test_an_initialization_that_changes_the_base_is_refused(tmp_path):
    adapter = made.read(made.saved(tmp_path / "a", "bert", 1))
    for way in ("pissa", "olora", "loftq", "corda"):
        adapter.config["init_lora_weights"] = way
        with pytest.raises(DocumentError, match=f"a: was initialized by {way}, which changes the base model"):
            average([adapter, adapter])


def test_other_kinds_bases_and_shapes_are_refused_all_at_once(tmp_path):
    from peft import IA3Config

    first = made.read(made.saved(tmp_path / "first", "bert", 1))
    model = get_peft_model(made.base("bert"), IA3Config(task_type="SEQ_CLS"))
    model.save_pretrained(tmp_path / "ia3")
    dora = made.read(made.saved(tmp_path / "dora", "bert", 1, use_dora=True))
    found = problems([first, made.read(tmp_path / "ia3"), dora])
    assert len(found) == 2 and "PEFT's kind IA3" in found[0] and "DoRA" in found[1]
    other = made.read(made.saved(tmp_path / "other", "gpt2", 1))
    assert any("the base model tiny-gpt2, first has tiny-bert" in one for one in problems([first, other]))
    assert any("maps 32 to" in one or "its base_model" in one for one in problems([first, other], "mine"))
    third = made.read(made.saved(tmp_path / "third", "bert", 1))
    name = next(name for name in third.tensors if name.endswith("classifier.weight"))
    third.tensors[name] = third.tensors[name][:2]
    assert "is (2, 32), that of first is (3, 32)" in problems([first, third])[0]
    del third.tensors[name]
    assert "is missing" in problems([first, third])[0]


def test_first_values_in_common_are_seen(tmp_path):
    one = made.read(made.saved(tmp_path / "one", "bert", 1))
    two = made.read(made.saved(tmp_path / "two", "bert", 2))
    assert relation(one, two) > 4 * RELATED
    generator = torch.Generator().manual_seed(5)
    for a, _ in two.factors().values():
        two.tensors[a] = torch.rand(two.tensors[a].shape, generator=generator, dtype=torch.float64) - 0.5
    assert abs(relation(one, two)) < RELATED
