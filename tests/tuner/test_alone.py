"""Sampler, pruner and surrogate work with any Optuna study: their examples run, and need nothing else of ours."""

from __future__ import annotations

import math
import re
import subprocess
import sys
import textwrap

import optuna
import pytest
from optuna.trial import TrialState

from autolr.schema.study import Search
from autolr.tuner.propose.encoding import Encoding
from autolr.tuner.propose.pruner import ChancePruner, place_at_rung
from autolr.tuner.propose.pruning import make_pruner, reason
from autolr.tuner.propose.sampler import CurveSampler
from autolr.tuner.propose.surrogate import MIN_TRIALS_FOR_SURROGATE, Surrogate, curves_of

OURS = {f"autolr.tuner.propose.{name}" for name in ("encoding", "surrogate", "sampler", "pruner")}


def run_example(documented: type) -> dict:
    """Run the example of a class; return the names that it leaves."""
    (code,) = re.findall(r"^ *```python\n(.*?)^ *```", documented.__doc__ or "", re.MULTILINE | re.DOTALL)
    names: dict = {}
    exec(compile(textwrap.dedent(code), documented.__name__, "exec"), names)
    return names


def test_the_samplers_example_finds_the_best():
    study = run_example(CurveSampler)["study"]
    assert isinstance(study.sampler, CurveSampler) and len(study.trials) == 24
    assert 1e-3 < study.best_params["rate"] < 9e-3 and study.best_params["rank"] == 8


def test_the_pruners_example_prunes_some_and_never_the_best(capsys):
    names = run_example(ChancePruner)
    study, pruned = names["study"], names["pruned"]
    assert 3 <= len(pruned) < 24
    off = [abs(math.log(trial.params["rate"] / 3e-3)) for trial in pruned]
    assert abs(math.log(study.best_params["rate"] / 3e-3)) < min(off)
    assert "a chance below 0.01 of being the best" in capsys.readouterr().out


def test_the_surrogates_example_expects_what_the_curve_would_reach():
    names = run_example(Surrogate)
    assert names["mean"][0] == pytest.approx(names["loss"](3e-3, 32), abs=0.1)
    assert names["surrogate"].last == 32


def test_none_of_them_imports_more_of_autolr_or_torch():
    code = f"import sys, {', '.join(sorted(OURS))}; print('\\n'.join(sys.modules))"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    assert {name for name in loaded if name.startswith("autolr")} == {
        "autolr",
        "autolr.tuner",
        "autolr.tuner.propose",
        *OURS,
    }
    assert not loaded & {"torch", "transformers", "peft", "pydantic", "datasets"}


def reported(pruner: optuna.pruners.BasePruner, losses: list[float], direction: str = "minimize") -> optuna.Study:
    study = optuna.create_study(pruner=pruner, direction=direction)
    for loss in losses:
        trial = study.ask({"x": optuna.distributions.FloatDistribution(0, 1)})
        trial.report(loss, 8)
    return study


def test_a_study_gets_the_pruner_it_asks_for_and_every_pruner_gives_a_reason():
    own = make_pruner(Search(prune_below=0.02), 64)
    assert isinstance(own, ChancePruner) and (own.rungs, own.length, own.chance) == ((16,), 64, 0.02)
    assert isinstance(make_pruner(Search(prune_below=0.0), 64), optuna.pruners.NopPruner)
    study = reported(own, [0.3, 0.1, 0.2])
    assert (
        reason(study, study.trials[0]) == "place 3 of 3 at the rung of step 8: a chance below 0.02 of being the best"
    )
    study = reported(optuna.pruners.MedianPruner(), [0.3])
    assert reason(study, study.trials[0]) == "pruned by MedianPruner"
    study = reported(own, [0.3, 0.1], "maximize")
    assert place_at_rung(study, study.trials[0]).startswith("place 1 of 2")


def test_one_minimum_decides_whether_curves_give_a_surrogate():
    study = optuna.create_study(direction="maximize")
    for number in range(MIN_TRIALS_FOR_SURROGATE):
        trial = study.ask({"x": optuna.distributions.FloatDistribution(0, 1)})
        trial.report(-(trial.params["x"] ** 2), 4)
        if number == 0:
            trial.report(float("nan"), 8)
        study.tell(trial, state=TrialState.PRUNED)
    encoding, curves = Encoding(study.trials[0].distributions), curves_of(study.trials, study.direction)
    fitted = Surrogate.from_curves(encoding, curves)
    assert fitted is not None and fitted is Surrogate.from_curves(encoding, curves)
    lowest = min(study.trials, key=lambda trial: trial.params["x"])
    assert fitted.best_points(1)[0] == pytest.approx(encoding.encode(lowest.params))
    assert fitted.last == 4  # the loss that is no number is none
    assert Surrogate.from_curves(encoding, curves[1:]) is None
    assert Surrogate.from_curves(encoding, [*curves[1:], curves[1]]) is None  # the same candidate twice is one
    assert Surrogate.from_curves(encoding, [], minimum=0) is None
