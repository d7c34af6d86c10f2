"""Searches replayed on surfaces whose truth is known: ours, stock Optuna, a grid, and the rule of thumb.

    python -m studies.benchmarks.search_quality.replay [--quick] [--part design] [--only ours,gp]
        [--surfaces crossing]

Nothing is trained: trials see the losses of the surfaces (`surfaces.py`, `fitted_surfaces.py`), and pay for their
steps. Tokens are in full runs. `--part` says which tables: searches are designed on one part and reported on the
other.

Tokens to a target are medians over the surfaces where the rule of thumb misses it: elsewhere there is nothing to
find. A search that is not within the target at its end is censored; a median that is censored is absent.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
import warnings
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from threadpoolctl import threadpool_limits

from autolr.tuner.judge.verdict import paired_interval
from studies.benchmarks.search_quality import fitted_surfaces, strategies
from studies.benchmarks.search_quality.ledger import Curve, Ledger, pruned_best
from studies.benchmarks.search_quality.surfaces import Surface, encode

PARTS = ("held_back", "design", "all")
# Budgets in full runs at which excesses are shown, and targets of the excess in percent.
SHOWN = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
TARGETS = (1.0, 0.3)
# The promise to the user is "for less than the price of two full runs".
PROMISED = 2.0
PROCESSES = 2
# The confirmation that follows a search: seeds, examples, and the standard deviation over examples of the difference
# of two candidates' losses, relative to the loss (0.09 to 0.11 nats of 0.45 between the winner and rules of the
# embedded study).
CONFIRM_SEEDS, CONFIRM_EXAMPLES, EXAMPLE_SD = 3, 400, 0.22


@dataclass(frozen=True)
class Plan:
    """How much is replayed.

    Attributes:
        repeats: of each strategy on each surface.
        slow_repeats: of Optuna's GP sampler, whose proposals take about 0.3 s each.
        budget: of all searches in full runs; what is not reached within it is censored.
        packed_budget: after so many full runs ours stop, as a user would; they keep what they have found. The last
            three are those of semifinals and finals, each of which is a trial that goes on.
        surfaces: at most so many of a family; 0: all.
    """

    repeats: int = 20
    slow_repeats: int = 10
    budget: float = 16.0
    packed_budget: float = 7.0
    surfaces: int = 0

    def repeats_of(self, strategy: str) -> int:
        return min(self.slow_repeats, self.repeats) if strategy == "gp" else self.repeats

    def budget_of(self, strategy: str) -> float:
        # The grid is given what it costs: 36 full runs.
        price = float(len(strategies.PAPER_POINTS))
        return price if strategy == "grid" else self.packed_budget if strategy in strategies.PACKED else self.budget


FULL = Plan()
QUICK = Plan(repeats=2, slow_repeats=1, budget=8.0, packed_budget=5.0, surfaces=2)


@dataclass(frozen=True)
class Outcome:
    """One search on one surface, judged.

    Attributes:
        rule: excess of the rule in percent.
        excess: percent above the best after `SHOWN` budgets and at the end.
        tokens: to stay within each of `TARGETS`; infinite where it does not.
        area: mean excess over the benchmark's budget.
        gain: on the rule after the promised budget, in percent.
        pruned: whether the best candidate of those tried was pruned; None where nothing could be.
        pruned_cost: what the pruner cost in percent: best kept against best tried.
        covered: whether the 90 % interval of the winner against the rule, from a confirmation with fresh seeds and
            examples, holds the true difference; None where the winner is the rule.
        trials: that were judged.
        seconds: of the strategy's own thinking.
    """

    surface: str
    strategy: str
    repeat: int
    rule: float
    excess: tuple[float, ...]
    end: float
    tokens: tuple[float, ...]
    area: float
    gain: float
    pruned: bool | None
    pruned_cost: float | None
    covered: bool | None
    trials: int
    seconds: float


def replay(surface_name: str, strategy: str, repeat: int, plan: Plan) -> Outcome:
    """Run one search on one surface and judge it."""
    surface = fitted_surfaces.surface(surface_name)
    surface.best  # noqa: B018 (found once, and not on the search's time)
    start = time.perf_counter()
    ledger = strategies.STRATEGIES[strategy](surface, plan.budget_of(strategy), repeat)
    seconds = time.perf_counter() - start
    curve = Curve.of(ledger, surface)
    dropped = pruned_best(ledger, surface)
    at_promised = curve.at(PROMISED)
    return Outcome(
        surface=surface_name,
        strategy=strategy,
        repeat=repeat,
        rule=curve.rule,
        excess=tuple(curve.at(budget) for budget in SHOWN),
        end=curve.at(ledger.budget),
        tokens=tuple(curve.tokens_to(target) for target in TARGETS),
        area=curve.area(plan.budget),
        gain=100 * (1 - (100 + at_promised) / (100 + curve.rule)),
        pruned=dropped and dropped[0],
        pruned_cost=dropped and dropped[1],
        covered=covered(surface, ledger, repeat),
        trials=len(ledger.tried),
        seconds=seconds,
    )


def covered(surface: Surface, ledger: Ledger, repeat: int) -> bool | None:
    """Confirm the search's winner against the rule as `autolr search` does, and tell whether the truth is inside."""
    winner, rule = ledger.incumbents[-1][1] if ledger.incumbents else None, surface.bounds.rule_candidate
    if winner is None or winner == rule:
        return None
    length = strategies.trial_length(surface.bounds.steps)
    seeds = range(1000 * (repeat + 1), 1000 * (repeat + 1) + CONFIRM_SEEDS)
    apart = [
        surface.loss(rule, length, seed, averaged=True) - surface.loss(winner, length, seed, averaged=True)
        for seed in seeds
    ]
    steps = surface.bounds.steps
    of_rule, of_winner = (surface.curve_at(encode(one), length, steps, averaged=True) for one in (rule, winner))
    rng = np.random.default_rng([repeat, zlib.crc32(surface.name.encode())])  # not the same examples everywhere
    # Half of the examples' variance is theirs, whatever the seed.
    sd = EXAMPLE_SD * of_winner / np.sqrt(2)
    examples = rng.normal(0, sd, CONFIRM_EXAMPLES) + rng.normal(0, sd, (CONFIRM_SEEDS, CONFIRM_EXAMPLES))
    interval = paired_interval(np.array(apart)[:, None] + examples)
    return bool(interval.low <= of_rule - of_winner <= interval.high)


def replay_all(jobs: Sequence[tuple[str, str, int]], plan: Plan, processes: int) -> Iterable[Outcome]:
    """Replay jobs (surface, strategy, repeat), several at a time, and yield what comes of each."""
    if processes == 1:
        set_up()
        yield from (replay(*job, plan) for job in jobs)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=set_up) as pool:
        yield from pool.map(replay, *zip(*jobs, strict=True), [plan] * len(jobs), chunksize=4)


def set_up() -> None:
    """Prepare a process: small matrices are faster in one thread."""
    threadpool_limits(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")


def middle(values: Iterable[float]) -> float:
    """Return the median; infinite where half of the values or more are censored."""
    ordered = sorted(values)
    return float(np.quantile(ordered, 0.5, method="higher")) if ordered else float("nan")


def summary(outcomes: Sequence[Outcome], plan: Plan) -> dict[str, Any]:
    """Return what a strategy did on one surface or on several; budgets beyond its own are left out."""
    strategy = outcomes[0].strategy
    found: dict[str, Any] = {"searches": len(outcomes), "budget": plan.budget_of(strategy)}
    for place, budget in enumerate(SHOWN):
        if budget <= plan.budget:
            excess = [outcome.excess[place] for outcome in outcomes]
            found[f"excess_pct_at_{budget:g}"] = round(statistics.mean(excess), 4)
            found[f"median_excess_pct_at_{budget:g}"] = round(statistics.median(excess), 4)
    found["excess_pct_at_end"] = round(statistics.mean(outcome.end for outcome in outcomes), 4)
    found["area"] = round(statistics.mean(outcome.area for outcome in outcomes), 4)
    for place, target in enumerate(TARGETS):
        tokens = [outcome.tokens[place] for outcome in outcomes if outcome.rule > target]
        if tokens:
            found[f"reached_{target:g}pct"] = round(sum(np.isfinite(tokens)) / len(tokens), 3)
        if tokens and np.isfinite(middle(tokens)):
            found[f"tokens_to_{target:g}pct"] = round(middle(tokens), 4)
    found["gain_over_rule_pct"] = round(statistics.mean(outcome.gain for outcome in outcomes), 4)
    judged = [outcome for outcome in outcomes if outcome.pruned is not None]
    if judged and strategy not in ("rule", "grid", "random", "gp"):
        found["pruned_best_rate"] = round(statistics.mean(bool(outcome.pruned) for outcome in judged), 4)
        costs = [outcome.pruned_cost or 0.0 for outcome in judged]
        found["pruned_best_over_0.3pct_rate"] = round(statistics.mean(cost > 0.3 for cost in costs), 4)
        found["pruned_cost_pct"] = round(statistics.mean(costs), 4)
    inside = [outcome.covered for outcome in outcomes if outcome.covered is not None]
    if inside:
        found["coverage90"] = round(statistics.mean(inside), 4)
    found["trials"] = round(statistics.mean(outcome.trials for outcome in outcomes), 1)
    found["seconds"] = round(statistics.mean(outcome.seconds for outcome in outcomes), 3)
    return found


def blocks_of(outcomes: Sequence[Outcome], names: Sequence[str], plan: Plan) -> dict[str, dict[str, Any]]:
    """Return what each strategy did, by its name."""
    return {name: summary([one for one in outcomes if one.strategy == name], plan) for name in names}


def figures(by_strategy: dict[str, dict[str, Any]], plan: Plan) -> dict[str, float]:
    """Return the contract's figures, ours against the others.

    Where no stock search reaches the target in the median, the budget stands for its tokens, and the ratio is an
    upper bound. Where ours does not, there is no ratio.
    """
    key = f"tokens_to_{TARGETS[-1]:g}pct"
    found: dict[str, float] = {}
    for name, block in by_strategy.items():
        if name == "ours":
            continue
        for figure in (f"excess_pct_at_{PROMISED:g}", "excess_pct_at_end", "area", key, "gain_over_rule_pct"):
            if figure in block:
                found[f"{name}.{figure}"] = block[figure]
    ours = by_strategy.get("ours")
    if ours is None:
        return found
    stock = [by_strategy[name].get(key, plan.budget) for name in strategies.STOCK if name in by_strategy]
    if key in ours:
        found[key] = ours[key]
        if stock:
            found["tokens_vs_best_optuna"] = ours[key] / min(stock)
        found["tokens_vs_grid"] = ours[key] / len(strategies.PAPER_POINTS)
    for figure, source in (
        ("excess_pct", f"excess_pct_at_{PROMISED:g}"),
        ("gain_over_rule_pct", "gain_over_rule_pct"),
        ("pruned_best_rate", "pruned_best_rate"),
        ("pruned_best_over_0.3pct_rate", "pruned_best_over_0.3pct_rate"),
        ("area", "area"),
        ("coverage90", "coverage90"),
    ):
        if source in ours:
            found[figure] = ours[source]
    return found


def chosen(part: str, wanted: str | None, at_most: int) -> tuple[list[str], list[str]]:
    """Return the names of the surfaces to replay on, and lines about those left out."""
    found, notes = fitted_surfaces.names(part)
    if wanted:
        found = [name for name in found if any(word in name for word in wanted.split(","))]
    if at_most:
        families: dict[str, list[str]] = {}
        for name in found:
            families.setdefault(name.partition("/")[0], []).append(name)
        # Evenly over a family, whose first members may be much alike.
        found = [name for family in families.values() for name in family[:: -(-len(family) // at_most)]]
    return found, notes


def table(by_strategy: dict[str, dict[str, Any]], plan: Plan) -> str:
    """Return the strategies side by side, as text."""
    budgets = [budget for budget in SHOWN if budget <= plan.budget]
    heads = [
        *(f"{b:g}" for b in budgets),
        "area",
        *(f"to {t:g} %" for t in TARGETS),
        "pruned best",
        "> 0.3 %",
        "trials",
    ]
    lines = ["mean excess in percent after so many full runs, and full runs to stay within a target (median)"]
    lines.append(f"{'':16}" + "".join(f"{head:>14}" for head in heads))
    for name, block in by_strategy.items():
        cells = [f"{block[f'excess_pct_at_{budget:g}']:.2f}" for budget in budgets] + [f"{block['area']:.2f}"]
        for target in TARGETS:
            tokens = block.get(f"tokens_to_{target:g}pct")
            share = 100 * block.get(f"reached_{target:g}pct", 0.0)
            cells.append(f"{tokens:.2f} ({share:.0f}%)" if tokens is not None else f"- ({share:.0f}%)")
        for rate in ("pruned_best_rate", "pruned_best_over_0.3pct_rate"):
            cells.append(f"{block[rate]:.2f}" if rate in block else "")
        cells.append(f"{block['trials']:.0f}")
        lines.append(f"{name:16}" + "".join(f"{cell:>14}" for cell in cells))
    return "\n".join(lines)


def main() -> None:
    import torch

    from studies.benchmarks.common import document  # here, so that the replaying processes do without its torch

    options = document.parser(__doc__)
    options.add_argument("--part", choices=PARTS, default=PARTS[0], help="of the tables")
    options.add_argument(
        "--only", help=f"strategies, such as ours,gp, or parts of ours: {','.join(strategies.ABLATIONS)}"
    )
    options.add_argument("--surfaces", help="words in the names of surfaces, such as oracle,crossing")
    options.add_argument("--repeats", type=int)
    options.add_argument("--budget", type=float, help="of the stock searches, in full runs")
    options.add_argument("--packed-budget", type=float, help="of ours, in full runs")
    options.add_argument("--processes", type=int, default=PROCESSES)
    given = options.parse_args()
    plan = QUICK if given.quick else FULL
    changed = {"repeats": given.repeats, "budget": given.budget, "packed_budget": given.packed_budget}
    settings = {**vars(plan), **{name: value for name, value in changed.items() if value is not None}}
    plan = Plan(**settings)
    wanted = (
        given.only.split(",") if given.only else [n for n in strategies.STRATEGIES if n not in strategies.ABLATIONS]
    )
    names = [name for name in strategies.available() if name in wanted]
    surfaces, notes = chosen(given.part, given.surfaces, plan.surfaces)
    for note in notes:
        print(note)
    result = document.Result("search", settings={"quick": given.quick, "part": given.part, **settings})
    result.settings |= {"strategies": names, "surfaces": surfaces, "left_out": notes, "unit": "full runs"}
    jobs = [
        (surface, strategy, repeat)
        for surface in surfaces
        for strategy in names
        for repeat in range(plan.repeats_of(strategy))
    ]
    start, outcomes = time.perf_counter(), list(replay_all(jobs, plan, given.processes))
    for surface in surfaces:
        about = fitted_surfaces.surface(surface).about
        of_it = [one for one in outcomes if one.surface == surface]
        rule = round(of_it[0].rule, 4)
        result.rows.append({"kind": "surface", "surface": surface, "rule_excess_pct": rule, **about})
        for name, block in blocks_of(of_it, names, plan).items():
            result.rows.append({"kind": "search", "surface": surface, "strategy": name, **block})
    families = list(dict.fromkeys(surface.partition("/")[0] for surface in surfaces))
    for family in families if len(families) > 1 else []:
        blocks = blocks_of([one for one in outcomes if one.surface.startswith(f"{family}/")], names, plan)
        result.rows += [{"kind": "family", "family": family, "strategy": name, **blocks[name]} for name in blocks]
        print(f"{family}:\n{table(blocks, plan)}\n")
    blocks = blocks_of(outcomes, names, plan)
    result.rows += [{"kind": "strategy", "strategy": name, **block} for name, block in blocks.items()]
    for name, value in figures(blocks, plan).items():
        result.figure(name, value)
    key = f"tokens_to_{TARGETS[-1]:g}pct"
    result.settings["censored"] = [name for name, block in blocks.items() if key not in block]
    result.settings["seconds"] = round(time.perf_counter() - start)
    print(f"all {len(surfaces)} surfaces:\n{table(blocks, plan)}")
    whole = not (given.quick or given.only or given.surfaces) and given.part == PARTS[0]
    document.deliver(result, torch.device("cpu"), keep=whole, out=given.out)


if __name__ == "__main__":
    main()
