"""How results look: small tables of escaped text in a notebook, and letters that an output has."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence


def table(title: str, rows: Iterable[tuple[str, object]]) -> str:
    """Return a titled table of names and values as HTML; all text is escaped."""
    lines = "".join(
        f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
        f"<td style='text-align:left'>{html.escape(str(value))}</td></tr>"
        for name, value in rows
    )
    return f"<div><p><b>{html.escape(title)}</b></p><table>{lines}</table></div>"


def grid(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table with a row of heads as HTML; all text is escaped."""
    top = "".join(f"<th>{html.escape(head)}</th>" for head in heads)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{top}</tr>{body}</table>"


def spell(text: str, encoding: str | None) -> str:
    """Return a text in letters that an output's encoding has."""
    if (encoding or "").lower().startswith("utf"):
        return text
    return text.replace("λ=", "ratio=").replace("λ", "ratio").replace("η", "lr").encode("ascii", "replace").decode()


def loss(value: float) -> str:
    """Return a loss as text, such as `0.4321`, `2.34e-12` or `1.2e+30`: losses have any unit."""
    plain = value == 0 or 1e-3 <= abs(value) < 1e7
    return f"{value:.4f}" if plain else f"{value:.3g}"


def gap(value: float) -> str:
    """Return a difference of losses as text with its sign, such as `+0.0123`."""
    return ("+" if value >= 0 else "") + loss(value)


def size(count: float) -> str:
    """Return bytes in words, such as `86.65 MiB`."""
    for unit in ("bytes", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.4g} GiB"
