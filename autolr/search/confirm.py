"""Semifinals, finals and confirmation: the best go on to half, then to the end; then several seeds of who won."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import torch

from autolr.candidate import Candidate
from autolr.data.batches import TokenSet, joined
from autolr.data.prepared import Prepared
from autolr.errors import RunError
from autolr.pack.divergence import is_number, stand_in
from autolr.pack.pack import Pack
from autolr.search import records
from autolr.search.claims import Alone
from autolr.search.encoding import Encoding
from autolr.search.held_out import judges, last_steps
from autolr.search.loop import Job, Running, Source
from autolr.search.records import RepeatRecord, SemifinalRecord, TrialRecord
from autolr.search.space import SearchSpace
from autolr.search.surrogate import Surrogate
from autolr.study import Study


def best_of(
    trials: list[TrialRecord], count: int, space: SearchSpace, apart: Candidate | None = None
) -> list[Candidate]:
    """Return the best candidates of the search, best first; a rule that lies outside the space is none of them.

    Nor is the one `apart`, which is compared with them in any case, unless it is all there is.

    Finished trials come before pruned ones, and those pruned late before those pruned early. Among equals it is not
    the lowest score that counts, which is half luck, but what the surrogate of all curves lets expect. That holds for
    the full run too: from a quarter on the best rate hardly moves (studies/research/oracle/optimum_drift.py).
    """
    usable = [t for t in trials if t.score is not None and t.outcome in ("finished", "pruned")]
    usable = [t for t in usable if space.holds(t.candidate)]
    ranked = sorted(usable, key=lambda t: (-max(t.rungs), t.score, t.number))
    ranked = [t for t in ranked if t.candidate != apart] or ranked
    encoding = Encoding(space.distributions)
    surrogate = Surrogate.from_curves(encoding, [(t.candidate.model_dump(), t.rungs) for t in usable])
    if surrogate is not None:
        alike = [t for t in ranked if max(t.rungs) == max(ranked[0].rungs)]
        places = surrogate.ranked(np.array([encoding.encode(t.candidate.model_dump()) for t in alike]))
        ranked = [*(alike[place] for place in places), *ranked[len(alike) :]]
    return list(dict.fromkeys(trial.candidate for trial in ranked))[:count]


def line_up(
    study: Study,
    space: SearchSpace,
    best: list[Candidate],
    winner: Candidate | None = None,
    unfit: Collection[Candidate] = (),
) -> dict[Candidate, str]:
    """Return who is confirmed, and under which label; a finalist may be a rule as well.

    Args:
        study: names the rules in the comparison.
        space: gives their candidates.
        best: the finalists.
        winner: the best of those confirmed so far; its rule `winner_lr` joins when it is known.
        unfit: candidates that do not fit the device's memory; a rule among them is left out.
    """
    labels: dict[Candidate, list[str]] = {}
    for place, candidate in enumerate(best, 1):
        labels.setdefault(candidate, []).append(f"finalist {place}")
    for name in study.baselines:
        if name != "winner_lr":
            labels.setdefault(space.rule(name), []).append(name)
        elif winner is not None:
            labels.setdefault(space.rule(name, winner), []).append(name)
    return {candidate: " + ".join(names) for candidate, names in labels.items() if candidate not in unfit}


def confirmation_jobs(study: Study, space: SearchSpace, candidates: dict[Candidate, str], length: int) -> list[Job]:
    """Return the repeats of a search's confirmation: each candidate with each seed.

    Args:
        study: gives the seeds.
        space: gives the rates of a repeat.
        candidates: whom to confirm, and their labels.
        length: steps of a repeat, those of a trial.
    """
    seeds = range(study.seed + 1, study.seed + 1 + study.search.repeats)
    wanted = [(c, label, seed) for seed in seeds for c, label in candidates.items()]
    return [
        Job(label, c, space.slot(c, seed, length), number, f"repeat-{_digest(c)}-seed{seed}")
        for number, (c, label, seed) in enumerate(wanted)
    ]


def semifinal_jobs(
    study: Study, space: SearchSpace, candidates: Sequence[Candidate], trials: Sequence[TrialRecord], length: int
) -> list[Job]:
    """Return the trainings of a search's semifinals: each candidate with the trials' seed, for `length` steps."""
    labels = {candidate: f"semifinalist {place}" for place, candidate in enumerate(candidates, 1)}
    return _going_on(study, space, labels, trials, ["semifinal"], length)


def final_jobs(
    study: Study, space: SearchSpace, candidates: dict[Candidate, str], trials: Sequence[TrialRecord]
) -> list[Job]:
    """Return the trainings of a search's finals: each candidate with the trials' seed, to the end of the full run.

    Args:
        study: gives the seed.
        space: gives the rates.
        candidates: finalists and the rule of thumb, and their labels.
        trials: of the search; a final goes on with what the trial or the semifinal of its candidate has begun.
    """
    return _going_on(study, space, candidates, trials, ["final", "semifinal"], space.steps)


def _going_on(
    study: Study,
    space: SearchSpace,
    candidates: dict[Candidate, str],
    trials: Sequence[TrialRecord],
    stages: Sequence[str],
    length: int,
) -> list[Job]:
    """Return the trainings of a stage; each goes on with its candidate's at the stages that follow, or its trial."""
    furthest_last = sorted(trials, key=lambda trial: max(trial.rungs, default=0))
    begun = {trial.candidate: trial_key(trial.number) for trial in furthest_last}
    jobs = []
    for number, (c, label) in enumerate(candidates.items()):
        own, *before = [f"{stage}-{_digest(c)}" for stage in stages]
        before += [begun[c]] if c in begun else []
        jobs.append(Job(label, c, space.slot(c, study.seed, length), number, own, tuple(before)))
    return jobs


def trial_key(number: int) -> str:
    """Return the key of a trial's job."""
    return f"trial-{number}"


def missing(jobs: Sequence[Job], done: Sequence[RepeatRecord | SemifinalRecord]) -> list[Job]:
    """Return the trainings that are not there yet."""
    there = {(record.candidate, record.seed) for record in done}
    return [job for job in jobs if (job.candidate, job.config.seed) not in there]


def _rounded(losses: torch.Tensor) -> list[float]:
    return [float(f"{loss:.8g}") for loss in losses.tolist()]


def _curve(running: Running) -> list[float]:
    return [float(f"{loss:.5g}") for loss in running.slot.losses if is_number(loss)]


def _digest(candidate: Candidate) -> str:
    return hashlib.sha256(candidate.model_dump_json().encode()).hexdigest()[:10]


class Confirmation(Source):
    """Repeats, or trainings of the finals, as a source of jobs for the loop.

    Args:
        jobs: what is to be trained.
        path: the file of records they are added to.
        pack: scores them.
        data: *select* chooses the winner, *confirm* judges it.
        claims: on the repeats; None: nobody else trains them.
        save_every: steps between checkpoints of a job.
        study: of a search, whose full runs are also judged by their last steps.
    """

    rungs: tuple[int, ...] = ()
    record: type[RepeatRecord | SemifinalRecord] = RepeatRecord

    def __init__(
        self,
        jobs: Sequence[Job],
        path: Path,
        pack: Pack,
        data: Prepared,
        claims: Alone | None = None,
        save_every: int = 0,
        study: Study | None = None,
    ) -> None:
        self.study = study
        self.path = path
        self.pack = pack
        self.data = data
        self.claims = claims or Alone()
        self.save_every = save_every
        self.judges = self._judges(jobs)
        self.trained_tokens = self.evaluated_tokens = 0
        self._scores: dict[Running, list[tuple[torch.Tensor, torch.Tensor]]] = {}
        self._queue = list(jobs)
        self._taken: set[str] = set()

    def waiting(self) -> bool:
        """Tell whether there are repeats that others train."""
        self._forget_recorded()
        return bool(self._queue)

    def next(self) -> Job | None:
        """Take the next repeat that is no other worker's."""
        with self.claims.lock():
            self._forget_recorded()
            for job in self._queue:
                if job.key not in self._taken and self.claims.take(job.key):
                    self._taken.add(job.key)
                    return job
        return None

    def _forget_recorded(self) -> None:
        """Forget the repeats that somebody has recorded."""
        there = self._recorded()
        self._queue = [job for job in self._queue if (job.candidate, job.label, job.config.seed) not in there]

    def _recorded(self) -> set[tuple[Candidate, str, int]]:
        found = records.parsed(self.path, self.record)
        return {(record.candidate, record.label, record.seed) for record in found}

    def reached(self, running: list[Running]) -> None:
        """Score those that are through, and end them; one that gives an example no loss has diverged."""
        self._score(running)
        for one in running:
            whole = all(losses.isfinite().all() for losses, _ in self._scores[one])
            one.outcome = "finished" if whole else "diverged"

    def ended(self, running: Running) -> bool:
        """Record a training."""
        job = running.job
        if running.outcome == "infeasible":
            raise RunError(f"{job.label} ({job.candidate.describe()}): {running.slot.unfit}; use another --device")
        if running not in self._scores:  # it has diverged
            self._score([running])
        self.trained_tokens += running.trained_tokens
        record = self._record(running, [(self._filled(running, x), said) for x, said in self._scores.pop(running)])
        self._taken.discard(job.key)
        with self.claims.lock():
            if not self.claims.holds(job.key):
                return False  # this worker was silent for so long that another has taken the repeat over
            records.append(self.path, record)
        return True

    def _record(
        self, running: Running, scored: list[tuple[torch.Tensor, torch.Tensor]]
    ) -> RepeatRecord | SemifinalRecord:
        """Return what is kept of a training, from losses and predictions on each of its judges."""
        (select, select_said), (confirm, confirm_said) = scored
        job, slot, unseen, score = running.job, running.slot, range(0), self.pack.task.score
        running.score = float(select.mean())
        if self.study and running.outcome == "finished":
            unseen = last_steps(self.study, slot, len(select))
        return RepeatRecord(
            label=job.label,
            candidate=job.candidate,
            seed=job.config.seed,
            diverged=running.outcome == "diverged",
            select_loss=float(select.mean()),
            select_metric=score(select_said, self.data.select.labels),
            confirm_loss=float(confirm.mean()),
            confirm_metric=score(confirm_said, self.data.confirm.labels),
            losses=_rounded(confirm),
            select_losses=_rounded(select),
            unseen_losses=[float(f"{slot.losses[step]:.8g}") for step in unseen],
            unseen_examples=sum(len(slot.order[step]) for step in unseen),
            curve=_curve(running),
            tokens=running.trained_tokens,
            seconds=running.seconds,
        )

    def _judges(self, jobs: Sequence[Job]) -> list[TokenSet]:
        """Return what the jobs are scored on."""
        return [self.data.select, self.data.confirm]

    def _score(self, running: list[Running]) -> None:
        for data in self.judges:
            losses, said = self.pack.evaluate([one.slot for one in running], data, averaged=True)
            self.evaluated_tokens += len(running) * sum(data.lengths())
            for place, one in enumerate(running):
                self._scores.setdefault(one, []).append((losses[place], said[place]))

    def _filled(self, running: Running, losses: torch.Tensor) -> torch.Tensor:
        """Return losses of which each is a number: a diverged training gives some examples none."""
        return losses.where(losses.isfinite(), stand_in(running.slot.losses, self.pack.task.chance))


class Semifinals(Confirmation):
    """The trainings of a search's semifinals, as a source of jobs: scored on all that is held out until then."""

    record = SemifinalRecord

    def _judges(self, jobs: Sequence[Job]) -> list[TokenSet]:
        assert self.study is not None
        return [joined(judges(self.study, self.data, max(job.config.length for job in jobs)))]

    def is_beginning(self, running: Running) -> bool:
        """Tell that a final may go on with any that is through."""
        return running.outcome == "finished"

    def _record(self, running: Running, scored: list[tuple[torch.Tensor, torch.Tensor]]) -> SemifinalRecord:
        ((losses, _),) = scored
        running.score = float(losses.mean())
        return SemifinalRecord(
            label=running.job.label,
            candidate=running.job.candidate,
            seed=running.job.config.seed,
            diverged=running.outcome == "diverged",
            loss=running.score,
            examples=len(losses),
            curve=_curve(running),
            tokens=running.trained_tokens,
            seconds=running.seconds,
        )
