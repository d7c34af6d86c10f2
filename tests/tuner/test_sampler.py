"""The sampler: legal proposals, different ones for many slots, learned from pruned curves as well."""

from __future__ import annotations

import math
from contextlib import nullcontext

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState
from scipy import optimize
from sklearn.gaussian_process import GaussianProcessRegressor

from autolr.tuner.propose import surrogate
from autolr.tuner.propose.encoding import Encoding, Prior
from autolr.tuner.propose.sampler import CurveSampler
from autolr.tuner.propose.surrogate import MAX_OBSERVATIONS, MAX_UNDER_WAY, Surrogate, _thinned

optuna.logging.set_verbosity(optuna.logging.ERROR)
RULE = 2e-3
SPACE = {
    "lr_v": FloatDistribution(2e-4, 2e-2, log=True),
    "ratio": FloatDistribution(0.5, 32, log=True),
    "rank": CategoricalDistribution([4, 8, 16]),
}
RUNGS = (24, 64, 128)


def loss(params: dict, step: int, best: float = 5e-3) -> float:
    """A bowl in log lr_v, a slope in the rank, and curves that fall together."""
    bowl = 0.03 * math.log(params["lr_v"] / best) ** 2 + 0.003 * math.log(params["ratio"] / 2) ** 2
    return 0.4 + bowl + 0.005 * math.log2(16 / params["rank"]) + 0.3 * 24 / step


def search(sampler, groups: int, keep: float = 1.0, seed: int = 0, noise: float = 0.002) -> list[FrozenTrial]:
    """Ask for eight trials at a time; the worse end at each rung."""
    study = optuna.create_study(sampler=sampler)
    rng = np.random.default_rng(seed)
    for _ in range(groups):
        group = [study.ask(SPACE) for _ in range(8)]
        for rung in RUNGS:
            for trial in group:
                trial.report(loss(trial.params, rung) + noise * rng.standard_normal(), rung)
            ranked = sorted(group, key=lambda t: study.trials[t.number].intermediate_values[rung])
            kept = max(1, math.ceil(keep * len(ranked)))
            for trial in ranked[kept:]:
                study.tell(trial, state=TrialState.PRUNED)
            group = ranked[:kept]
        for trial in group:
            study.tell(trial, study.trials[trial.number].intermediate_values[RUNGS[-1]])
    return study.trials


def ours(seed: int = 0) -> CurveSampler:
    return CurveSampler(seed, space=SPACE, priors={"lr_v": Prior(RULE)})


def excess(trials: list[FrozenTrial]) -> float:
    return min(loss(trial.params, RUNGS[-1]) for trial in trials) - loss(
        {"lr_v": 5e-3, "ratio": 2, "rank": 16}, RUNGS[-1]
    )


def test_finds_the_best_sooner_than_stock_samplers():
    seeds = range(6)
    own = np.mean([excess(search(ours(seed), 3, keep=0.5, seed=seed)) for seed in seeds])
    tpe = np.mean([excess(search(optuna.samplers.TPESampler(seed=s), 3, keep=0.5, seed=s)) for s in seeds])
    random = np.mean([excess(search(optuna.samplers.RandomSampler(seed=s), 3, keep=0.5, seed=s)) for s in seeds])
    assert own < 0.6 * tpe
    assert own < 0.4 * random


def test_pruned_curves_teach():
    """With all but one trial of each group pruned at the first rung, the next group is better than the first."""
    trials = search(ours(), 3, keep=0.1)
    assert sum(trial.state == TrialState.PRUNED for trial in trials) == 21
    final = [loss(trial.params, RUNGS[-1]) for trial in trials]
    assert np.mean(final[8:]) < np.mean(final[:8]) - 0.02


def test_free_slots_get_different_candidates():
    study = optuna.create_study(sampler=ours())
    for trial in search(ours(), 2):
        study.add_trial(trial)
    asked = [study.ask(SPACE).params for _ in range(8)]
    points = np.array([Encoding(SPACE, {}).encode(params) for params in asked])
    distance = np.linalg.norm(points[:, None] - points[None], axis=-1) + np.eye(8)
    assert np.median(distance) > 0.05
    assert distance.min() > 1e-4


def test_the_same_trials_give_the_same_proposal():
    trials = search(ours(), 2)
    proposals = []
    for _ in range(2):
        study = optuna.create_study(sampler=ours())
        study.add_trials(trials)
        proposals.append(study.ask(SPACE).params)
    assert proposals[0] == proposals[1]


def test_what_has_just_been_read_is_not_read_again(monkeypatch):
    there, proposed = search(ours(), 2), []
    for knows in (False, True):
        study = optuna.create_study(sampler=ours())
        study.add_trials(there)
        with study.sampler.knowing(there) if knows else nullcontext(), monkeypatch.context() as patch:
            if knows:
                patch.setattr(study, "get_trials", lambda **_: pytest.fail("the trials were read"))
            proposed.append(study.ask(SPACE).params)
    assert proposed[0] == proposed[1]
    with study.sampler.knowing(there[:8]):
        assert study.ask(SPACE).params != proposed[0]
    assert study.sampler._known is None


def test_the_start_is_spread_under_the_prior():
    rates = [trial.params["lr_v"] for trial in search(ours(), 1)]
    assert math.exp(np.mean(np.log(rates))) == pytest.approx(RULE, rel=0.5)
    assert 3 < max(rates) / min(rates) < 100


def test_as_any_sampler_of_optuna():
    study = optuna.create_study(sampler=CurveSampler(1, startup=5), direction="maximize")

    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", -1, 1)
        kind = trial.suggest_categorical("kind", ["a", "b"])
        count = trial.suggest_int("count", 1, 9, step=2)
        value = -((x - 0.3) ** 2) - (kind == "a") - 0.1 * abs(count - 5)
        trial.report(value, 1)
        return value

    study.optimize(objective, n_trials=30)
    assert study.best_value > -0.05
    assert study.best_params["kind"] == "b"


def test_values_that_are_no_numbers_are_passed_over():
    study = optuna.create_study(sampler=ours())
    for number in range(12):
        trial = study.ask(SPACE)
        trial.report(math.nan if number % 3 == 0 else loss(trial.params, 24), 24)
        study.tell(trial, state=TrialState.PRUNED)
    assert all(SPACE[name]._contains(SPACE[name].to_internal_repr(v)) for name, v in study.ask(SPACE).params.items())


def test_encoding_there_and_back():
    space = {
        **SPACE,
        "kind": CategoricalDistribution(["a", "b", "c"]),
        "count": IntDistribution(1, 9),
        "step": FloatDistribution(0, 1, step=0.25),
    }
    encoding = Encoding(space, {})
    rng = np.random.default_rng(0)
    for point in encoding.draw(rng, 32):
        params = encoding.decode(point)
        assert encoding.decode(encoding.encode(params)) == pytest.approx(params)
        assert all(d._contains(d.to_internal_repr(params[name])) for name, d in space.items())
    low, middle, high = (Encoding({"rank": SPACE["rank"]}).encode({"rank": rank}) for rank in (4, 8, 16))
    assert (low, middle, high) == pytest.approx((0, 0.5, 1))


def few_losses() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(4)
    points, steps = rng.random((6, 3)), np.full(6, 128.0)
    return points, steps, 0.4 + 0.1 * (points[:, 0] - 0.5) ** 2 + 0.02 * rng.standard_normal(6)


def test_few_losses_do_not_decide_over_what_length_candidates_are_alike(monkeypatch):
    points, steps, values = few_losses()
    lengths = Surrogate.fit(points, steps, values).process.kernel_.length_scales
    assert (lengths[:3] > 0.2).all() and (lengths[:3] < 1.2).all()
    # What is likeliest alone is at a bound.
    monkeypatch.setattr(surrogate, "_Process", GaussianProcessRegressor)
    free = Surrogate.fit(points, steps, values).process.kernel_.length_scales
    assert (np.isclose(free[:3], 0.15, rtol=0.01) | np.isclose(free[:3], 5.0, rtol=0.01)).any()


def test_the_prior_on_the_kernel_has_the_gradient_it_says():
    process = Surrogate.fit(*few_losses()).process
    for shift in (-0.3, 0.4):
        theta = process.kernel_.theta + shift
        value, gradient = process.log_marginal_likelihood(theta, eval_gradient=True)
        assert value == pytest.approx(process.log_marginal_likelihood(theta))
        by_hand = optimize.approx_fprime(theta, process.log_marginal_likelihood, 1e-6)
        assert gradient == pytest.approx(by_hand, rel=1e-3, abs=1e-3)


def test_of_very_many_observations_the_best_half_and_an_even_pick_of_the_rest_are_kept():
    rng = np.random.default_rng(0)
    level = rng.standard_normal(1000)
    kept = _thinned(level, 100)
    assert len(kept) == len(set(kept.tolist())) == 100 and (np.diff(kept) > 0).all()
    assert set(np.argsort(level)[:50]) <= set(kept.tolist())
    assert level[kept].max() == level.max()
    assert (_thinned(level[:100], 100) == np.arange(100)).all()


def test_after_many_trials_the_surrogate_is_as_good_and_no_larger():
    rng = np.random.default_rng(0)
    points = rng.random((700, 3))
    truth = ((points - [0.3, 0.6, 0.5]) ** 2).sum(1)
    values = truth + 0.01 * rng.standard_normal(700)
    surrogate = Surrogate.fit(points, np.full(700, 64.0), values)
    assert len(surrogate.inputs) == len(surrogate.points) == MAX_OBSERVATIONS
    assert surrogate.process.alpha_.shape == (MAX_OBSERVATIONS,)
    mean, _ = surrogate.predict(points)
    near = truth < np.quantile(truth, 0.2)
    assert np.abs(mean - truth)[near].max() < 0.03
    assert np.corrcoef(mean, truth)[0, 1] > 0.95


def test_of_many_trials_under_way_the_most_promising_are_taken_into_account():
    rng = np.random.default_rng(0)
    points = rng.random((40, 2))
    found = Surrogate.fit(points, np.full(40, 8.0), ((points - 0.3) ** 2).sum(1))
    few, many = rng.random((5, 2)), rng.random((200, 2))
    assert len(found.imagine(few).inputs) == 45
    imagined = found.imagine(many).inputs[40:, :2]
    expected = found.predict(imagined)[0]
    left_out = [point for point in many if not (imagined == point).all(1).any()]
    assert len(imagined) == MAX_UNDER_WAY and len(left_out) == 200 - MAX_UNDER_WAY
    assert expected.max() <= found.predict(np.array(left_out))[0].min()
