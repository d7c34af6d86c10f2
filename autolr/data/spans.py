"""Places in texts: what two texts have in common, and what stands between parts that are known."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

# Where something begins and ends in a text.
Span = tuple[int, int]


def common(one: str, other: str) -> int:
    """Return how many characters two texts begin with alike."""
    if other.startswith(one):
        return len(one)
    low, high = 0, min(len(one), len(other))
    while low < high:  # the first character that differs, by halves
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[:middle] == other[:middle] else (low, middle - 1)
    return low


def between(text: str, fixed: Sequence[str], said: Iterable[str]) -> list[Span]:
    """Return what stands between fixed parts of a text.

    Args:
        text: all of it.
        fixed: the parts, one more than what stands between them.
        said: what is likely to stand there.

    Raises:
        LookupError: a part is not there, or might be in two places.
    """
    first, last = fixed[0], fixed[-1]
    at, end = len(first), len(text) - len(last)
    if not (text.startswith(first) and text.endswith(last) and at <= end):
        raise LookupError("the parts are others")
    spans = []
    inner = fixed[1:-1]
    for number, (part, likely) in enumerate(zip(inner, said, strict=False)):
        place = next(
            (at + len(one) for one in (likely, likely.strip()) if one and text.startswith(one + part, at)), -1
        )
        if place < 0:
            place = text.find(part, at, end)
            # As often as the part itself is still to come, and no more: else it may stand in an answer.
            if not part or place < 0 or text.count(part, at, end) != list(inner[number:]).count(part):
                raise LookupError("a part is not there, or might be in two places")
        spans.append((at, place))
        at = place + len(part)
    if at > end:
        raise LookupError("the parts overlap")
    return [*spans, (at, end)]
