"""The page of an A/B comparison."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

from autolr.abtest.comparison import Comparison
from autolr.report.figures.style import GREY, add_intervals, blank
from autolr.report.page import fill, section
from autolr.schema import yaml_io


def write_comparison(found: Comparison, path: str | Path) -> Path:
    """Write one self-contained page about a comparison, and return its file."""
    yaml_io.write_text(Path(path), render(found))
    return Path(path)


def render(found: Comparison) -> str:
    """Return the page as HTML; it loads nothing from anywhere."""
    return fill("comparison.html.j2", found=found, sections=[_gains(found)])


def gains(found: Comparison) -> Any:
    """Gain of each arm over the first, with its interval; dotted: the smallest difference that matters."""
    labels = [html.escape(pair.label) for pair in found.pairs]
    drawn = blank("test loss below the first's", "", 120 + 60 * len(labels))
    add_intervals(drawn, [pair.gain for pair in found.pairs], labels, labels)
    for edge in (-found.worth, found.worth):
        drawn.add_vline(x=edge, line={"color": GREY, "dash": "dot", "width": 1})
    return drawn


def _gains(found: Comparison) -> dict[str, Any]:
    text = (
        f"Paired differences on test. Right of the middle line an arm is better than {found.arms[0].label}; "
        "between the outer lines a difference does not matter."
    )
    return section("gains", "Differences", gains(found), text)
