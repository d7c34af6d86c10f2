"""A study that starts from the terms of an existing set-up."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from autolr.errors import ModelError
from autolr.finetune.roles import role_of
from autolr.integrations.terms import Terms
from autolr.model.meta_model import config_of
from autolr.schema.space import MethodKind, Role, Targets, roles_of
from autolr.schema.study import WarmStart
from autolr.tuner.propose.space import rule_rate

_TARGETS: tuple[Targets, ...] = ("qv", "qkv", "q", "k", "v", "qk", "kv", "vo", "all-linear")
# Where modules lie in a layer, for names such as `o_proj` and `gate_proj` that say nothing by themselves.
_PLACES = ("self_attn", "attention", "attn", "mlp")
# What lies outside the layers.
_HEADS = ("lm_head", "score", "classifier")


def study_of(terms: Terms) -> tuple[dict[str, Any], list[str]]:
    """Return the content of a study that starts from a set-up, and what was not taken over.

    Its rank is searched between half and twice the set-up's; its rate and ratio are where the search begins.

    Args:
        terms: of the set-up; None is as good as absent.
    """
    terms = {name: value for name, value in terms.items() if value is not None}
    left: list[str] = []
    study: dict[str, Any] = {}
    given = terms.get

    def put(section: str, key: str, value: Any) -> None:
        study.setdefault(section, {})[key] = value

    for term in ("name", "model", "task"):
        if term in terms:
            study[term] = terms[term]
    for term, key in (("data", "source"), ("subset", "subset"), ("split", "split"), ("max_length", "max_length")):
        if term in terms:
            put("data", key, terms[term])
    for key in ("prompt_column", "completion_column", "messages_column", "text_column", "validation_split"):
        if key in terms:
            put("data", key, terms[key])
    kind: MethodKind = "dora" if given("dora") else "rslora" if given("rslora") else "lora"
    if given("adapter", "lora") == "full":
        kind = "full"
    put("method", "kind", kind)
    if given("lora_alpha") and kind != "full":
        put("method", "lora_alpha", float(terms["lora_alpha"]))
    rank = given("rank")
    if rank and kind != "full":
        put("space", "rank", sorted({max(1, int(rank) // 2), int(rank), 2 * int(rank)}))
    put("space", "targets", _targets(terms.get("targets"), left))
    if given("dropout"):
        left.append(f"dropout {terms['dropout']:g}: trials and full runs train without")
    put("training", "batch_size", int(given("batch", 16)) * int(given("accumulate", 1)))
    steps = given("steps", 0)
    put("training", "horizon", {"steps": int(steps)} if steps > 0 else {"epochs": float(given("epochs", 3.0))})
    _training(terms, put, left)
    _warm_start(terms, study, put, left)
    if "seed" in terms:
        study["seed"] = int(terms["seed"])
    return study, left


def _training(terms: Terms, put: Any, left: list[str]) -> None:
    """Take over what a set-up says of optimizer, schedule and precision."""
    schedule = str(terms.get("lr_scheduler_type", "linear"))
    if schedule.startswith("constant"):
        put("training", "lr_scheduler_type", "constant")
    elif schedule != "linear":
        left.append(f"schedule {schedule}: AutoLR has linear and constant; linear is taken")
    steps, warmup = terms.get("steps", 0), terms.get("warmup_ratio") or 0.0
    if terms.get("warmup_steps"):
        count = float(terms["warmup_steps"])
        if count < 1:
            warmup = count
        elif steps > 0:
            warmup = count / steps
        else:
            left.append(
                f"warmup of {count:g} steps: a share of a horizon in epochs is not known; set training.warmup_ratio"
            )
    if warmup:
        put("training", "warmup_ratio", float(f"{warmup:.4g}"))
    for term, key in (("weight_decay", "weight_decay"), ("eps", "eps")):
        if terms.get(term):
            put("training", key, float(terms[term]))
    if "beta1" in terms or "beta2" in terms:
        put("training", "betas", [float(terms.get("beta1", 0.9)), float(terms.get("beta2", 0.999))])
    if "clip" in terms:
        put("training", "max_grad_norm", float(terms["clip"]) or None)
    if terms.get("gradient_checkpointing"):
        put("training", "gradient_checkpointing", True)
    if terms.get("bf16") is not None:
        left.append(f"bf16: {terms['bf16']}: training.precision auto chooses by the device")
    precision = "nf4" if terms.get("four_bit") else "int8" if terms.get("eight_bit") else None
    if precision:
        put("training", "precision", precision)


def _warm_start(terms: Terms, study: dict[str, Any], put: Any, left: list[str]) -> None:
    """Begin the search at the set-up's rate, in units of the rule of thumb for its model; or range around it."""
    lr_v = terms.get("lr_v") or terms.get("lr")
    if not lr_v:
        return
    lr_q = terms.get("lr_q") or terms.get("lr") or lr_v
    lr_v, lr_q = float(lr_v), float(lr_q)
    loraplus_lr_ratio = float(terms.get("loraplus_lr_ratio", 1.0))
    if loraplus_lr_ratio != 1.0:
        put("space", "loraplus_lr_ratio", [1.0, loraplus_lr_ratio])
    full = study["method"]["kind"] == "full"
    try:
        rate = rate_of_thumb(str(terms["model"]), full=full)
    except (KeyError, ModelError):
        put("space", "lr_v", {"low": lr_v / 10, "high": lr_v * 10})
        left.append(f"lr {lr_v:g} as where the search begins: the model's width is not known; its range is around it")
        return
    if not 0.1 <= lr_v / rate <= 10:
        put("space", "lr_v", {"low": min(lr_v, rate) / 3, "high": max(lr_v, rate) * 3})
    known = WarmStart(
        source="the set-up",
        rate=float(f"{lr_v / rate:.4g}"),
        ratio=float(f"{lr_v / lr_q:.4g}"),
        rank=0 if full else int(terms.get("rank") or 8),
    )
    put("search", "warm_start", [known.model_dump(mode="json")])


def rate_of_thumb(model: str, *, full: bool = False) -> float:
    """Return the rule of thumb's rate for a model.

    Raises:
        ModelError: its configuration cannot be read.
    """
    config = config_of(model)
    return rule_rate(int(config.get_text_config().hidden_size), str(config.model_type), full=full)


def _targets(names: str | Iterable[str] | None, left: list[str]) -> Targets:
    """Return the targets that names of modules mean; names without a meaning are listed."""
    if names is None:
        return "qv"
    if isinstance(names, str):
        if names in ("all-linear", "all"):
            return "all-linear"
        names = [name.strip() for name in names.split(",")]
    names = list(names)
    roles: set[Role] = set()
    unknown = []
    for name in names:
        if "embed" in name or name.rpartition(".")[2] in _HEADS:
            unknown.append(name)
            continue
        found = (role_of(f"layers.0.{place}.{name.rpartition('.')[2]}.weight") for place in _PLACES)
        role = next((role for role in found if role not in (None, "head")), None)
        roles |= {role} if role else set()
        unknown += [] if role else [name]
    exact = [targets for targets in _TARGETS if set(roles_of(targets)) == roles]
    inside = [targets for targets in _TARGETS if set(roles_of(targets)) <= roles]
    choices: list[Targets] = exact or sorted(inside, key=lambda targets: len(roles_of(targets)))[-1:] or ["qv"]
    taken = choices[0]
    if not exact or unknown:
        left.append(
            f"targets {', '.join(names)}: AutoLR trains {', '.join(_TARGETS)}; {taken} is taken"
            + (f" ({', '.join(unknown)}: of no known role)" if unknown else "")
        )
    return taken
