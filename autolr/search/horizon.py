"""From trial length to the full run: the best rate falls as the training gets longer."""

from __future__ import annotations


def carry(length: int, steps: int, exponent: float) -> float:
    """Return what a rate that is best over `length` steps is multiplied by for `steps` steps.

    The best rate of W_q and W_v falls as a power of the number of steps: every rate decays to 0
    over its own run, and a long run at a high rate spends most of it far from where it ends.

    Args:
        length: steps of a trial.
        steps: steps of the full run.
        exponent: of the power; 0 copies the rate.
    """
    return float((length / steps) ** exponent)
