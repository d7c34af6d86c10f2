"""A cut adapter is the best approximation of its rank, and what nobody trained stays exactly as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from autolr.merging.average import average
from autolr.merging.cut import Decomposed, Spectrum, smallest_rank
from autolr.model import adapters
from autolr.model.backbone import Backbone
from tests import tiny
from tests.merging import made


@pytest.fixture
def whole(tmp_path):
    folders = [made.saved(tmp_path / str(i), "bert", i, r=3 + i) for i in range(3)]
    return average([made.read(folder) for folder in folders])


def deltas(adapter):
    return {
        module: adapter.scaling(module) * adapter.tensors[b] @ adapter.tensors[a]
        for module, (a, b) in adapter.factors().items()
    }


@pytest.mark.parametrize("rank", [1, 5, 11])
def test_a_cut_is_the_truncated_svd_of_the_dense_matrix(whole, rank):
    own = deltas(Spectrum(whole).cut(rank))
    for module, delta in deltas(whole).items():
        u, s, v = torch.linalg.svd(delta)
        expected = u[:, :rank] * s[:rank] @ v[:rank]
        torch.testing.assert_close(own[module], expected, rtol=1e-9, atol=1e-12)


def test_the_singular_values_are_those_of_the_dense_matrix(whole):
    spectrum = Spectrum(whole)
    assert spectrum.largest == 12 and spectrum.cut(12) is whole
    for module, delta in deltas(whole).items():
        expected = torch.linalg.svdvals(delta)[:12]
        own = torch.tensor(spectrum.values[module], dtype=torch.float64)
        torch.testing.assert_close(own, expected, rtol=1e-9, atol=1e-12)


def test_as_peft_cuts(tmp_path):
    folders = [made.saved(tmp_path / str(i), "llama/lm", i) for i in range(2)]
    model = made.loaded("llama/lm", folders[0])
    model.load_adapter(folders[1], "other", autocast_adapter_dtype=False)
    model.add_weighted_adapter(["default", "other"], [0.5, 0.5], "svd", combination_type="svd", svd_rank=3)
    own = deltas(Spectrum(average([made.read(folder) for folder in folders])).cut(3))
    for module, delta in own.items():
        theirs = model.get_submodule(f"base_model.model.{module}").get_delta_weight("svd")
        torch.testing.assert_close(delta, theirs, rtol=1e-9, atol=1e-12)
    assert len(own) == 4


def test_a_cut_adapter_loads_with_its_ranks(whole, tmp_path):
    cut = Spectrum(whole).cut(2)
    cut.save(tmp_path / "cut")
    model = made.loaded("bert", tmp_path / "cut")
    assert model.peft_config["default"].r == 2
    for module, delta in deltas(cut).items():
        layer = model.get_submodule(f"base_model.model.{module}")
        torch.testing.assert_close(layer.get_delta_weight("default"), delta, rtol=1e-12, atol=1e-12)


def test_a_rank_above_the_matrix_loses_nothing():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(9, 5, generator=generator, dtype=torch.float64)
    b = torch.randn(4, 9, generator=generator, dtype=torch.float64)
    found = Decomposed.of(a, b)
    assert len(found.values) == 4
    own_a, own_b = found.factors(9)
    torch.testing.assert_close(own_b @ own_a, b @ a, rtol=1e-12, atol=1e-12)


def test_no_matrix_of_the_base_is_built(monkeypatch):
    """2^17 rows and columns: their product would have 137 GB."""
    a, b = torch.ones(3, 2**17), torch.ones(2**17, 3)
    values = Decomposed.of(a, b).values
    assert values[0] == pytest.approx(3 * 2**17, rel=1e-9) and values[1:].abs().max() < 1e-6 * values[0]


def stacked(seed: int) -> tuple[Backbone, nn.Module]:
    """AutoLR's own adapter on GPT-2's fused matrix: q and v are trained, k is not."""
    backbone = tiny.base("gpt2", torch.float64)
    model = adapters.peft_model(backbone, "qv", 3, 8.0, 0)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return backbone, model


def test_rows_of_a_fused_matrix_that_nobody_trained_stay_zero(tmp_path):
    for seed in (1, 2):
        _, model = stacked(seed)
        model.peft_config["default"].base_model_name_or_path = "tiny-gpt2"
        model.save_pretrained(tmp_path / str(seed))
    folders = [tmp_path / "1", tmp_path / "2"]
    whole = average([made.read(folder) for folder in folders])
    whole.save(tmp_path / "merge")
    expected = made.logits(made.dense("gpt2", folders, [0.5, 0.5]))
    own = made.logits(made.loaded("gpt2", tmp_path / "merge"))
    torch.testing.assert_close(own, expected, rtol=1e-6, atol=1e-7)
    for adapter in (whole, Spectrum(whole).cut(4)):
        for delta in deltas(adapter).values():
            assert delta.shape == (96, 32)
            assert (delta[32:64] == 0).all()  # W_k
            assert (delta[:32] != 0).any() and (delta[64:] != 0).any()


@pytest.mark.parametrize("least", [1, 2, 7, 12])
def test_bisection_finds_the_smallest_rank(least):
    asked = []

    def loss_of(rank):
        asked.append(rank)
        return 1.0 if rank >= least else 2.0

    assert smallest_rank(12, loss_of, 1.001) == least
    assert len(asked) <= 4 and len(set(asked)) == len(asked)


def test_a_rank_without_a_loss_never_serves():
    assert smallest_rank(8, lambda rank: float("nan"), 1.0) == 8
