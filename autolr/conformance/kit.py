"""The checks, in their order."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from autolr.conformance.bench import STEPS, Bench, ProblemError, random_tokens
from autolr.conformance.equal import packed_equals_alone, split_by_hand
from autolr.conformance.roles import check_projections, check_roles
from autolr.conformance.saved import merged, reloads, untouched
from autolr.data.tasks import Classification, Language, Task
from autolr.errors import AutoLRError
from autolr.model.backbone import Backbone
from autolr.pack.slots import SlotConfig
from autolr.schema.space import Role, Targets


@dataclass(frozen=True)
class Check:
    """A check that was made.

    Attributes:
        name: what must hold.
        found: what was seen, in words; where the check failed, the problem.
        passed: whether it holds.
        seconds: it took.
    """

    name: str
    found: str
    passed: bool
    seconds: float


def run(base: Backbone, *, seed: int = 0) -> Iterator[Check]:
    """Check a model, and yield each check when it has been made.

    Args:
        base: the model; its head is what is trained with it, and it may have none (a language
            model). The last check merges an adapter into its weights: load it anew to use it.
        seed: of the random tokens.
    """
    task: Task = Classification(("a", "b", "c")[: _outputs(base)]) if base.head else Language(())
    slots = _slots(base)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(base, random_tokens(base, len(task.classes), seed), task, slots, [], Path(folder))
        checks: dict[str, Callable[[Bench], str]] = {
            "projections": check_projections,
            "roles": check_roles,
            "packed equals alone": packed_equals_alone,
            "rows equal a split by hand": split_by_hand,
            "frozen weights untouched": untouched,
            "saved matrices reload": lambda bench: reloads(bench, "full"),
            "saved adapter reloads": lambda bench: reloads(bench, "lora"),
            "merged equals unmerged": merged,
        }
        for name, check in checks.items():
            start = time.perf_counter()
            try:
                found, passed = check(bench), True
            except (ProblemError, AutoLRError) as problem:
                found, passed = str(problem), False
            except (RuntimeError, ValueError, IndexError, KeyError, AttributeError, TypeError) as error:
                found, passed = f"{type(error).__name__}: {str(error)[:300]}", False
            yield Check(name, found, passed, time.perf_counter() - start)
            if not passed and name in ("projections", "packed equals alone"):
                return  # what follows builds on it


def _slots(base: Backbone) -> list[tuple[Targets, SlotConfig]]:
    """Return slots that between them have every method and every role the model has."""
    rank = max(1, min(4, base.projections.largest_rank // 2))
    slots: list[tuple[Targets, SlotConfig]] = [
        ("qv", SlotConfig({"q": 2e-3, "k": 0.0, "v": 8e-3, "head": 1e-2}, rank, 1, STEPS)),
        ("qv", SlotConfig({"q": 5e-2, "v": 1e-3, "head": 1e-3}, 2 * rank, 2, STEPS, rates_b={"q": 9e-2, "v": 4e-3})),
        ("qkv", SlotConfig({"q": 1e-3, "k": 3e-3, "v": 2e-2, "head": 3e-2}, rank, 3, STEPS, kind="rslora")),
        ("qv", SlotConfig({"q": 2e-4, "v": 8e-4, "head": 1e-2}, 0, 5, STEPS, kind="full")),
    ]
    everything: dict[Role, float] = {"q": 1e-3, "k": 1e-3, "v": 4e-3, "o": 2e-3, "mlp": 3e-3, "head": 1e-2}
    tenth: dict[Role, float] = {role: rate / 10 for role, rate in everything.items()}
    slots.append(("all-linear", SlotConfig(everything, rank, 4, STEPS)))
    slots.append(("all-linear", SlotConfig(tenth, 0, 6, STEPS, kind="full")))
    if not any(site.rows for site in base.projections.sites):  # DoRA is refused on fused matrices
        slots.append(("qv", SlotConfig({"q": 2e-3, "v": 8e-3, "head": 1e-2}, rank, 7, STEPS, kind="dora")))
    return slots


def _outputs(base: Backbone) -> int:
    return min(3, int(base.model.config.num_labels))
