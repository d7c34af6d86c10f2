"""Figures as pictures, and what is said where there is no renderer."""

from __future__ import annotations

import shutil
import sys

import pytest

from autolr import cli
from autolr.errors import AutoLRError, RunError
from autolr.report.figures import FIGURES
from autolr.report.images import write_images
from autolr.rundir.folder import RunFolder
from tests.report import made


@pytest.mark.parametrize("form", ["png", "svg"])
def test_pictures(tmp_path, monkeypatch, form):
    pytest.importorskip("kaleido", reason="kaleido is not installed")
    if not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))):
        pytest.skip("no Chromium on this machine")
    few = {name: FIGURES[name] for name in ("steps_to_target", "memory", "cost")}
    monkeypatch.setattr("autolr.report.images.FIGURES", few)
    files = write_images(made.searched(tmp_path), form)
    assert [file.name for file in files] == [f"steps_to_target.{form}", f"cost.{form}"]  # no memory was recorded
    for file in files:
        content = file.read_bytes()
        assert content.startswith(b"\x89PNG" if form == "png" else b"<svg") and len(content) > 2000


def test_without_a_renderer_it_says_how_to_get_one(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "kaleido", None)
    with pytest.raises(AutoLRError, match="--format svg: .*pip install kaleido"):
        write_images(made.searched(tmp_path), "svg")


def test_without_a_browser_it_says_how_to_get_one(tmp_path, monkeypatch):
    pytest.importorskip("kaleido", reason="kaleido is not installed")

    def broken(*args, **fields):
        raise RuntimeError("\nKaleido requires Google Chrome to be installed.\n\nEither download ...")

    monkeypatch.setattr("plotly.io.write_images", broken)
    with pytest.raises(AutoLRError, match="requires Google Chrome .*apt install chromium.*BROWSER_PATH"):
        write_images(made.searched(tmp_path), "png")


def test_what_cannot_be_drawn(tmp_path):
    pytest.importorskip("kaleido", reason="kaleido is not installed")
    with pytest.raises(RunError, match="nothing to show"):
        write_images(made.result(tmp_path), "png")
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="is a file"):
        write_images(made.searched(tmp_path), "png", tmp_path / "file")


def test_formats_of_the_command(tmp_path, capsys):
    study = made.result(tmp_path).study
    study.save(tmp_path / "study.yaml")
    with pytest.raises(SystemExit) as stop:
        cli.main(["report", str(tmp_path)])
    assert stop.value.code == 2 and "its search has not started" in capsys.readouterr().err
    RunFolder(tmp_path).optuna(study)
    with pytest.raises(SystemExit) as stop:
        cli.main(["report", str(tmp_path), "--format", "gif"])
    assert stop.value.code == 2 and "gif" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        cli.main(["report", str(tmp_path), "--out", str(tmp_path / "page.html")])
    assert not stop.value.code and "not finished" in (tmp_path / "page.html").read_text()
