"""From the end of a search to its recipe."""

from __future__ import annotations

from typing import Any

from autolr.data import cache
from autolr.rundir import provenance
from autolr.schema.recipe import Rates, Recipe
from autolr.tuner.judge.selection import Selection
from autolr.tuner.setting import Setting


def build_recipe(selection: Selection, full_runs: float, setting: Setting | None = None, more: str = "") -> Recipe:
    """Return the recipe of a search that is through.

    Args:
        selection: says who won, and by what evidence.
        full_runs: what was trained, in full runs.
        setting: model and data; None: they are those of a function of the user's.
        more: to be said after the verdict.
    """
    study, space, winner = selection.work.study, selection.work.space, selection.winner
    assert winner is not None
    method = {"lr_head": space.lr_head or "auto", "max_lr_b": space.max_lr_b, "kind": [winner.kind]}
    return Recipe(
        name=study.name,
        model=study.model,
        trust_remote_code=study.trust_remote_code,
        data=study.data,
        task=study.task,
        method=study.method.model_copy(update=method),
        candidate=winner,
        rates=_rates(selection, setting),
        training=study.training,
        steps=space.steps,
        split_seed=study.seed,
        seed=study.seed,
        evidence=selection.evidence(full_runs, more),
        versions=provenance.versions(),
        **(_of_the_data(setting) if setting else {"classes": [], "metric": study.metric or "loss"}),
    )


def _of_the_data(setting: Setting) -> dict[str, Any]:
    """Return what the recipe says of model and data, and of the code that read them."""
    return {
        "model_fingerprint": setting.backbone.fingerprint(),
        "data_fingerprint": setting.examples.fingerprint,
        "tokenizer_fingerprint": cache.tokenizer_fingerprint(setting.backbone.tokenizer),
        "tokenization": cache.TOKENIZATION,
        "classes": setting.examples.classes,
        "metric": setting.task.metric,
        "commit": provenance.commit(),
    }


def _rates(selection: Selection, setting: Setting | None) -> Rates:
    """Return the winner's rates, of what the model has: all-linear or not."""
    space, winner = selection.work.space, selection.winner
    assert winner is not None
    rates, rates_b = winner.rates(space.lr_head), winner.rates_b(space.max_lr_b)
    rates = {role: rate for role, rate in rates.items() if rate > 0}
    if setting is not None:
        roles = {site.role for site in setting.backbone.projections.of(winner.targets)} | {"head"}
        rates = {role: rate for role, rate in rates.items() if role in roles}
        rates_b = {role: rate for role, rate in rates_b.items() if role in roles}
    return Rates(**rates, b=rates_b)
