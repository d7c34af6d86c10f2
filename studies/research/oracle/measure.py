"""Measure an oracle: learning curves of a grid of candidates, each to the full horizon.

    python -m studies.research.oracle.measure sentiment [--seeds 2] [--limit 20] [--lr-v 2e-3 4e-3]
    python -m studies.research.oracle.measure sections [--data sections.csv]
    python -m studies.research.oracle.measure horizon [--own]

Runs train packed, with the schedule of the whole horizon, and are scored at every rung on *validation* and *test*, as
they are and averaged; of the last steps the loss is kept that a search's finals are judged by too. What is measured
is kept run by run in `<name>.jsonl`, so the command can be stopped and given again; `<name>.parquet` is written from
it, its provenance in the file's own metadata.

With `--own` the grid is trained to its `own` length alone, on a schedule of that length: what short runs of the usual
kind say, in `<name>-own.jsonl`. `<name>-cool.jsonl` holds short cool-downs, which AutoLR no longer has: after each
rung some candidates' rates fell to 0 over a quarter as many steps.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from autolr.data.batches import TokenSet
from autolr.pack.pack import Pack
from autolr.pack.slot_count import CPU_SLOTS
from autolr.pack.slots import SlotConfig
from autolr.progress.callbacks import Callback
from autolr.progress.jobs import Job, Running
from autolr.rundir import provenance, records
from autolr.schema.candidate import Candidate
from autolr.schema.study import Study
from autolr.tuner.execute.held_out import last_steps
from autolr.tuner.execute.loop import Source, drive
from autolr.tuner.setting import Setting, choose_device, read_setting
from studies import SENTIMENT
from studies.research.oracle import DATA, sections

GRIDS: dict[str, dict[str, Any]] = {
    "sentiment": {
        "overrides": ["data.validation=0.03"],  # as the study had it when the first of them were measured
        "lr_v": [3e-4, 8e-4, 2e-3, 4e-3, 8e-3, 1.6e-2],
        "ratio": [0.5, 1.0, 2.0, 4.0, 8.0, 32.0],
        "rank": [4, 16],
        "rungs": [24, 64, 128, 256],
    },
    # Eight classes of short lines, where the embedded task has two of sentences; see `sections`.
    "sections": {
        "overrides": [
            "name=sections",
            "data={source: sections.csv, validation: 0.1, test: 0.15}",
            "training.horizon={steps: 216}",
            "search={}",
        ],
        "lr_v": [3e-4, 8e-4, 2e-3, 4e-3, 8e-3, 1.6e-2],
        "ratio": [0.5, 1.0, 2.0, 4.0, 8.0, 32.0],
        "rank": [4, 16],
        "rungs": [12, 28, 56, 112],
    },
    # Two epochs, in which high rates begin to overfit: does a trial see it coming? See `short_schedules`.
    "horizon": {
        "overrides": ["name=horizon", "training.horizon={steps: 848}"],
        "lr_v": [5e-4, 1e-3, 2e-3, 4e-3, 8e-3],
        "lr_q": [2e-4, 2e-3],
        "rank": [8],
        "rungs": [104, 212, 424],
        "own": 212,
    },
}


def points(grid: dict[str, Any]) -> list[tuple[float, float, int]]:
    """Return the points of a grid of lr_v and ratio, or of lr_v and lr_q: (lr_v, ratio, rank)."""
    others = grid.get("ratio") or grid["lr_q"]
    found = itertools.product(grid["lr_v"], others, grid["rank"])
    return [(v, other if "ratio" in grid else float(f"{v / other:.4g}"), rank) for v, other, rank in found]


class Grid(Source):
    """The grid's runs that are not there yet, as a source of jobs for the loop."""

    def __init__(
        self,
        name: str,
        setting: Setting,
        pack: Pack,
        seeds: int,
        limit: int | None,
        kind: str = "whole",
        rates: Sequence[float] = (),
    ) -> None:
        grid = GRIDS[name]
        steps = grid["own"] if kind == "own" else setting.steps
        self.study, self.validation = setting.study, len(setting.data.validation)
        self.file = DATA / (f"{name}.jsonl" if kind == "whole" else f"{name}-{kind}.jsonl")
        self.rungs: tuple[int, ...] = tuple(grid["rungs"]) if kind == "whole" else ()
        self.pack = pack
        self.started = time.time()
        validation, test = setting.data.validation, setting.data.test
        self.parts = {"validation": slice(0, len(validation)), "test": slice(len(validation), None)}
        self.data = TokenSet(validation.ids + test.ids, validation.labels + test.labels, validation.pad_id)
        self.rows: dict[Running, list[dict[str, Any]]] = {}
        there = {(r["lr_v"], r["ratio"], r["rank"], r["seed"]) for r in records.lines(self.file)}
        jobs = []
        for seed in range(seeds):
            wanted = points(grid)
            np.random.default_rng(seed).shuffle(wanted)  # type: ignore[arg-type]  # when incomplete it is spread out
            wanted = [point for point in wanted if not rates or point[0] in rates]
            for lr_v, ratio, rank in wanted:
                candidate = Candidate(lr_v=float(lr_v), ratio=float(ratio), rank=int(rank))
                config = SlotConfig(candidate.rates(setting.space.lr_head), candidate.rank, seed, steps)
                if (candidate.lr_v, candidate.ratio, candidate.rank, seed) not in there:
                    jobs.append(Job(name, candidate, config, len(jobs)))
        self.jobs = jobs[:limit]
        self.total = len(self.jobs)

    def next(self) -> Job | None:
        return self.jobs.pop(0) if self.jobs else None

    def reached(self, running: list[Running]) -> None:
        for averaged in (False, True):
            losses, said = self.pack.evaluate([one.slot for one in running], self.data, averaged=averaged)
            for place, one in enumerate(running):
                row: dict[str, Any] = {"step": one.slot.step, "averaged": averaged, "tokens": one.slot.tokens}
                row["train_loss"] = float(np.mean(one.slot.losses[-10:]))
                for part, rows in self.parts.items():
                    row[f"{part}_loss"] = float(losses[place, rows].mean())
                    row[f"{part}_accuracy"] = self.pack.task.score(said[place, rows], self.data.labels[rows])
                self.rows.setdefault(one, []).append(row)
        for one in running:
            if one.slot.done:
                one.outcome = "finished"

    def ended(self, running: Running) -> None:
        candidate, slot = running.job.candidate, running.slot
        unseen = last_steps(self.study, slot, self.validation) if running.outcome == "finished" else range(0)
        run = {
            **candidate.model_dump(include={"lr_v", "ratio", "rank"}),
            "seed": running.job.config.seed,
            "outcome": running.outcome,
            "seconds": round(running.seconds, 2),
            "validation_examples": self.validation,
            "unseen_examples": sum(len(slot.order[step]) for step in unseen),
            "unseen_loss": float(np.mean([slot.losses[step] for step in unseen])) if unseen else None,
            "rungs": self.rows.pop(running, []),
        }
        with self.file.open("a") as file:
            file.write(json.dumps(run) + "\n")
        took = time.time() - self.started
        print(f"{took / 60:6.1f} min  {candidate.describe()} seed {run['seed']}: {running.outcome}", flush=True)


def export(name: str, setting: Setting) -> Path:
    """Write all runs as one table, a row a rung."""
    runs: list[dict[str, Any]] = list(records.lines(DATA / f"{name}.jsonl"))
    rows = [
        {**{key: value for key, value in run.items() if key != "rungs"}, **rung}
        for run in runs
        for rung in run["rungs"]
    ]
    about = {
        "grid": GRIDS[name],
        "study": setting.study.model_dump(mode="json"),
        "steps": setting.steps,
        "lr_head": setting.space.lr_head,
        "precision": setting.backbone.precision,
        "model_fingerprint": setting.backbone.fingerprint(),
        "data_fingerprint": setting.examples.fingerprint,
        "environment": {"versions": provenance.versions(), "commit": provenance.commit()},
        "command": f"python -m studies.research.oracle.measure {name}",
    }
    table = pa.Table.from_pylist(rows).replace_schema_metadata({"autolr": json.dumps(about)})
    target = DATA / f"{name}.parquet"
    pq.write_table(table, target, compression="zstd")
    return target


def read_study(name: str, data: Path | None = None) -> Study:
    """Return the study that a grid's runs belong to; its data are made where they are not there."""
    overrides = list(GRIDS[name]["overrides"])
    if name == "sections":
        file = data or Path("runs") / "sections.csv"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            sections.write(file)
        overrides.append(f"data.source={file}")
    return Study.load(SENTIMENT, overrides)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=GRIDS)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--limit", type=int, help="runs of this sitting")
    parser.add_argument("--lr-v", type=float, nargs="+", default=(), help="of these rates alone, in this sitting")
    parser.add_argument("--data", type=Path, help="file that `sections` is kept in; made where it is not there")
    parser.add_argument("--own", action="store_true", help="measure short runs on a schedule of their own instead")
    parser.add_argument("--device")
    arguments = parser.parse_args()
    kind = "own" if arguments.own else "whole"
    if kind == "own" and "own" not in GRIDS[arguments.name]:
        parser.error(f"{arguments.name} has no short runs of their own schedule; horizon has")
    study = read_study(arguments.name, arguments.data)
    setting = read_setting(study, choose_device(arguments.device))
    # On a CPU no more than are trained side by side: what is interrupted is lost.
    with setting.pack(8 if setting.device.type == "cuda" else CPU_SLOTS) as pack:
        grid = Grid(arguments.name, setting, pack, arguments.seeds, arguments.limit, kind, arguments.lr_v)
        drive(pack, grid, Callback())
    if kind == "whole":
        print(export(arguments.name, setting))


if __name__ == "__main__":
    main()
