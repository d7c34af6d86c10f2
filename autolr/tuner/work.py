"""What a worker of a search works on."""

from __future__ import annotations

from dataclasses import dataclass

from autolr.progress.callbacks import Callback
from autolr.rundir.folder import RunFolder
from autolr.schema.study import Study
from autolr.tuner.propose.space import SearchSpace
from autolr.tuner.stages import Stage
from autolr.tuner.workers.leases import Leases


@dataclass(frozen=True)
class Work:
    """A search, as a worker sees it.

    Attributes:
        study: what is searched.
        space: its space for the model.
        stages: the table of the search; the first are its trials.
        folder: the run folder, which all workers see.
        claims: says which trials and trainings are this worker's.
        callback: is told what happens.
    """

    study: Study
    space: SearchSpace
    stages: tuple[Stage, ...]
    folder: RunFolder
    claims: Leases
    callback: Callback
