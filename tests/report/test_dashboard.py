"""The dashboard shows what the run found, answers on this machine alone, and leaves the run as it is."""

from __future__ import annotations

import hashlib
import json
import sys
from io import BytesIO
from wsgiref.util import setup_testing_defaults

import optuna
import pytest

from autolr import cli
from autolr.report.dashboard import application, plain
from autolr.rundir.folder import RunFolder
from autolr.tuner.run import search


@pytest.fixture(scope="module")
def folder(small_study, tmp_path_factory):
    return RunFolder(search(small_study, tmp_path_factory.mktemp("dashboard") / "run", device="cpu").folder)


def ask(app, path: str, host: str = "127.0.0.1:8080", method: str = "GET", body: dict | None = None):
    environ: dict = {}
    setup_testing_defaults(environ)
    content = json.dumps(body or {}).encode()
    environ |= {
        "PATH_INFO": path, "HTTP_HOST": host, "REQUEST_METHOD": method, "CONTENT_TYPE": "application/json",
        "CONTENT_LENGTH": str(len(content)), "wsgi.input": BytesIO(content),
    }  # fmt: skip
    status = []
    answer = b"".join(app(environ, lambda code, headers, *_: status.append(code)))
    return status[0], answer


def test_what_the_page_is_given(folder):
    before = hashlib.sha256(folder.journal.read_bytes()).hexdigest()
    app, update = application(folder)
    update()
    status, answer = ask(app, "/api/studies")
    assert status.startswith("200")
    study = json.loads(answer)["study_summaries"][0]
    status, answer = ask(app, f"/api/studies/{study['study_id']}")
    detail = json.loads(answer)
    assert status.startswith("200") and len(detail["trials"]) == 9
    recipe = search_recipe(folder)
    assert "## Verdict" in detail["note"]["body"] and plain(recipe.candidate.describe()) in detail["note"]["body"]
    names = {
        graph["graph_object"]["layout"]["title"]["text"] for graph in map(parsed, detail["plotly_graph_objects"])
    }
    assert {"Convergence", "η_Q and η_V", "Winner against the baselines", "Cost: time, tokens, energy"} <= names
    heights = [graph["graph_object"]["layout"]["height"] for graph in map(parsed, detail["plotly_graph_objects"])]
    assert max(heights) <= 450  # what is taller is cut off
    assert detail["objective_names"] == ["validation loss"]
    noted = [trial for trial in detail["trials"] if trial["note"]["body"]]
    assert any("test loss" in trial["note"]["body"].replace("&#46;", ".") for trial in noted)
    pruned = [trial for trial in detail["trials"] if trial["state"] == "Pruned"]
    reasons = [{a["key"]: a["value"] for a in trial["user_attrs"]}["reason"] for trial in pruned]
    assert reasons and all("place" in reason and "at the rung of step" in reason for reason in reasons)
    files = {file["filename"]: file["artifact_id"] for file in detail["artifacts"]}
    assert {"recipe.yaml", "study.yaml"} <= set(files)
    status, content = ask(app, f"/artifacts/{study['study_id']}/{files['recipe.yaml']}")
    assert status.startswith("200") and content == folder.recipe.read_bytes()
    assert hashlib.sha256(folder.journal.read_bytes()).hexdigest() == before
    # What the user writes goes to the run, and stays over the next update.
    body = {"body": "my own words", "version": detail["note"]["version"] + 1}
    status, _ = ask(app, f"/api/studies/{study['study_id']}/note", method="PUT", body=body)
    assert status.startswith("204")
    update()
    _, answer = ask(app, f"/api/studies/{study['study_id']}")
    assert json.loads(answer)["note"]["body"] == "my own words"


def parsed(graph: dict) -> dict:
    content = graph["graph_object"]
    return {**graph, "graph_object": json.loads(content) if isinstance(content, str) else content}


def search_recipe(folder):
    from autolr.schema.recipe import Recipe

    return Recipe.load(folder.recipe)


def test_a_page_from_elsewhere_does_not_reach_it(folder):
    app, _ = application(folder)
    assert ask(app, "/api/studies", host="evil.example:8080")[0].startswith("403")
    assert ask(app, "/api/studies", host="localhost:8080")[0].startswith("200")
    assert ask(app, "/api/studies", host="[::1]:8080")[0].startswith("200")
    open_app, _ = application(folder, host="0.0.0.0")
    assert ask(open_app, "/api/studies", host="lab.example:8080")[0].startswith("200")


def test_values_stay_text_in_notes():
    evil = "<img src=x onerror=alert(1)> [a](javascript:b) `c` **d** $e$ \n# f | g"
    said = plain(evil)
    assert not set(said) & set("<>[]()`*$\n|_") and "&#60;img" in said


def test_without_the_package_it_says_how_to_get_it(folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "optuna_dashboard", None)
    with pytest.raises(SystemExit) as stop:
        cli.main(["dashboard", str(folder.path)])
    assert stop.value.code == 2 and "pip install optuna-dashboard" in capsys.readouterr().err


def test_what_cannot_be_shown(tmp_path, folder, capsys):
    for words in (["dashboard", str(tmp_path)], ["dashboard", str(folder.path), "--host", "999.1.1.1"]):
        with pytest.raises(SystemExit) as stop:
            cli.main(words)
        assert stop.value.code == 2 and "error: " in capsys.readouterr().err


def test_why_trials_ended_is_kept(folder):
    study = optuna.load_study(study_name="small", storage=folder.storage())
    assert study.metric_names == ["validation loss"]
    for trial in study.trials:
        assert ("reason" in trial.user_attrs) == (trial.user_attrs["outcome"] in ("pruned", "diverged"))
