"""Cases drawn by hypothesis: as many as asked for, and the same ones each time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

Judge = Callable[[Any], None]


def drawn(cases: SearchStrategy[Any], count: int, number: int) -> Callable[[Judge], Callable[[], None]]:
    """Return a decorator that calls a function with so many cases.

    Shrinking a case that fails would draw more than are counted, so there is none.

    Args:
        cases: what is drawn.
        count: how many.
        number: seed of the drawing.
    """
    whole = settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    return lambda judge: seed(number)(whole(given(cases)(judge)))
