"""Parameter groups: every trainable parameter once, at its role's rate."""

from __future__ import annotations

import pytest
from peft import LoraConfig, TaskType, get_peft_model

from autolr.train.optimizer import parameter_groups
from tests import tiny


def lora(family: str, targets: list[str]):
    base = tiny.base(family)
    config = LoraConfig(task_type=TaskType.SEQ_CLS, r=2, target_modules=targets, modules_to_save=list(base.head))
    return get_peft_model(base.model, config)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_groups_hold_every_trainable_parameter_once_at_its_rate(family):
    sites = tiny.base(family).projections.sites
    names = {site.role: site.name.rpartition(".")[2] for site in sites}
    model = lora(family, [names["q"], names["v"]])
    groups = parameter_groups(model, lr_q=1e-4, ratio=8, lr_head=1e-3, weight_decay=0.1)
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    assert len(rate) == sum(len(group["params"]) for group in groups) == len(trainable)
    for name, parameter in trainable:
        is_v, is_q = f".{names['v']}." in name, f".{names['q']}." in name
        assert rate[id(parameter)] == pytest.approx(8e-4 if is_v else 1e-4 if is_q else 1e-3), name
    assert [group["name"] for group in groups] == ["q", "v", "head"]


def test_a_model_that_trains_its_matrices_themselves():
    model = tiny.model("llama")
    for name, parameter in model.named_parameters():
        parameter.requires_grad = any(part in name for part in ("q_proj", "k_proj", "v_proj", "score"))
    groups = {group["name"]: group["lr"] for group in parameter_groups(model, lr_q=1e-4, ratio=4)}
    assert groups == pytest.approx({"q": 1e-4, "k": 1e-4, "v": 4e-4, "head": 1e-4})


def test_what_has_no_role_is_named():
    model = lora("llama", ["q_proj", "v_proj", "o_proj"])
    with pytest.raises(ValueError, match="o_proj"):
        parameter_groups(model, lr_q=1e-4, ratio=4)
    with pytest.raises(ValueError, match="no W_v"):
        parameter_groups(lora("llama", ["q_proj"]), lr_q=1e-4, ratio=4)
    unfrozen = tiny.model("bert").requires_grad_(True)
    with pytest.raises(ValueError, match="embeddings"):
        parameter_groups(unfrozen, lr_q=1e-4, ratio=4)


@pytest.mark.parametrize("bad", [{"lr_q": 0}, {"lr_q": float("nan")}, {"ratio": -1}, {"lr_head": 0.0}])
def test_rates_must_be_positive(bad):
    with pytest.raises(ValueError, match="positive"):
        parameter_groups(lora("bert", ["query", "value"]), **{"lr_q": 1e-4, "ratio": 4, **bad})
