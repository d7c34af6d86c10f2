"""The run folder: everything a search has written, and nothing a search needs elsewhere.

study.yaml      the study, every setting spelled out
journal.log     Optuna's storage: trials, candidates, rungs
curves.jsonl    one trial a line: losses of each step
confirm.jsonl   one repeat of the confirmation a line
phases.jsonl    device-seconds and evaluated tokens, one visit to a phase a line
machine.json    device, precision, slots and memory of the last visit
resources.parquet  memory and use of the device, time and tokens of each slot, sampled once a second
live.json       how far the search is, for `autolr watch`
recipe.yaml     the result
report.html     the page
figures/        the page's figures as pictures, where asked for
train/          the full run
"""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from autolr.errors import DocumentError, RunError
from autolr.study import NOT_IDENTITY, Study

if TYPE_CHECKING:
    from collections.abc import Iterator

    from optuna.storages import BaseStorage


class RunFolder:
    """The files of one search.

    Args:
        path: the folder; it need not exist yet.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.study = self.path / "study.yaml"
        self.journal = self.path / "journal.log"
        self.curves = self.path / "curves.jsonl"
        self.confirm = self.path / "confirm.jsonl"
        self.phases = self.path / "phases.jsonl"
        self.machine = self.path / "machine.json"
        self.resources = self.path / "resources.parquet"
        self.live = self.path / "live.json"
        self.recipe = self.path / "recipe.yaml"
        self.report = self.path / "report.html"
        self.train = self.path / "train"

    def open(self, study: Study) -> None:
        """Make the folder this study's own, or check that it is.

        Raises:
            RunError: the folder holds another study, or something else.
        """
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"--out {self.path}: is a file, not a folder")
        if self.study.exists():
            try:
                held = Study.load(self.study)
            except DocumentError as error:
                raise RunError(
                    f"--out {self.path}: its study.yaml is damaged; choose another --out\n{error}"
                ) from None
            if held.identity() != study.identity():
                changed = ", ".join(_differences(held, study))
                raise RunError(
                    f"--out {self.path}: already holds another study ({held.name}; it differs in {changed}); "
                    "choose another --out, or go on with that one: autolr search --out alone"
                )
        elif self.path.exists() and any(item.name != ".lock" for item in self.path.iterdir()):
            raise RunError(f"--out {self.path}: is not empty and holds no study; choose another --out")
        study.save(self.study)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other searches out of the folder.

        Raises:
            RunError: another search is at work here, or the folder cannot be written.
        """
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"--out {self.path}: is a file, not a folder")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / ".lock", timeout=0)
            lock.acquire()
        except Timeout:
            raise RunError(f"--out {self.path}: another search is at work in this folder") from None
        except OSError as error:
            raise RunError(f"--out {self.path}: cannot be written: {error.strerror or error}") from None
        try:
            yield
        finally:
            lock.release()

    def storage(self) -> BaseStorage:
        """Return Optuna's storage in this folder.

        Raises:
            RunError: it is damaged.
        """
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        from autolr.search.patience import Patient

        try:
            return Patient(  # type: ignore[abstract]  # its methods are made in a loop
                JournalStorage(JournalFileBackend(str(self.journal))), str(self.journal)
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(
                f"{self.journal}: is damaged ({type(error).__name__}); what can be saved of it says: autolr runs "
                f"{self.path} --check"
            ) from None


def _differences(one: Study, other: Study) -> list[str]:
    a, b = (study.model_dump(mode="json", exclude=NOT_IDENTITY) for study in (one, other))
    return [key for key in a if a[key] != b[key]]
