"""The conformance kit, on every family AutoLR knows: tiny random models in float64."""

from __future__ import annotations

import pytest
import torch

from autolr import conformance
from autolr.model import projections
from autolr.model.families import Rows
from tests import tiny

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_kit_passes(family):
    checks = list(conformance.run(tiny.base(family, torch.float64)))
    assert [f"{check.name}: {check.found}" for check in checks if not check.passed] == []
    assert len(checks) == 8


def failed(base) -> dict[str, str]:
    return {check.name: check.found for check in conformance.run(base) if not check.passed}


def test_rows_taken_for_the_wrong_role_are_found_out(monkeypatch):
    right = projections.families.fused

    def exchanged(config, total):
        parts = right(config, total)
        return {"q": parts["k"], "k": parts["q"], "v": parts["v"]}

    monkeypatch.setattr(projections.families, "fused", exchanged)
    assert "attn.c_attn.q: 32 rows act on another place" in failed(tiny.base("gpt2", torch.float64))["roles"]

    def by_head(config, total):
        return {role: Rows(total, 4, 8 * i, 8 * i + 8) for i, role in enumerate("qkv")}

    monkeypatch.setattr(projections.families, "fused", by_head)
    assert "roles" in failed(tiny.base("gpt2", torch.float64))


def test_a_pack_that_mixes_slots_is_found_out(monkeypatch):
    base = tiny.base("deberta-v2", torch.float64)
    assert base.projections.shared_input
    object.__setattr__(base.projections, "shared_input", False)  # positions read what all slots share
    assert "slots cannot share a pass" in failed(base)["packed equals alone"]


def test_a_dropout_left_on_is_found_out():
    base = tiny.base("bert", torch.float64)
    for module in base.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.1
    base.model.train()
    assert "packed equals alone" in failed(base)
