"""The figure of a model card: the winner against the rules, as a picture that any page shows."""

from __future__ import annotations

import html

from autolr.recipe import Evidence

WIDTH, ROW, TOP, LEFT, RIGHT = 760, 30, 56, 330, 40
_SVG = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" \
font-family="sans-serif" font-size="13" role="img">
<title>{title}</title>
<rect width="100%" height="100%" fill="#ffffff"/>
<text x="16" y="24" font-weight="bold">{title}</text>
<line x1="{zero:.1f}" x2="{zero:.1f}" y1="{top}" y2="{bottom}" stroke="#888888" stroke-dasharray="4 3"/>
{rows}
<text x="{zero:.1f}" y="{foot}" text-anchor="middle" fill="#555555">0: the winner, {winner}</text>
</svg>
"""


def gains_svg(evidence: Evidence) -> str | None:
    """Return the paired differences to the winner with their intervals as SVG; None where nothing was compared."""
    others = [(score, score.gain) for score in evidence.scores if score.gain is not None]
    winner = next((score for score in evidence.scores if score.gain is None), None)
    if not others or winner is None:
        return None
    low = min(0.0, *(gain.low for _, gain in others))
    high = max(0.0, *(gain.high for _, gain in others))
    scale = (WIDTH - LEFT - RIGHT) / ((high - low) or 1.0)

    def at(value: float) -> float:
        return LEFT + (value - low) * scale

    rows = []
    for number, (score, gain) in enumerate(others):
        y = TOP + ROW * number + ROW // 2
        colour = "#2a7f4f" if gain.low > 0 else "#b03a2e" if gain.high < 0 else "#555555"
        name = html.escape(f"{score.label}: {score.candidate.describe()}")
        rows.append(
            f'<text x="16" y="{y + 4}">{name}</text>'
            f'<line x1="{at(gain.low):.1f}" x2="{at(gain.high):.1f}" y1="{y}" y2="{y}" stroke="{colour}" '
            f'stroke-width="3"/><circle cx="{at(gain.mean):.1f}" cy="{y}" r="5" fill="{colour}"/>'
        )
    bottom = TOP + ROW * len(others)
    return _SVG.format(
        title="Confirm loss above the winner's: mean and 90 % confidence interval",
        width=WIDTH,
        height=bottom + 40,
        zero=at(0.0),
        top=TOP - 8,
        bottom=bottom,
        foot=bottom + 22,
        rows="\n".join(rows),
        winner=html.escape(winner.candidate.describe()),
    )
