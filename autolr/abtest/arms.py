"""The arms of an A/B comparison: recipes to be trained, or adapters that are."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autolr.errors import AutoLRError, DocumentError, RunError
from autolr.schema import yaml_io
from autolr.schema.candidate import Candidate
from autolr.schema.method import Method
from autolr.schema.recipe import Rates, Recipe

ADAPTER = "adapter_config.json"
# What may differ between two arms with one word, and where it stands in a recipe.
VARIED: dict[str, str] = {
    **dict.fromkeys(("lr_v", "ratio", "rank", "targets", "kind", "loraplus_lr_ratio"), "candidate"),
    **dict.fromkeys(("lora_alpha", "lr_head", "max_lr_b"), "method"),
}


@dataclass(frozen=True)
class Arm:
    """One side of a comparison.

    Attributes:
        label: what it is called, different from all others.
        source: where it came from.
        recipe: what it is, or was, trained by; None for an adapter that came without one.
        adapter: folder of a trained adapter; None: the recipe is to be trained.
    """

    label: str
    source: str
    recipe: Recipe | None
    adapter: Path | None = None

    @property
    def to_train(self) -> Recipe:
        """The recipe of an arm that is to be trained."""
        assert self.recipe is not None
        return self.recipe


def read_arms(given: Sequence[Recipe | str | Path], vary: Sequence[str] = ()) -> list[Arm]:
    """Read what is compared.

    Args:
        given: recipes, their files, run folders, or folders of trained adapters.
        vary: changes such as `ratio=1` or `targets=qkv rank=4`; each is one more arm, the first with that change.

    Raises:
        AutoLRError: one is neither recipe nor adapter, a change is none, or adapters stand beside recipes.
    """
    arms = [read_arm(one) for one in given]
    if vary and (not arms or arms[0].adapter is not None):
        raise RunError(
            "--vary: the first to compare is a trained adapter, which cannot be changed. Put a recipe first."
        )
    for change in vary:
        first = arms[0].recipe
        assert first is not None
        arms.append(Arm(f"{arms[0].label} with {change}", f"--vary {change}", varied(first, change)))
    if len(arms) < 2:
        raise RunError("a comparison needs two. Give a second recipe or adapter, or --vary, such as --vary ratio=1.")
    if len({arm.adapter is None for arm in arms}) > 1:
        trained = ", ".join(arm.source for arm in arms if arm.adapter is not None)
        raise RunError(
            f"{trained}: adapters are scored as they are, recipes are trained with several seeds. Compare "
            "adapters with adapters, and recipes with recipes"
        )
    return distinct(arms)


def distinct(arms: Sequence[Arm]) -> list[Arm]:
    """Return arms with different labels: a number follows one that is taken."""
    found: dict[str, Arm] = {}
    for arm in arms:
        label, count = arm.label, 2
        while label in found:
            label, count = f"{arm.label} ({count})", count + 1
        found[label] = replace(arm, label=label)
    return list(found.values())


def varied(recipe: Recipe, change: str) -> Recipe:
    """Return a recipe with changes such as `ratio=1 rank=4`; the rates follow.

    Raises:
        DocumentError: a change is not known, or its value is wrong.
    """
    content: dict[str, dict[str, Any]] = {
        "candidate": recipe.candidate.model_dump(),
        "method": recipe.method.model_dump() | {"lr_head": recipe.rates.head or "auto"},
    }
    problems = []
    for word in change.split():
        key, equals, value = word.partition("=")
        if not equals or key not in VARIED:
            problems.append(f"{word!r}: must be one of {', '.join(VARIED)}, then = and a value, such as ratio=1")
        else:
            content[VARIED[key]][key] = value
    if problems or not change.strip():
        raise DocumentError(f"--vary {change!r}", problems or ["is empty; give a change such as ratio=1"])
    candidate = yaml_io.validate(Candidate, content["candidate"], f"--vary {change!r}")
    method = yaml_io.validate(Method, content["method"] | {"kind": candidate.kind}, f"--vary {change!r}")
    lr_head = 0.0 if recipe.rates.head is None else method.lr_head
    if isinstance(lr_head, str):
        raise DocumentError(f"--vary {change!r}", ["lr_head: must be a rate, such as lr_head=5e-3"])
    rates = {role: rate for role, rate in candidate.rates(lr_head).items() if rate > 0}
    of_b = candidate.rates_b(math.inf if isinstance(method.max_lr_b, str) else method.max_lr_b)
    return recipe.model_copy(
        update={
            "candidate": candidate,
            "method": method,
            "rates": Rates(**rates, b=of_b),
            "evidence": None,
        }
    )


def read_arm(given: Recipe | str | Path) -> Arm:
    """Read one recipe, or one trained adapter and what it was trained by.

    Raises:
        AutoLRError: it is neither.
    """
    if isinstance(given, Recipe):
        return Arm(given.name, given.name, given)
    path = Path(given)
    folder = next((f for f in (path, path / "adapter") if (f / ADAPTER).is_file()), None)
    if folder is not None:
        beside = folder.parent / "recipe.yaml"
        # A full run lies in a folder called train, its adapter in one called adapter: they say nothing.
        names = [name for name in path.absolute().parts if name not in ("train", "adapter")]
        return Arm(names[-1], str(path), Recipe.load(beside) if beside.is_file() else None, folder)
    if path.is_dir() and not (path / "recipe.yaml").is_file():
        raise RunError(
            f"{path}: holds neither a recipe.yaml nor an {ADAPTER}; give a finished run folder, a recipe, or the "
            "folder of a trained adapter"
        )
    recipe = Recipe.load(path)
    return Arm(
        path.parent.name if path.name == "recipe.yaml" and path.parent.name else path.name.removesuffix(".yaml"),
        str(path),
        recipe,
    )


def base_model(arm: Arm) -> str:
    """Return what a trained adapter says its base model is.

    Raises:
        AutoLRError: it says nothing.
    """
    return str(adapter_config(arm)["base_model_name_or_path"])


def adapter_config(arm: Arm) -> dict[str, Any]:
    """Return PEFT's configuration of a trained adapter.

    Raises:
        AutoLRError: it is none.
    """
    assert arm.adapter is not None
    try:
        content = json.loads((arm.adapter / ADAPTER).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict) or "base_model_name_or_path" not in content:
        raise AutoLRError(f"{arm.adapter / ADAPTER}: is not an adapter configuration of PEFT")
    return content
