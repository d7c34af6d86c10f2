"""The run folder: everything a search has written, and nothing a search needs elsewhere.

study.yaml      the study, every setting spelled out
journal.log     Optuna's storage: trials, candidates, rungs
storage.json    where the trials lie instead of the journal: a database, and their name in it
fingerprints.json  sha256 of data, model weights, tokenizer and tokens that the search was begun with
slots/          checkpoints of the trainings under way
workers/        what each worker of several has said, how far it is, and what it takes
curves.jsonl    one trial a line: losses of each step
trainings.jsonl one training after the trials a line, of whatever stage
phases.jsonl    device-seconds and evaluated tokens, one visit to a stage a line
machine.json    device, precision, slots and memory of the last visit
resources.parquet  memory and use of the device, time and tokens of each slot, sampled once a second
live.json       how far the search is, for `autolr watch`
recipe.yaml     the result
report.html     the page
figures/        the page's figures as pictures, where asked for
train/          the full run
"""

from __future__ import annotations

import json
import os
import uuid
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

from filelock import FileLock, Timeout

from autolr.errors import DocumentError, RunError
from autolr.rundir import storage as storages
from autolr.schema import yaml_io
from autolr.schema.study import NOT_IDENTITY, Study

if TYPE_CHECKING:
    from collections.abc import Iterator

    import optuna
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

# Environment variable with the address of the database that holds the trials, its password included.
STORAGE = "AUTOLR_STORAGE"


class RunFolder:
    """The files of one search.

    Args:
        path: the folder; it need not exist yet.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.study = self.path / "study.yaml"
        self.journal = self.path / "journal.log"
        self.database = self.path / "storage.json"
        self.fingerprints = self.path / "fingerprints.json"
        self.slots = self.path / "slots"
        self.workers = self.path / "workers"
        self.curves = self.path / "curves.jsonl"
        self.trainings = self.path / "trainings.jsonl"
        self.phases = self.path / "phases.jsonl"
        self.machine = self.path / "machine.json"
        self.resources = self.path / "resources.parquet"
        self.live = self.path / "live.json"
        self.recipe = self.path / "recipe.yaml"
        self.report = self.path / "report.html"
        self.train = self.path / "train"

    def open(self, study: Study, storage: str | None = None) -> None:
        """Make the folder this study's own, or check that it is.

        Args:
            study: what is searched.
            storage: database that shall hold the trials; None: the journal does, or the database of a search that
                has begun.

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
                    f"--out {self.path}: its study.yaml is damaged. Choose another --out.\n{error}"
                ) from None
            if held.identity() != study.identity():
                changed = ", ".join(_differences(held, study))
                raise RunError(
                    f"--out {self.path}: this folder belongs to study {held.name}, which differs in: {changed}. "
                    f"Choose another folder, or resume {held.name} with: autolr search --out {self.path}"
                )
        elif self.path.exists() and not all(_is_ours(item.name) for item in self.path.iterdir()):
            raise RunError(f"--out {self.path}: is not empty and has no study. Choose another --out.")
        if storage is not None:
            storages.with_driver(storage)
        study.save(self.study)
        if storage is not None:
            self.use(storage, study)

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

    @property
    def url(self) -> str | None:
        """The database that holds the trials; None: the journal does.

        A password is not kept: the driver finds it (PGPASSWORD, ~/.pgpass), or AUTOLR_STORAGE gives the address
        with it.
        """
        return self._database().get("url")

    @property
    def has_trials(self) -> bool:
        """Whether a search has begun here."""
        return self.journal.is_file() or self.database.is_file()

    def use(self, url: str, study: Study) -> None:
        """Let the trials lie in a database.

        Raises:
            RunError: this search has begun elsewhere.
        """
        shown = storages.hidden(url)
        if self.journal.is_file():
            raise RunError(f"--storage {shown}: {self.path} already has trials in its journal. Choose another --out.")
        held = self._database()
        if held and storages.hidden(held["url"]) != shown:
            raise RunError(f"--storage {shown}: the trials of {self.path} lie in {storages.hidden(held['url'])}")
        os.environ[STORAGE] = url  # of this process alone: the password goes to no file
        if not held:
            name = f"{study.name}-{study.identity()}-{uuid.uuid4().hex[:8]}"
            yaml_io.write_text(self.database, json.dumps({"url": shown, "name": name}) + "\n")

    def storage(self) -> BaseStorage:
        """Return Optuna's storage of this search.

        Raises:
            RunError: its database does not answer, or its journal is damaged.
        """
        from autolr.rundir.retry import RetryingStorage

        url = self.url
        try:
            found = storages.opened(url) if url else storages.journal(self.journal)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if url:
                raise
            raise RunError(
                f"{self.journal}: is damaged ({type(error).__name__}); see what can be saved with: autolr runs "
                f"{self.path} --check"
            ) from None
        name = storages.hidden(url) if url else str(self.journal)
        return cast("BaseStorage", RetryingStorage(found, name))

    def optuna(self, study: Study) -> optuna.Study:
        """Return the search's trials, a study of Optuna; it is made where there is none."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with self.locked():
            found = self.storage()
            names = self.names(found) or [self._database().get("name", study.name)]
            return optuna.create_study(study_name=names[0], storage=found, direction="minimize", load_if_exists=True)

    def trials(self) -> list[FrozenTrial]:
        """Return the search's trials; none before it has begun."""
        import optuna

        if not self.has_trials:
            return []
        found = self.storage()
        names = self.names(found)
        return optuna.load_study(study_name=names[0], storage=found).trials if names else []

    def locked(self) -> AbstractContextManager[None]:
        """Hold the lock under which workers claim, propose and record."""
        return storages.locked(self.url, self.path / ".claims", self._database().get("name", ""))

    def mend(self) -> list[str]:
        """Cut off last lines that were not written to their end, and say so; the lock must be held."""
        cut = {path.name: storages.cut_last_line(path) for path in (self.curves, self.trainings, self.phases)}
        return [
            f"{name}: its last line was cut off when a process was killed; {count} bytes dropped"
            for name, count in cut.items()
            if count
        ]

    def names(self, storage: BaseStorage) -> list[str]:
        """Return what the search is called in its storage; nothing before it has begun."""
        import optuna

        there = optuna.get_all_study_names(storage)
        return [name for name in there if name == self._database()["name"]] if self.url else there

    def _database(self) -> dict[str, str]:
        if not self.database.is_file():
            return {}
        try:
            held: dict[str, str] = json.loads(self.database.read_text(encoding="utf-8"))
            # The same address, with a password.
            given = os.environ.get(STORAGE)
            return {
                "name": held["name"],
                "url": given if given and storages.hidden(given) == held["url"] else held["url"],
            }
        except (ValueError, KeyError, TypeError):
            raise RunError(f"{self.database}: is damaged. It should name the database of the trials.") from None


def _is_ours(name: str) -> bool:
    """Return True if a file is one that a search which was killed at its very beginning has left."""
    return name in (".lock", ".claims") or name.startswith(".study.yaml.")


def _differences(one: Study, other: Study) -> list[str]:
    a, b = (study.model_dump(mode="json", exclude=NOT_IDENTITY) for study in (one, other))
    return [key for key in a if a[key] != b[key]]
