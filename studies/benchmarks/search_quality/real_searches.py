"""The real search, several times with different seeds: how good are its recipes?

    python -m studies.benchmarks.search_quality.real_searches [--quick] [--searches 5]

Each search has splits, batches and adapters of its own seed. The measured oracle of the embedded study
(`studies/research/oracle`) judges a recipe: percent that its full run ends above the best of the space. The rule of
thumb is judged in the same way. Semifinalists and finalists have a row each: what their trials reported, and where
they ended.

Correlations over all pairs of a search: the finals' differences on *validation*, and on all that is held out, with
those
on *test* and with the oracle's; the semifinalists' differences after their trials and at half with the oracle's.

Searches that are in the folder `--runs` are not run again. So the command can be stopped and given again, also after
the oracle has grown.
"""

from __future__ import annotations

import itertools
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from autolr.rundir.records import Record
from autolr.rundir.result import SearchResult
from studies import SENTIMENT
from studies.benchmarks.common import document
from studies.benchmarks.search_quality import fitted_surfaces

SHORT = ["search.stages=[{to: 8}]", "search.rungs=[4]", "search.seeds=2", "budget.trials=2"]


def main() -> None:
    options = document.parser(__doc__)
    options.add_argument("--searches", type=int, default=5)
    options.add_argument("--runs", type=Path, default=Path("runs/repeats"), help="folder of their run folders")
    given = options.parse_args()
    oracle = fitted_surfaces.oracle("sentiment")
    apart: dict[str, list[float]] = {"validation": [], "held_out": [], "test": [], "oracle": []}
    halves: dict[str, list[float]] = {"trial": [], "half": [], "oracle": []}
    words = [*SHORT, *document.FEW, "baselines=[rule]"] if given.quick else []
    count = 1 if given.quick else given.searches
    result = document.Result("repeats", settings={"quick": given.quick, "searches": count, "oracle": oracle.about})
    excess = []
    for seed in range(1, count + 1):
        folder = given.runs / ("quick" if given.quick else f"seed-{seed}")
        command = [sys.executable, "-m", "autolr", "search", str(SENTIMENT), f"seed={seed}", *words]
        command += ["--no-train", "--plain", "--out", str(folder), "--device", given.device or "auto"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        searched = SearchResult.load(folder)
        recipe = searched.recipe
        assert recipe is not None and recipe.evidence is not None
        found, cost = recipe.candidate, recipe.evidence.cost
        trials = {trial.candidate: trial.score for trial in searched.ended() if trial.score is not None}

        def about(one: Record) -> dict[str, Any]:
            return {
                "seed": seed,  # noqa: B023 (called in this round alone)
                "label": one.label,
                **one.candidate.model_dump(include={"lr_v", "ratio", "rank"}),
                "excess_pct": round(oracle.excess(one.candidate), 4),
                "trial_loss": trials.get(one.candidate),  # noqa: B023
            }

        promoted = [one for stage in searched.ladder.values() for one in stage if not one.losses]
        for one in promoted:
            result.row("semifinal", **about(one), half_loss=one.held_out_loss)
        for first, second in itertools.combinations(promoted, 2):
            halves["trial"].append(trials[first.candidate] - trials[second.candidate])
            halves["half"].append(first.held_out_loss - second.held_out_loss)
            halves["oracle"].append(oracle.excess(first.candidate) - oracle.excess(second.candidate))
        for final in searched.finals:
            result.row(
                "final",
                **about(final),
                validation_loss=final.validation_loss,
                held_out_loss=final.held_out_loss,
                test_loss=final.test_loss,
            )
        for one, other in itertools.combinations(searched.finals, 2):
            apart["validation"].append(one.validation_loss - other.validation_loss)
            apart["held_out"].append(one.held_out_loss - other.held_out_loss)
            apart["test"].append(one.tested - other.tested)
            apart["oracle"].append(oracle.excess(one.candidate) - oracle.excess(other.candidate))
        excess.append(oracle.excess(found))
        result.row(
            "search",
            seed=seed,
            lr_v=float(f"{found.lr_v:.4g}"),
            ratio=float(f"{found.ratio:.4g}"),
            rank=found.rank,
            excess_pct=round(excess[-1], 4),
            full_runs=cost.full_run_equivalents,
            seconds=cost.device_seconds,
            verdict=recipe.evidence.verdict,
        )
    rule = oracle.bounds.rule_candidate
    result.row("rule", lr_v=rule.lr_v, ratio=rule.ratio, rank=rule.rank, excess_pct=round(oracle.excess(rule), 4))
    result.figure("median_excess_pct", statistics.median(excess))
    result.figure("worst_excess_pct", max(excess))
    result.figure("rule_excess_pct", oracle.excess(rule))
    if not given.quick:
        for seen, truth in itertools.product(("validation", "held_out"), ("test", "oracle")):
            result.figure(f"{seen}_to_{truth}", statistics.correlation(apart[seen], apart[truth]))
        for seen in ("trial", "half"):
            result.figure(f"{seen}_to_oracle", statistics.correlation(halves[seen], halves["oracle"]))
    document.deliver(result, torch.device("cpu"), keep=not given.quick, out=given.out)


if __name__ == "__main__":
    main()
