"""Parameter groups: every trainable parameter once, at its role's rate."""

from __future__ import annotations

import math

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from torch import nn

from autolr.finetune.param_groups import grouped, parameter_groups
from autolr.finetune.roles import role_of
from autolr.model import adapters
from autolr.model.adapters import shapes
from tests import tiny


def lora(family: str, targets: list[str]):
    base = tiny.base(family)
    config = LoraConfig(task_type=TaskType.SEQ_CLS, r=2, target_modules=targets, modules_to_save=list(base.head))
    return get_peft_model(base.model, config)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_groups_hold_every_trainable_parameter_once_at_its_rate(family):
    base = tiny.base(family)
    names = {site.role: site.name.rpartition(".")[2] for site in base.projections.sites}
    model = adapters.peft_model(base, "qv", 2, 4.0, seed=0)
    groups = parameter_groups(model, lr_q=1e-4, ratio=8, lr_head=1e-3, weight_decay=0.1)
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    assert len(rate) == sum(len(group["params"]) for group in groups) == len(trainable)
    for name, parameter in trainable:
        plain = adapters.plain_name(name)
        is_v, is_q = f".{names['v']}." in plain, f".{names['q']}." in plain
        assert rate[id(parameter)] == pytest.approx(8e-4 if is_v else 1e-4 if is_q else 1e-3), name
    assert [group["name"] for group in groups] == ["q", "v", *(["head"] if base.head else [])]


def test_a_model_that_trains_its_matrices_themselves():
    model = tiny.model("llama")
    for name, parameter in model.named_parameters():
        parameter.requires_grad = any(part in name for part in ("q_proj", "k_proj", "v_proj", "score"))
    groups = {group["name"]: group["lr"] for group in parameter_groups(model, lr_q=1e-4, ratio=4)}
    assert groups == pytest.approx({"q": 1e-4, "k": 1e-4, "v": 4e-4, "head": 1e-4})


def test_what_has_no_role_is_named():
    model = lora("llama", ["q_proj", "v_proj", "embed_tokens"])
    with pytest.raises(ValueError, match="embed_tokens"):
        parameter_groups(model, lr_q=1e-4, ratio=4)
    with pytest.raises(ValueError, match="no W_v"):
        parameter_groups(lora("llama", ["q_proj"]), lr_q=1e-4, ratio=4)
    with pytest.raises(ValueError, match="one tensor for W_q, W_k and W_v.*peft_model"):
        parameter_groups(lora("gpt2", ["c_attn"]), lr_q=1e-4, ratio=4)
    unfrozen = tiny.model("bert").requires_grad_(True)
    with pytest.raises(ValueError, match="embeddings"):
        parameter_groups(unfrozen, lr_q=1e-4, ratio=4)


@pytest.mark.parametrize("family", ["bert", "distilbert", "llama", "gpt2", "opt", "modernbert"])
def test_the_output_projection_learns_as_w_v_does(family):
    base = tiny.base(family)
    model = adapters.peft_model(base, "vo", 2, 16, 0)
    groups = {group["name"]: group for group in grouped(model, {"v": 4e-4, "o": 2e-4, "head": 1e-3})}
    sites = [site for site in base.projections.sites if site.role == "o"]
    assert len(groups["o"]["params"]) == 2 * len(sites) > 0
    assert (groups["o"]["lr"], groups["v"]["lr"]) == (2e-4, 4e-4)
    with pytest.raises(ValueError, match="none of v, head.*lora_config.*lr_mlp"):
        grouped(model, {"v": 4e-4, "head": 1e-3})
    with pytest.raises(ValueError, match="no W_q"):
        grouped(model, {"v": 4e-4, "o": 2e-4, "head": 1e-3}, needed="q")


def test_a_head_called_out_proj_is_no_output_projection():
    assert role_of("roberta.encoder.layer.0.attention.output.dense.lora_A.default.weight") == "o"
    assert role_of("model.layers.3.self_attn.o_proj.weight") == "o"
    assert role_of("base_model.model.classifier.modules_to_save.default.out_proj.weight") == "head"
    assert role_of("classifier.out_proj.weight") == "head"
    assert role_of("transformer.h.0.mlp.c_proj.lora_B.default.weight") == "mlp"
    assert role_of("bert.encoder.layer.0.output.dense.lora_A.default.weight") == "mlp"
    assert role_of("bert.encoder.layer.0.output.LayerNorm.weight", ["bert.encoder.layer."]) is None
    assert role_of("model.layers.0.mlp.gate.weight", ["model.layers."]) is None  # chooses the experts


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_all_linear_learns_in_two_groups_of_rates(family, kind):
    base = tiny.base(family)
    sites = base.projections.of("all-linear")
    model = adapters.peft_model(base, "all-linear", 0 if kind == "full" else 2, 4.0, 0, kind)
    groups = {group["name"]: group for group in parameter_groups(model, lr_q=1e-4, ratio=8)}
    assert set(groups) - {"head"} == {site.role for site in sites}
    assert {"q", "k", "v", "o"} <= set(groups)
    assert ("mlp" in groups) == (family != "qwen3_moe")
    for name, group in groups.items():
        assert group["lr"] == pytest.approx(8e-4 if name in ("v", "o", "mlp") else 1e-4)
        if name != "head":
            count = sum(math.prod(shape) for s in sites if s.role == name for shape in shapes(s, 2, kind).values())
            assert sum(p.numel() for p in group["params"]) == count


def test_experts_in_one_parameter_are_named_as_left_out():
    left_out = tiny.base("qwen3_moe").projections.left_out
    assert left_out == ("2 x mlp.experts.gate_up_proj 4x32x32", "2 x mlp.experts.down_proj 4x32x16")
    assert all(not tiny.base(family).projections.left_out for family in ("bert", "llama", "gpt2"))


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_rates_of_a_and_b_are_those_of_peft_s_loraplus(family):
    base = tiny.base(family)
    model = adapters.peft_model(base, "qv", 2, 4.0, 0)
    for name, parameter in model.named_parameters():
        if ".modules_to_save." in name:  # LoRA+ has no role for the head
            parameter.requires_grad = False
    plus = create_loraplus_optimizer(model, torch.optim.AdamW, lr=1e-4, loraplus_lr_ratio=16)
    stock = {id(p): group["lr"] for group in plus.param_groups for p in group["params"]}
    groups = parameter_groups(model, lr_q=1e-4, ratio=1, loraplus_lr_ratio=16)
    assert {id(p): group["lr"] for group in groups for p in group["params"]} == pytest.approx(stock)
    assert {group["name"] for group in groups} == {"q", "q_B", "v", "v_B"}
    capped = parameter_groups(model, lr_q=1e-4, ratio=8, loraplus_lr_ratio=16, max_lr_b=2e-3)
    assert {g["name"]: g["lr"] for g in capped} == pytest.approx({"q": 1e-4, "q_B": 1.6e-3, "v": 8e-4, "v_B": 2e-3})
    with pytest.raises(ValueError, match="loraplus_lr_ratio must be positive"):
        parameter_groups(model, lr_q=1e-4, ratio=8, loraplus_lr_ratio=0)


@pytest.mark.parametrize("bad", [{"lr_q": 0}, {"lr_q": float("nan")}, {"ratio": -1}, {"lr_head": 0.0}])
def test_rates_must_be_positive(bad):
    with pytest.raises(ValueError, match="positive"):
        parameter_groups(lora("bert", ["query", "value"]), **{"lr_q": 1e-4, "ratio": 4, **bad})


class Net(nn.Module):
    """One layer with W_q and W_v, and whatever else is given."""

    def __init__(self, **others: nn.Module):
        super().__init__()
        self.layers = nn.ModuleList([nn.ModuleDict({"q_proj": nn.Linear(4, 4), "v_proj": nn.Linear(4, 4)})])
        for name, module in others.items():
            setattr(self, name, module)


def role_by_name(net):
    names = {id(p): name for name, p in net.named_parameters()}
    return {names[id(p)]: g["name"] for g in parameter_groups(net, lr_q=1e-4, ratio=4) for p in g["params"]}


def test_a_head_of_numbered_parts_and_a_head_called_value_are_heads():
    roles = role_by_name(Net(classifier=nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))))
    assert roles["classifier.0.weight"] == roles["classifier.1.bias"] == "head"
    assert role_by_name(Net(value=nn.ModuleDict({"dense": nn.Linear(4, 1)})))["value.dense.weight"] == "head"
    net = Net()
    net.layers[0]["mlp"] = nn.Linear(4, 4)
    assert role_by_name(net)["layers.0.mlp.weight"] == "mlp"
    net.layers[0]["norm"] = nn.LayerNorm(4)
    with pytest.raises(ValueError, match="layers.0.norm.weight"):
        parameter_groups(net, lr_q=1e-4, ratio=4)


def test_a_tensor_shared_within_a_role_is_grouped_once_and_across_roles_refused():
    net = Net()
    net.layers.append(nn.ModuleDict({"q_proj": nn.Linear(4, 4), "v_proj": nn.Linear(4, 4)}))
    net.layers[1]["q_proj"].weight = net.layers[0]["q_proj"].weight
    groups = parameter_groups(net, lr_q=1e-4, ratio=4)
    assert {group["name"]: len(group["params"]) for group in groups} == {"q": 3, "v": 4}
    net.layers[1]["v_proj"].weight = net.layers[0]["q_proj"].weight
    with pytest.raises(ValueError, match="share one tensor"):
        parameter_groups(net, lr_q=1e-4, ratio=4)
