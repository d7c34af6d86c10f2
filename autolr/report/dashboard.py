"""optuna-dashboard on a run's storage, with AutoLR's figures, notes and files; the run folder stays as it is."""

from __future__ import annotations

import json
import mimetypes
import string
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from socketserver import ThreadingMixIn
from types import SimpleNamespace
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import optuna
from optuna.artifacts import FileSystemArtifactStore
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.study._frozen import FrozenStudy

from autolr import display
from autolr.errors import AutoLRError, RunError
from autolr.report.figures import FIGURES
from autolr.rundir.folder import RunFolder
from autolr.rundir.result import SearchResult
from autolr.schema.candidate import Candidate

# Seconds between looks at a run that may still be searching.
EVERY = 10.0
# The identity of the only study in a run's journal.
STUDY = 0
# Pixels that the dashboard has for the height of a figure.
CARD = 450
_FILES = uuid.UUID("6f1d6a0e-2f0b-4f0e-9a57-3f2f6c1b7a10")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
_MARKS = {ord(mark): f"&#{ord(mark)};" for mark in string.punctuation} | {ord("\n"): " ", ord("\r"): " "}

Application = Callable[[dict[str, Any], Any], Iterable[bytes]]


class Decorated:
    """A run's storage with attributes on top that are kept in memory.

    What the dashboard's user writes goes to the run's own storage, and wins over what is on top.

    Args:
        inner: the storage.
    """

    def __init__(self, inner: BaseStorage) -> None:
        self.inner = inner
        self._on_top: dict[str, Any] = {}
        self._here = threading.local()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    @contextmanager
    def decorating(self) -> Iterator[None]:
        """Keep the study attributes that this thread sets in memory, in place of those it has set before."""
        self._here.attributes = {}
        try:
            yield
            self._on_top = self._here.attributes
        finally:
            del self._here.attributes

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """Set an attribute, on top or in the run's storage."""
        if hasattr(self._here, "attributes"):
            self._here.attributes[key] = value
        else:
            self.inner.set_study_system_attr(study_id, key, value)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """Return the storage's attributes and those on top."""
        return self._under(self.inner.get_study_system_attrs(study_id))

    def get_all_studies(self) -> list[FrozenStudy]:
        """Return the studies with what is on top of them."""
        studies = self.inner.get_all_studies()
        for study in studies:
            study.system_attrs = self._under(study.system_attrs)
        return studies

    def _under(self, own: dict[str, Any]) -> dict[str, Any]:
        """Return the storage's attributes with those on top; a note that the user has written hides ours."""
        # A note lies in pieces beside its version, and theirs may have fewer than ours.
        ours = {k: v for k, v in self._on_top.items() if f"{k.partition('note_str:')[0]}note_ver" not in own}
        return {**ours, **own}


# For Optuna, and whoever asks what it is.
BaseStorage.register(Decorated)


class RunFiles:
    """The files of a run that can be downloaded, as an artifact store of Optuna; uploads go to `artifacts/`.

    Args:
        folder: the run folder. Files are read where they lie, none is copied.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.files: dict[str, Path] = {}
        self._uploads = folder.path / "artifacts"

    def found(self) -> dict[str, Path]:
        """Look for recipe, adapter and page, and return them by their identities."""
        adapter = self.folder.train / "adapter"
        wanted = [self.folder.recipe, self.folder.report, self.folder.study, self.folder.train / "metrics.json"]
        wanted += sorted(path for path in adapter.glob("*") if path.is_file())
        there = [path for path in wanted if path.is_file()]
        # The dashboard's addresses take hexadecimal digits and dashes alone.
        self.files = {str(uuid.uuid5(_FILES, str(path.relative_to(self.folder.path)))): path for path in there}
        return self.files

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """Open a file."""
        if artifact_id in self.files:
            return self.files[artifact_id].open("rb")
        return self._store().open_reader(artifact_id)

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Keep an upload."""
        self._uploads.mkdir(exist_ok=True)
        self._store().write(artifact_id, content_body)

    def remove(self, artifact_id: str) -> None:
        """Remove an upload; the run's own files stay."""
        if artifact_id not in self.files:
            self._store().remove(artifact_id)

    def _store(self) -> FileSystemArtifactStore:
        return FileSystemArtifactStore(str(self._uploads))


def plain(text: object) -> str:
    """Return a text that Markdown and HTML show as it is: all punctuation as character references."""
    return str(text).translate(_MARKS)


def decorate(storage: Decorated, result: SearchResult, files: RunFiles) -> None:
    """Put figures, notes and files of a search on top of its study."""
    from optuna_dashboard import save_note, save_plotly_graph_object

    study = _study(storage, RunFolder(result.folder))
    if study is None:
        return
    drawn = [(figure, drawn) for figure in FIGURES.values() if (drawn := figure.draw(result))]
    with storage.decorating():
        for figure, plot in drawn:
            title = {"text": figure.title, "x": 0.02, "y": 0.98, "yanchor": "top"}
            # A legend above would grow into the title.
            legend = {"yref": "container", "y": 0.01, "yanchor": "bottom"}
            plot.update_layout(title=title, margin_t=48, legend=legend, height=min(plot.layout.height, CARD))
            save_plotly_graph_object(study, plot, graph_object_id=f"autolr-{figure.name}")
        save_note(study, _note(result))
        identities = {trial.number: trial._trial_id for trial in study.get_trials(deepcopy=False)}
        for number, body in _trial_notes(result).items():
            # A trial that has ended is no `Trial` any more; three of its attributes are all that is asked for.
            trial: Any = SimpleNamespace(storage=storage, study=study, _trial_id=identities[number])
            save_note(trial, body)
        for identity, path in files.found().items():
            mime = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
            name = str(path.relative_to(result.folder))
            meta = {"artifact_id": identity, "filename": name, "mimetype": mime, "encoding": None}
            storage.set_study_system_attr(study._study_id, f"artifacts:{identity}", json.dumps(meta))


def application(folder: RunFolder, host: str = "127.0.0.1") -> tuple[Application, Callable[[], None]]:
    """Return the dashboard as a WSGI application, and what brings it up to date.

    Args:
        folder: of a search, finished or not.
        host: where it will be served. On a loopback address requests under any other name are refused, so that no
            page from elsewhere reaches it through a name of its own.

    Raises:
        AutoLRError: optuna-dashboard is not installed.
        RunError: the folder holds no search.
    """
    try:
        from optuna_dashboard import wsgi
    except ImportError:
        raise AutoLRError(
            "autolr dashboard needs optuna-dashboard, which is not installed: pip install optuna-dashboard"
        ) from None
    SearchResult.load(folder.path)
    if not folder.has_trials:
        raise RunError(f"{folder.path}: no trial has begun here yet; give the same command again when one has")
    storage, files = Decorated(folder.storage()), RunFiles(folder)

    def update() -> None:
        decorate(storage, SearchResult.load(folder.path), files)

    update()
    inner: Application = wsgi(cast("BaseStorage", storage), artifact_store=files)

    def guarded(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        name = urlsplit(f"//{environ.get('HTTP_HOST', '')}").hostname
        if host in LOOPBACK and name not in LOOPBACK:
            start_response("403 Forbidden", [("Content-Type", "text/plain")])
            return [b"this dashboard answers on this machine alone"]
        environ.setdefault("HTTP_ACCEPT_ENCODING", "")  # optuna-dashboard fails where a client sends none
        return inner(environ, start_response)

    return guarded, update


def serve(folder: RunFolder, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve the dashboard until Ctrl-C, and keep it up to date.

    Args:
        folder: of a search, finished or not.
        host: address to listen on.
        port: 0: any that is free.
        ready: is called with the address, when there is one.

    Raises:
        AutoLRError: the address cannot be used, or see `application`.
    """
    app, update = application(folder, host)
    try:
        server = make_server(host, port, app, server_class=_Server, handler_class=_Quiet)
    except (OSError, OverflowError) as error:
        raise AutoLRError(f"--host {host} --port {port}: cannot be used: {error}; choose another --port") from None
    stop = threading.Event()
    keeper = threading.Thread(target=_keep, args=(folder, update, stop), daemon=True)
    keeper.start()
    try:
        where = f"http://{host if ':' not in host else f'[{host}]'}:{server.server_port}"
        ready(f"{where}/dashboard/studies/{STUDY}")
        server.serve_forever()
    finally:
        stop.set()
        server.server_close()


def _keep(folder: RunFolder, update: Callable[[], None], stop: threading.Event) -> None:
    seen = _stamp(folder)
    while not stop.wait(EVERY):
        now = _stamp(folder)
        if now != seen:
            try:
                update()
                seen = now
            except (AutoLRError, OSError, ValueError):
                time.sleep(1)  # read in the middle of a write; the next look sees it whole


def _stamp(folder: RunFolder) -> list[float]:
    records = sorted(folder.path.glob("*.jsonl"))
    paths = (folder.journal, *records, folder.recipe, folder.train / "metrics.json")
    return [path.stat().st_mtime if path.exists() else 0.0 for path in paths]


def _study(storage: Decorated, folder: RunFolder) -> Study | None:
    names = folder.names(cast("BaseStorage", storage))
    return optuna.load_study(study_name=names[0], storage=cast("BaseStorage", storage)) if names else None


def _note(result: SearchResult) -> str:
    study, recipe = result.study, result.recipe
    lines = [f"{plain(study.model)} on {plain(study.data.source)}", ""]
    if recipe is None or recipe.evidence is None:
        ended = len(result.ended())
        return "\n".join([*lines, f"This search is not finished: {ended} of {study.budget.trials} trials have ended"])
    evidence = recipe.evidence
    lines += ["## Verdict", "", plain(evidence.verdict), "", "## Recipe", ""]
    lines += [f"- {plain(recipe.candidate.describe())}", f"- {plain(recipe.rates.describe())}", ""]
    if evidence.finals:
        rows = [[score, display.loss(score.chosen_by), display.loss(score.test_loss)] for score in evidence.finals]
        lines += ["## At the end of the full run", "", *_table([evidence.finals_by, "test loss"], rows), ""]
    rows = [
        [score, display.loss(score.test_loss), plain(display.gap(score.gain.mean)) if score.gain else "winner"]
        for score in evidence.scores
    ]
    return "\n".join([*lines, "## Confirmed", "", *_table(["test loss", "above the winner"], rows)])


def _table(heads: list[str], rows: list[list[Any]]) -> Iterator[str]:
    """Yield the lines of a Markdown table; a row is a score and what stands beside it."""
    yield f"| {' | '.join(['who', 'candidate', *heads])} |"
    yield "|---" * (2 + len(heads)) + "|"
    for score, *values in rows:
        yield f"| {' | '.join([plain(score.label), plain(score.candidate.describe()), *values])} |"


def _trial_notes(result: SearchResult) -> dict[int, str]:
    """Return notes on the trials whose candidates were promoted or compared, by trial number."""
    evidence = result.recipe.evidence if result.recipe else None
    if evidence is None:
        return {}
    notes: dict[Candidate, list[str]] = {}
    for stage, group in result.ladder.items():
        for one in (one for one in group if not one.losses):
            what = f"{one.label}: at {stage} of the full run held-out loss {display.loss(one.held_out_loss)}"
            notes.setdefault(one.candidate, []).append(what)
    for score in evidence.finals:
        what = f"{score.label}: at the end of the full run test loss {display.loss(score.test_loss)}"
        notes.setdefault(score.candidate, []).append(what)
    for score in evidence.scores:
        what = "the winner" if score.gain is None else f"{display.gap(score.gain.mean)} above the winner"
        notes.setdefault(score.candidate, [score.label])
        notes[score.candidate].append(f"test loss {display.loss(score.test_loss)} after a trial's steps, {what}")
    trials = {trial.candidate: trial.number for trial in reversed(result.trials)}
    return {trials[one]: plain("; ".join(parts)) for one, parts in notes.items() if one in trials}


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Write nothing: nobody reads a line for each request."""
