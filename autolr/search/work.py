"""What a worker of a search works on."""

from __future__ import annotations

from dataclasses import dataclass

from autolr.search.callbacks import Watcher
from autolr.search.claims import Claims
from autolr.search.folder import RunFolder
from autolr.search.space import SearchSpace
from autolr.search.stages import Stage
from autolr.study import Study


@dataclass(frozen=True)
class Work:
    """A search, as a worker sees it.

    Attributes:
        study: what is searched.
        space: its space for the model.
        stages: the table of the search; the first are its trials.
        folder: the run folder, which all workers see.
        claims: says which trials and trainings are this worker's.
        watcher: is told what happens.
    """

    study: Study
    space: SearchSpace
    stages: tuple[Stage, ...]
    folder: RunFolder
    claims: Claims
    watcher: Watcher
