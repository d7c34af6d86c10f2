"""A folder's runs in a list, and what they say about the next study."""

from __future__ import annotations

import json
import shutil

import numpy as np
import optuna
import pytest

from autolr import cli
from autolr.cli import resolve
from autolr.errors import RunError
from autolr.rundir import index
from autolr.rundir.folder import RunFolder
from autolr.rundir.result import SearchResult
from autolr.schema.study import Study
from autolr.tuner.advice import advise, recommend
from autolr.tuner.run import search


@pytest.fixture(scope="module")
def finished(small_study, tmp_path_factory) -> SearchResult:
    return search(small_study, tmp_path_factory.mktemp("runs") / "runs" / "first", device="cpu")


def made_up(finished, folder, loss, trials=40) -> SearchResult:
    """A run with the finished one's papers and trials of a loss that is known."""
    run = RunFolder(folder)
    folder.mkdir(parents=True)
    space = {
        "lr_v": optuna.distributions.FloatDistribution(2e-4, 1e-1, log=True),
        "ratio": optuna.distributions.FloatDistribution(0.5, 8, log=True),
        "rank": optuna.distributions.CategoricalDistribution([2, 4, 8]),
    }
    study = optuna.create_study(study_name="small", storage=run.storage())
    rng = np.random.default_rng(0)
    best = None
    for _ in range(trials):
        params = {
            "lr_v": float(np.exp(rng.uniform(np.log(2e-4), np.log(1e-1)))),
            "ratio": float(np.exp(rng.uniform(np.log(0.5), np.log(8)))),
            "rank": int(rng.choice([2, 4, 8])),
        }
        value = float(loss(**params))
        study.add_trial(
            optuna.trial.create_trial(
                params=params, distributions=space, value=value, intermediate_values={12: value},
                user_attrs={"outcome": "finished"},
            )
        )  # fmt: skip
        best = min(best or (value, params), (value, params), key=lambda pair: pair[0])
    finished.study.model_copy(
        update={"budget": finished.study.budget.model_copy(update={"trials": trials})}
    ).save(run.study)  # fmt: skip
    candidate = finished.recipe.candidate.model_copy(update=best[1])
    finished.recipe.model_copy(update={"candidate": candidate}).save(run.recipe)
    return SearchResult.load(folder)


def test_a_list_of_runs(finished, tmp_path, capsys):
    top = tmp_path / "runs"
    shutil.copytree(finished.folder, top / "first")
    shutil.copytree(finished.folder, top / "half")
    (top / "half" / "recipe.yaml").unlink()
    (top / "broken").mkdir()
    (top / "broken" / "study.yaml").write_text("model: [")
    (top / "broken" / "journal.log").touch()
    (top / "notes").mkdir()
    finished.study.save(top / "notes" / "study.yaml")  # a study that was never searched
    found = {run.folder.rpartition("/")[2]: run for run in index.list_runs(top)}
    assert set(found) == {"first", "half", "broken"}
    first = found["first"]
    outcomes = [trial.outcome for trial in finished.trials]
    assert (first.total, first.completed, first.pruned) == (9, outcomes.count("finished"), outcomes.count("pruned"))
    assert first.score == finished.recipe.evidence.scores[0].test_loss and first.state == "finished"
    assert first.verdict == finished.recipe.evidence.verdict and first.device_seconds > 0
    assert found["half"].state == "unfinished" and found["half"].score == min(
        t.score for t in finished.trials if t.outcome == "finished"
    )
    assert found["broken"].state == "unreadable" and "study.yaml" in found["broken"].problem
    with pytest.raises(SystemExit):
        cli.main(["runs", str(top), "--json"])
    assert {row["name"] for row in json.loads(capsys.readouterr().out)} == {"small", ""}
    with pytest.raises(SystemExit):
        cli.main(["runs", str(top)])
    said = capsys.readouterr().out
    assert (
        "resume with: autolr search --out" in said
        and "unreadable" in said
        and finished.recipe.evidence.verdict in said
    )
    assert [run.folder for run in index.list_runs(top / "first")] == [str(top / "first")]
    (top / "empty").mkdir()
    for wrong, said in ((top / "empty", "no run in this folder"), (top / "none", "no such folder")):
        with pytest.raises(RunError, match=said):
            index.list_runs(wrong)


def valley(lr_v, ratio, rank, middle=4e-3):
    return 0.4 + 0.1 * np.log10(lr_v / middle) ** 2 + 0.03 * np.log2(ratio / 2) ** 2 + 0.05 * (rank == 2)


def test_a_valley_at_the_bound_is_followed(finished, tmp_path):
    advice = advise(made_up(finished, tmp_path / "run", lambda **p: valley(**p, middle=3e-1)))
    assert any("is at the upper bound" in reason for reason in advice.reasons)
    assert "space.lr_v=" in advice.command and f"--warm-start {tmp_path / 'run'}" in advice.command
    # The command is one that the command line takes.
    import shlex

    words = shlex.split(advice.command)[2:]
    study = resolve.resolve([word for word in words if "--" not in word][:2], {}, None)
    assert isinstance(study, Study) and study.space.lr_v.high > 1e-1


def test_a_rank_that_is_never_best_is_dropped(finished, tmp_path):
    result = made_up(finished, tmp_path / "run", valley)
    advice = advise(result)
    assert any("rank 2 is the best with" in reason for reason in advice.reasons)
    if advice.command:
        assert "2" not in advice.command.partition("space.rank=[")[2].partition("]")[0].split(",")


def test_a_known_valley_needs_no_more_trials(finished, tmp_path):
    result = made_up(finished, tmp_path / "run", lambda lr_v, ratio, rank: valley(lr_v, ratio, 4), trials=60)
    advice = advise(result)
    assert any("60 trials are enough" in reason for reason in advice.reasons), advice.reasons
    few = advise(made_up(finished, tmp_path / "few", valley, trials=6))
    assert "too few trials" in few.reasons[0] and "--trials" in few.command


def test_an_unfinished_search_is_gone_on_with(finished, tmp_path):
    shutil.copytree(finished.folder, tmp_path / "run")
    (tmp_path / "run" / "recipe.yaml").unlink()
    assert recommend(tmp_path)[0].command == f"autolr search --out {tmp_path / 'run'}"
