"""Between the full run and a trial: the best rate falls as the training gets longer."""

from __future__ import annotations


def carry(length: int, steps: int, exponent: float) -> float:
    """Return what a rate that is right for `length` steps is multiplied by to be right for `steps` steps.

    The best rate of W_q and W_v falls as a power of the number of steps: every rate decays to 0
    over its own run, and a long run at a high rate spends most of it far from where it ends.

    Args:
        length: steps the rate is for.
        steps: steps it is wanted for.
        exponent: of the power; 0 copies the rate.
    """
    return float((length / steps) ** exponent)
