"""The stages of a search: the one table that says who trains how far, and what judges them.

A search is successive halving. With the settings of a new study, and 16 trials, it looks like this:

    share of      0        1/4          1/2                      1
    the full run  |---------|------------|------------------------|
    trials        xxxxxxx   16 candidates, baselines first; many end at a rung
                  xxxxxxxxxxx
    50%                     xxxxxxxxxxxxxx   the best 6 train on
    100%                                 xxxxxxxxxxxxxxxxxxxxxxxxx   the best 2, and the default baseline
    seeds         xxxxxxxxxxx   the winner and all baselines again, 3 seeds each

The engine, the dry run, the live view and the report are loops over this table: a stage that is added or changed here
is added or changed everywhere.

Successive halving: Jamieson and Talwalkar, "Non-stochastic best arm identification and hyperparameter optimization",
2016. Shares were measured on the embedded study (studies/oracle): averaged weights rank candidates after a quarter as
the end does, and less well after an eighth.

Example:
    >>> from autolr import Study
    >>> study = Study(model="m", data="d", search={"stages": [{"to": 0.25}, {"to": 1.0, "promote": 2}], "seeds": 2})
    >>> [(stage.name, stage.steps, stage.promote, stage.seeds) for stage in stages(study, 512)]
    [('trials', 128, 16, 1), ('100%', 512, 2, 1), ('seeds', 128, 1, 2)]
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from autolr.data.batches import CYCLE
from autolr.progress.jobs import Job
from autolr.rundir.records import SEEDS, TRIALS
from autolr.schema.candidate import Candidate
from autolr.schema.study import StageSetting, Study
from autolr.tuner.propose import baselines
from autolr.tuner.propose.baselines import Baseline
from autolr.tuner.propose.space import SearchSpace


class Judge(StrEnum):
    """By what the trainings of a stage are compared.

    RUNGS: trials, at their rungs and their end, by as many held-out examples as tell them apart.
    HELD_OUT: all examples that no training of the stage learns from.
    SPLITS: *validation*, and the last batches of a full run before it learns them; *test* is reported.
    """

    RUNGS = "rungs"
    HELD_OUT = "held-out"
    SPLITS = "splits"


@dataclass(frozen=True)
class Stage:
    """One line of the table.

    Attributes:
        name: in the run folder and wherever the stage is shown.
        steps: where its trainings end, in optimizer steps of the full run.
        promote: candidates that come from the stage before, the best so far; of the trials the budget.
        seeds: trainings of each candidate. A single one has the search's seed and resumes what earlier stages
            trained; of several each has a seed of its own.
        judged_on: by what they are compared.
        baselines: who trains beside the promoted, whatever they scored before. Those of the trials count as trials.
    """

    name: str
    steps: int
    promote: int
    seeds: int = 1
    judged_on: Judge = Judge.HELD_OUT
    baselines: tuple[Baseline, ...] = ()

    def seeds_of(self, seed: int) -> range:
        """Return the seeds of the stage in a search with this seed."""
        return range(seed, seed + 1) if self.seeds == 1 else range(seed + 1, seed + 1 + self.seeds)


def stages(study: Study, horizon: int) -> tuple[Stage, ...]:
    """Return the stages of a search whose full run has `horizon` steps; the first are its trials.

    A stage that goes no further than the trials, or as far as one that follows, is left out.
    """
    first, *later = study.search.stages
    trained = steps_of(first, horizon)
    trials = Stage(TRIALS, trained, study.budget.trials, judged_on=Judge.RUNGS)
    ends = [steps_of(stage, horizon) for stage in later]
    halving = [
        Stage(_name(stage, end, horizon), end, stage.promote or 1)
        for stage, end, following in zip(later, ends, [*ends[1:], horizon + 1], strict=False)
        if trained < end < following
    ]
    if halving:
        halving[-1] = replace(halving[-1], judged_on=Judge.SPLITS, baselines=(Baseline.DEFAULT,))
    # Without a stage beyond the trials the seeds choose the winner, so they compare all who would have been in it.
    compared = 1 if halving or not later else later[-1].promote or 1
    again = Stage(SEEDS, trained, compared, study.search.seeds, Judge.SPLITS, baselines.of(study))
    return trials, *halving, again


def _name(stage: StageSetting, end: int, horizon: int) -> str:
    """Return a stage's name: the share of the full run that the study gives, or its last step."""
    if end == horizon:
        return "100%"
    return f"step {end}" if stage.to > 1 else f"{100 * stage.to:.3g}%"


def steps_of(stage: StageSetting, horizon: int) -> int:
    """Return where a stage ends; a share is rounded to whole cycles of batch lengths."""
    if stage.to > 1:
        return min(int(stage.to), horizon)
    return horizon if stage.to == 1 else min(horizon, max(1, round(horizon * stage.to / CYCLE)) * CYCLE)


def deciding(table: Sequence[Stage]) -> Stage:
    """Return the stage that chooses the winner: the first that is judged on the splits."""
    return next(stage for stage in table if stage.judged_on is Judge.SPLITS)


def resumable(table: Sequence[Stage], steps: int) -> int:
    """Return how many candidates a later stage may resume that trained this far with the search's seed."""
    return max((stage.promote for stage in table if stage.seeds == 1 and stage.steps > steps), default=0)


def training_id(candidate: Candidate, seed: int, steps: int) -> str:
    """Return what names a training in the run folder, in every stage and every sitting of a search."""
    digest = hashlib.sha256(candidate.model_dump_json().encode()).hexdigest()[:10]
    return f"{digest}-seed{seed}-step{steps}"


def trial_key(number: int) -> str:
    """Return what names a trial there: the sampler may propose a candidate twice, so it is its number."""
    return f"trial-{number}"


def jobs(
    table: Sequence[Stage],
    stage: Stage,
    candidates: Mapping[Candidate, str],
    space: SearchSpace,
    seed: int,
    done: Collection[str],
    tried: Mapping[Candidate, str],
) -> list[Job]:
    """Return the trainings of a stage that are not done yet.

    Args:
        table: all stages: a training resumes what an earlier stage has trained of it.
        stage: this one.
        candidates: who trains, and under which label.
        space: gives their rates.
        seed: of the search.
        done: ids of the trainings that are there.
        tried: key of the trial of each candidate that had one.
    """
    found = []
    for number, (own, candidate) in enumerate((s, c) for s in stage.seeds_of(seed) for c in candidates):
        key = training_id(candidate, own, stage.steps)
        before = [s for s in table if s.steps < stage.steps and own in s.seeds_of(seed)]
        keys = [
            tried.get(candidate) if s.judged_on is Judge.RUNGS else training_id(candidate, own, s.steps)
            for s in sorted(before, key=lambda s: s.steps, reverse=True)
        ]
        if key not in done:
            config, begun = space.slot(candidate, own, stage.steps), tuple(one for one in keys if one)
            found.append(Job(candidates[candidate], candidate, config, number, key, begun))
    return found
