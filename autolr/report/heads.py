"""The page of attention heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autolr.insight.heads import Heads, Look
from autolr.report.figures import heads as figures
from autolr.report.page import fill, section
from autolr.schema import yaml_io

_ACTIVATION = (
    "Each field is a head: the mean over samples of its activation <O, dL/dO> ({kind}), which equals the sum of its "
    "attention probabilities times their gradients. Its 90 % interval over samples shows under the pointer."
)


def write_heads(found: Heads, path: str | Path) -> Path:
    """Write one self-contained page about attention heads, and return its file."""
    yaml_io.write_text(Path(path), render(found))
    return Path(path)


def render(found: Heads) -> str:
    """Return the page as HTML; it loads nothing from anywhere."""
    sections: list[dict[str, Any]] = []
    if found.combination:
        one = found.combination
        first = found.looks[0].label
        sections += [
            section(
                "fit",
                f"What {first} is made of",
                figures.fit(found),
                "How much of the change of its heads a combination of the basic tasks' changes explains, beside what "
                "it explains with heads permuted within their layers"
                + (", and what unrelated tasks explain." if one.null_unrelated else "."),
            ),
            section("weights", "Weights", figures.combination(found), "With 90 % intervals over samples."),
        ]
    text = "How unlike the changes of the tasks are (of models alone: their patterns)."
    sections.append(section("tasks", "Tasks", figures.dendrogram(found), text))
    for number, look in enumerate(found.looks):
        sections += _of(look, found, number)
    return fill("heads.html.j2", found=found, summary=found.summary(), sections=[s for s in sections if s["json"]])


def _of(look: Look, found: Heads, number: int) -> list[dict[str, Any]]:
    about = _ACTIVATION.format(kind="absolute values" if found.kind == "absolute" else "signed")
    before, after = (figures.pattern_map(look, found.kind, moment) for moment in (False, True))
    change, entropy = figures.change_map(look, found.kind), figures.entropy_map(look)
    spread = "How widely each head looks, as a share of the most it could: low is sharp."
    return [
        section(f"before-{number}", f"{look.label}: heads before training", before, about),
        section(f"after-{number}", f"{look.label}: after", after, about),
        section(f"change-{number}", f"{look.label}: change", change, "After minus before."),
        section(f"entropy-{number}", f"{look.label}: attention entropy", entropy, spread),
    ]
