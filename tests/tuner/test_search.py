"""A whole search on a small model: the same twice, resumed, and what is refused."""

from __future__ import annotations

import shutil

import optuna
import pytest

from autolr.errors import ModelError, RunError
from autolr.progress.callbacks import Callback
from autolr.rundir.folder import RunFolder
from autolr.rundir.result import SearchResult
from autolr.schema.candidate import Candidate
from autolr.schema.recipe import Recipe
from autolr.schema.study import Search, Study
from autolr.schema.training import Horizon
from autolr.tuner.dry_run import plan
from autolr.tuner.judge import verdict
from autolr.tuner.propose import queue
from autolr.tuner.propose.space import SearchSpace
from autolr.tuner.run import search


class Stop(Callback):
    """Presses Ctrl-C after so many steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def stepped(self, running, capacity) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


class Slots(Callback):
    """Notes how many slots were busy at each step of the search."""

    def __init__(self) -> None:
        self.busy: list[int] = []
        self.name = ""

    def phase(self, name, total, done) -> None:
        self.name = name

    def stepped(self, running, capacity) -> None:
        if self.name == "trials":
            self.busy.append(len(running))


def facts(result: SearchResult):
    """All that must not differ between two equal searches."""
    trials = [(t.candidate, t.baseline, t.outcome, t.rungs, t.curve, t.tokens) for t in result.trials]
    repeats = sorted(
        (r.id, r.stage, r.label, r.seed, r.held_out_loss, r.test_loss or 0.0, r.losses) for r in result.trainings
    )
    evidence = result.recipe.evidence.model_copy(update={"cost": None})
    return trials, repeats, result.recipe.model_copy(update={"evidence": evidence})


@pytest.fixture(scope="module")
def finished(tmp_path_factory, small_study):
    slots = Slots()
    return search(small_study, tmp_path_factory.mktemp("search") / "run", device="cpu", callback=slots), slots


def test_a_search_ends_with_a_recipe_and_its_evidence(finished):
    result, slots = finished
    assert [trial.baseline for trial in result.trials[:4]] == ["default", "paper", None, None]
    assert len(result.ended()) == 9
    outcomes = [trial.outcome for trial in result.trials]
    assert "pruned" in outcomes and "finished" in outcomes
    for trial in result.ended():
        assert len(trial.curve) == {"finished": 12}.get(trial.outcome, max(trial.rungs))
        assert trial.tokens > 0 and trial.seconds > 0
    # Freed slots are filled at once: the pack is full until there is nothing left to start.
    assert set(slots.busy[: slots.busy.index(min(slots.busy))]) <= {4, 3, 2, 1}
    assert slots.busy[:8] == [4] * 8
    recipe = Recipe.load(result.folder)
    assert recipe == result.recipe
    assert recipe.rates.v == pytest.approx(recipe.candidate.ratio * recipe.rates.q)
    assert recipe.rates.v == recipe.candidate.lr_v
    evidence = recipe.evidence
    assert evidence.trials == {"total": 9, **{n: outcomes.count(n) for n in ("finished", "pruned", "diverged")}}
    labels = " + ".join(score.label for score in evidence.scores)
    assert all(name in labels for name in ("finalist 1", "default", "same_lr", "paper", "with_k"))
    assert len(result.over_seeds) == 2 * len(evidence.scores)
    assert evidence.cost.trained_tokens == sum(one.tokens for one in (*result.trials, *result.trainings))


def test_finals_at_the_end_of_the_full_run_choose_the_winner(finished):
    result, _ = finished
    finals, evidence = result.finals, result.recipe.evidence
    labels = sorted(" + ".join(one.label for one in finals).split(" + "))
    assert [label for label in labels if label != "paper"] == ["default", "finalist 1", "finalist 2"]
    assert len(finals) == 3  # the rule of thumb takes nobody's place
    assert all(len(one.curve) == result.recipe.steps == 24 and one.seed == 0 for one in finals)
    assert [(s.candidate, s.test_loss) for s in evidence.finals] == [
        (one.candidate, one.test_loss) for one in sorted(finals, key=lambda one: one.held_out_loss)
    ]
    best = verdict.choose([one for one in finals if "finalist" in one.label])
    losses = {one.candidate: one.held_out_loss for one in finals}
    rule = next(one for one in finals if "default" in one.label)
    assert result.recipe.candidate == (best if losses[best] <= rule.held_out_loss else rule.candidate)
    # A final is the training that the trial of the same candidate has begun, and that at half the full run resumes.
    half = result.ladder["50%"]
    for one in (*half, *finals):
        for before in (*result.ended(), *half):
            if before.candidate == one.candidate:
                assert one.curve[: len(before.curve)] == before.curve
    for one in finals:
        assert f"reaches a test loss of {one.test_loss:.4f}" in evidence.verdict
    assert "These differences were measured after 12 of 24 steps." in evidence.verdict


@pytest.mark.parametrize(
    "changed", [{"search": {"stages": [{"to": 12}]}}, {"training": {"horizon": {"steps": 12}}}], ids=["one", "whole"]
)
def test_without_finals_the_confirmation_chooses(changed, small_study, tmp_path):
    content = small_study.model_dump()
    for part, values in changed.items():
        content[part] |= values
    result = search(Study.model_validate(content), tmp_path / "run", device="cpu")
    evidence = result.recipe.evidence
    assert not result.finals and not evidence.finals and "All this" not in evidence.verdict
    finalists = 1 if "search" in changed else 2
    labels = " + ".join(score.label for score in evidence.scores).split(" + ")
    assert [f"finalist {n}" for n in (1, 2, 3) if f"finalist {n}" in labels] == [
        f"finalist {n}" for n in range(1, finalists + 1)
    ]
    own = [record for record in result.over_seeds if record.candidate.targets == "qv" and record.label != "same_lr"]
    assert result.recipe.candidate == verdict.choose(own)


def test_the_same_seed_gives_the_same_search(finished, tmp_path):
    result, _ = finished
    again = search(result.study, tmp_path / "again", device="cpu")
    assert facts(again) == facts(result)


@pytest.mark.parametrize("steps", [1, 40, 60])
def test_a_search_that_was_stopped_goes_on_to_the_same_total(finished, tmp_path, steps):
    result, _ = finished
    with pytest.raises(KeyboardInterrupt):
        search(result.study, tmp_path / "run", device="cpu", callback=Stop(steps))
    before = SearchResult.load(tmp_path / "run")
    resumed = search(result.study, tmp_path / "run", device="cpu")
    assert len(resumed.ended()) == 9
    ended = {trial.number: trial for trial in resumed.ended()}
    assert all(ended[trial.number] == trial for trial in before.ended())
    assert all(record in resumed.trainings for record in before.trainings)
    assert {trial.baseline for trial in resumed.ended()} == {"default", "paper", None}
    assert resumed.recipe is not None


def test_a_search_can_be_read_at_any_moment_of_its_journal(finished, tmp_path):
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    shutil.copy(finished[0].folder / "study.yaml", run.study)
    lines = RunFolder(finished[0].folder).journal.read_bytes().splitlines(keepends=True)
    counts = []
    for end in range(1, min(60, len(lines))):  # a candidate's values are written one after the other
        run.journal.write_bytes(b"".join(lines[:end]))
        counts.append(len(SearchResult.load(run.path).trials))
    assert counts == sorted(counts) and counts[0] == 0 and counts[-1] > 2


def test_a_finished_search_is_not_repeated_and_takes_more_trials(finished, tmp_path):
    result, _ = finished
    shutil.copytree(result.folder, tmp_path / "run")
    steps = Slots()
    assert facts(search(result.study, tmp_path / "run", device="cpu", callback=steps)) == facts(result)
    assert steps.busy == []
    more = result.study.model_copy(update={"budget": result.study.budget.model_copy(update={"trials": 11})})
    assert len(search(more, tmp_path / "run", device="cpu").ended()) == 11


def test_a_folder_of_another_study_is_left_alone(finished, tmp_path):
    result, _ = finished
    before = (result.folder / "study.yaml").read_text()
    with pytest.raises(RunError, match="belongs to study .*differs in: seed"):
        search(result.study.model_copy(update={"seed": 5}), result.folder)
    assert (result.folder / "study.yaml").read_text() == before
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(RunError, match="not empty"):
        search(result.study, tmp_path)
    with pytest.raises(RunError, match="is a file"):
        search(result.study, tmp_path / "precious.txt")
    assert [path.name for path in tmp_path.iterdir() if path.name != ".lock"] == ["precious.txt"]


def test_a_space_of_choices_is_used_up_without_repeats(small_study, tmp_path):
    space = {"lr_v": [1e-3, 1e-2], "ratio": [1, 4], "rank": [2]}
    study = small_study.model_validate({**small_study.model_dump(), "space": space})
    result = search(study, tmp_path / "run", device="cpu")
    tried = [trial.candidate for trial in result.ended() if trial.baseline is None]
    assert len(tried) == len(set(tried)) == 4


def test_a_candidate_that_diverges_ends_and_counts(small_study, tmp_path):
    space = {"lr_v": [10.0, 1e-2], "ratio": [0.001, 1], "rank": [2]}
    study = small_study.model_validate(
        {
            **small_study.model_dump(),
            "space": space,
            "search": {"stages": [{"to": 24}, {"to": 1.0, "promote": 2}], "slots": 4, "rungs": [12], "seeds": 2},
        }
    )
    study = study.model_validate({**study.model_dump(), "training": {"batch_size": 8, "max_grad_norm": None}})
    result = search(study, tmp_path / "run", device="cpu")
    assert len(result.ended()) == 4
    assert result.recipe.candidate.lr_v == 1e-2 or result.recipe.candidate.lr_v < 1


def test_a_rank_larger_than_the_matrix(small_study, tmp_path):
    study = small_study.model_validate({**small_study.model_dump(), "space": {"rank": [8, 64]}})
    with pytest.raises(ModelError, match="at most 32"):
        search(study, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_plan_writes_nothing(small_study, in_folder):
    found = plan(small_study, "cpu")
    assert found.coverage == "q and v in 2 of 2 layers"
    assert found.parameters["r=4"] == {"adapter": 4 * 2 * 2 * 64, "head": 66}
    assert found.baselines["paper"] == Candidate(lr_v=4e-4, ratio=4, rank=8)
    assert found.seconds > 0 and found.trained_tokens > 0
    # Nine trials and ten repeats of 12 steps; six trials go on to 16, two of these to 24, and that of the rule.
    assert [(one.stage.promote, len(one.stage.baselines)) for one in found.stages] == [(9, 0), (6, 0), (2, 1), (1, 4)]
    assert found.full_run_equivalents == pytest.approx((9 * 12 + 10 * 12 + 6 * 4 + 2 * 8 + 12) / 24)
    assert list(in_folder.iterdir()) == []


def test_the_shortest_of_studies(small_study, tmp_path):
    study = small_study.model_copy(
        update={
            "training": small_study.training.model_copy(update={"horizon": Horizon(steps=2)}),
            "search": Search(slots="auto", stages=[{"to": 0.25}], seeds=2),
            "budget": small_study.budget.model_copy(update={"trials": 4}),
        }
    )
    result = search(study, tmp_path / "run", device="cpu")
    assert len(result.ended()) == 4
    assert {len(trial.curve) for trial in result.ended()} == {2}
    assert result.recipe.steps == 2
    assert plan(study).stages[0].stage.steps == 2


def test_the_rule_of_thumb_is_tried_at_the_largest_rank_too(small_study):
    def enqueued(**space) -> list[tuple[str, int]]:
        content = small_study.model_dump()
        content["space"] |= space
        study = Study.model_validate(content)
        trials = optuna.create_study()
        for _ in range(2):  # a search that goes on enqueues nothing twice
            queue.enqueue(trials, study, SearchSpace.around(study, 1e-2, 1e-3, 24), Callback())
        waiting = [trial.user_attrs for trial in trials.get_trials()]
        fixed = [trial.system_attrs["fixed_params"] for trial in trials.get_trials()]
        assert all(
            one["lr_v"] == 1e-2 for one, named in zip(fixed, waiting, strict=True) if named["baseline"] != "paper"
        )
        return [(named["baseline"], one.get("rank")) for one, named in zip(fixed, waiting, strict=True)]

    rules = [("default", 8), ("paper", 8)]
    assert enqueued(rank=[4, 8, 64, 16]) == [*rules, ("default at the largest rank", 64)]
    assert enqueued(rank=[2, 4, 8]) == rules
    assert [rank for _, rank in enqueued(rank=[64])] == [64, 64]
