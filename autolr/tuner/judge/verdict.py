"""What the last stages say: the winner, its gains with intervals, and one sentence."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np

from autolr import display
from autolr.rundir.records import Record, by_candidate, losses_of
from autolr.schema.candidate import Candidate
from autolr.schema.recipe import Interval, Score
from autolr.schema.space import Targets
from autolr.tuner.judge.paired_stats import LEVEL, PairedDifference
from autolr.tuner.propose.baselines import Baseline

DEFAULT_TARGETS: tuple[Targets, ...] = ("qv",)


def paired_interval(differences: np.ndarray, level: float = LEVEL) -> Interval:
    """Estimate a mean difference that holds for other seeds and other examples.

    See `autolr.tuner.judge.paired_stats.PairedDifference` for the model and the interval.

    Args:
        differences: loss differences on the same examples, [seeds, examples]; at least 2 of each.
        level: confidence level of the interval.
    """
    return PairedDifference.of(differences).interval(level)


def choose(trainings: Sequence[Record], among: Collection[Targets] = DEFAULT_TARGETS) -> Candidate:
    """Return the candidate with the lowest mean loss on what is held out, or one of smaller rank that is as good.

    A candidate with fewer diverged trainings comes first. As good is what lies within one standard error of the
    best; of those with the smallest rank the best is taken (the one-standard-error rule). A comparison that trains
    other matrices than the study's is for the verdict only: `among` says which are the study's.
    """
    groups = {c: group for c, group in by_candidate(trainings).items() if c.targets in among}
    loss = judged_by([record for group in groups.values() for record in group])
    ranked = sorted(groups, key=lambda c: (_diverged(groups[c]), np.mean([loss(r) for r in groups[c]]), c.describe()))
    best = ranked[0]
    safe = [c for c in ranked if _diverged(groups[c]) == _diverged(groups[best])]
    as_good = [c for c in safe if c == best or (c.rank < best.rank and is_as_good(groups[c], groups[best]))]
    return min(as_good, key=lambda c: c.rank)  # the first of them, so the best


def judged_by(trainings: Sequence[Record]) -> Callable[[Record], float]:
    """Return by what loss trainings are compared: the held-out one, where all have it of as many examples.

    If some have it of fewer examples, it is *validation* alone.
    """
    counts = {record.unseen_examples for record in trainings if not record.diverged}
    return (lambda record: record.held_out_loss) if len(counts) == 1 else (lambda record: record.validation_loss)


def standard_error(own: Sequence[Record], best: Sequence[Record]) -> float | None:
    """Return the standard error of the mean difference of losses, paired by seed; of one seed, by what is held out.

    That is by example of *validation*, and by step where the last steps of a full run are held out too.
    None where there is nothing to pair.
    """
    if len(own) == len(best) == 1:
        return _error_of_one_seed(own[0], best[0])
    loss = judged_by([*own, *best])
    values = [np.array([loss(record) for record in group]) for group in (own, best)]
    if values[0].shape != values[1].shape or len(values[0]) < 2:
        return None
    return float((values[0] - values[1]).std(ddof=1) / np.sqrt(len(values[0])))


def _error_of_one_seed(own: Record, best: Record) -> float | None:
    if not _alike(own.validation_losses, best.validation_losses):
        return None
    validation = np.array(own.validation_losses) - np.array(best.validation_losses)
    examples, variance = len(validation), validation.var(ddof=1)
    if own.unseen_examples != best.unseen_examples or not _alike(own.unseen_losses, best.unseen_losses):
        return float(np.sqrt(variance / examples))
    steps = np.array(own.unseen_losses) - np.array(best.unseen_losses)
    unseen = own.unseen_examples
    error = np.hypot(np.sqrt(variance * examples), unseen * steps.std(ddof=1) / np.sqrt(len(steps)))
    return float(error / (examples + unseen))


def _alike(own: Sequence[float], other: Sequence[float]) -> bool:
    return len(own) == len(other) >= 2


def is_as_good(own: Sequence[Record], best: Sequence[Record]) -> bool:
    """Return True if losses lie within one standard error of the best."""
    error, loss = standard_error(own, best), judged_by([*own, *best])
    apart = np.mean([loss(r) for r in own]) - np.mean([loss(r) for r in best])
    return error is not None and bool(apart <= error)


def scores(trainings: Sequence[Record], winner: Candidate) -> list[Score]:
    """Return the scores of all compared candidates, the winner first, with their distance to it."""
    groups = by_candidate(trainings)
    reference = losses_of(groups[winner])
    found = []
    for candidate, group in groups.items():
        gain = None if candidate == winner else paired_interval(losses_of(group) - reference)
        found.append(
            Score(
                label=group[0].label,
                candidate=candidate,
                validation_loss=float(np.mean([r.validation_loss for r in group])),
                test_loss=float(np.mean([r.tested for r in group])),
                test_metric=float(np.mean([r.test_metric or 0.0 for r in group])),
                diverged=_diverged(group),
                gain=gain,
            )
        )
    return sorted(found, key=lambda score: (score.gain is not None, score.diverged, score.test_loss))


def final_scores(finals: Sequence[Record]) -> list[Score]:
    """Return the scores of the trainings that chose the winner, the best first."""
    shown, loss = set(Score.model_fields), judged_by(finals)
    by_validation = all(loss(record) == record.validation_loss for record in finals)
    found = [
        Score.model_validate(
            {**record.model_dump(include=shown), "held_out_loss": None if by_validation else loss(record)}
            | {"diverged": int(record.diverged)}
        )
        for record in finals
    ]
    return sorted(found, key=lambda score: (score.diverged, score.chosen_by))


def at_the_end(finals: Sequence[Record], winner: Candidate, length: int, steps: int) -> str:
    """Return where the trainings that chose the winner have ended; nothing if several seeds chose it.

    Args:
        finals: of one seed each.
        winner: the best of them.
        length: steps of the trainings that the verdict rests on.
        steps: of the full run.
    """
    if not finals:
        return ""
    told = {
        record.candidate: "diverges" if record.diverged else f"reaches a test loss of {display.loss(record.tested)}"
        for record in finals
    }
    others = ", ".join(f"{one.describe()} {end}" for one, end in told.items() if one != winner)
    end = f"step {finals[0].steps}" if 0 < finals[0].steps < steps else "the end"
    return (
        f" These differences were measured after {length} of {steps} steps. Trained to {end}, one seed each, "
        f"the winner {told[winner]}{', ' + others if others else ''}."
    )


def sentence(found: Sequence[Score]) -> str:
    """Return what the comparison has shown, and what it has not."""
    winner = next(score for score in found if score.gain is None)
    by_baseline = {one: score for score in found for one in Baseline if one.is_in(score.label)}
    default, same_rate = by_baseline.get(Baseline.DEFAULT), by_baseline.get(Baseline.SAME_LR)
    what = f"{winner.candidate.describe()} (test loss {display.loss(winner.test_loss)}{_gone_wrong(winner)})"
    if default is None:
        text = f"{what} was best. The default does not fit this device's memory, so it was not tried."
    elif default is winner:
        text = f"No gain over the default: the default itself, {what}, was best{_next(found)}."
    else:
        text = _against(what, Baseline.DEFAULT.title(), default)
    has_ratio = winner.candidate.has_ratio
    if has_ratio and winner.candidate.ratio == 1.0:
        text += " The winner's ratio is 1, that of ordinary LoRA."
    elif has_ratio and same_rate is not None and same_rate is not default and same_rate.gain is not None:
        text += f" The ratio by itself, against {Baseline.SAME_LR.title()}: " + _worth(same_rate.gain)
    for baseline in (Baseline.PAPER, Baseline.WITH_K):
        other = by_baseline.get(baseline)
        if other is not None and other.gain is not None:
            text += f" Against {baseline.title(has_ratio=has_ratio)}: {_worth(other.gain)}"
    return text


def _against(what: str, name: str, other: Score) -> str:
    gain = other.gain
    assert gain is not None
    interval = (
        f"{display.gap(gain.mean)} of test loss, 90% interval {display.gap(gain.low)} to {display.gap(gain.high)}"
    )
    name = f"{name}, {other.candidate.describe()}{_gone_wrong(other)}"
    if gain.low > 0:
        return f"{what} is significantly better than {name}: {interval}."
    if gain.high < 0:
        return f"{what} is significantly worse than {name}, on test: {interval}."
    return f"The gain of {what} over {name}, is inconclusive: {interval}."


def _gone_wrong(score: Score) -> str:
    return f", {score.diverged} of its trainings diverged" if score.diverged else ""


def _next(found: Sequence[Score]) -> str:
    """Return how far the best of the search's own finalists lies behind a baseline that has won."""
    own = [(score, score.gain) for score in found if score.gain and score.label.startswith("finalist")]
    if not own:
        return ""
    best, gain = min(own, key=lambda pair: (pair[0].diverged, pair[0].validation_loss))
    place = "above" if gain.mean >= 0 else "below"
    return (
        f"; the search's own best, {best.candidate.describe()}, lies {display.loss(abs(gain.mean))} {place} it, "
        f"90% interval {display.gap(gain.low)} to {display.gap(gain.high)}"
    )


def _worth(gain: Interval) -> str:
    found = "a significant gain" if gain.low > 0 else "a significant loss" if gain.high < 0 else "inconclusive"
    return f"{found} ({display.gap(gain.mean)}, {display.gap(gain.low)} to {display.gap(gain.high)})."


def _diverged(group: Sequence[Record]) -> int:
    """Return how many trainings diverged: a recipe that may diverge is worse than any that does not."""
    return sum(record.diverged for record in group)
