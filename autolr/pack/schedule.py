"""The rate's schedule: warm-up, then linear decay or a constant, as `transformers.get_scheduler` has them."""

from __future__ import annotations

from autolr.schema.training import Training


def schedule_factor(training: Training, step: int, steps: int) -> float:
    """Return the factor of the rate in update `step` (0 is the first) of `steps`."""
    warmup = round(training.warmup_ratio * steps)
    if step < warmup:
        return step / warmup
    if training.lr_scheduler_type == "constant":
        return 1.0
    return max(0.0, (steps - step) / max(1, steps - warmup))
