"""A whole search against `Trainer.hyperparameter_search` with Optuna, at equal final quality.

    python -m studies.benchmarks.speed.end_to_end [--quick] [--work runs/end_to_end] [--ours-only | --peer-only]

Ours is `autolr.search` and `autolr.train`: on the embedded study as it is (`main`), and with six trials
and the shortest verdict (`small`), which is enough where the peer's final loss is all that is asked.

The peer trains the same model on the same splits, with the same LoRA targets, in 24 trials, each a full run
with Optuna's pruning; it searches one rate and the rank. It takes half an hour on two cores, so the script may be
stopped and given again: it goes on after the last trial that ended. The two sides cannot take turns; run them on a
machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from transformers import PrinterCallback, Trainer

import autolr
from autolr.finetune.evaluation import evaluate
from autolr.finetune.trainer import EVALUATIONS
from autolr.model import backbone
from autolr.model.quiet import quiet
from autolr.rundir import provenance, records
from autolr.schema import yaml_io
from autolr.schema.overrides import apply_overrides
from autolr.schema.study import Study
from autolr.tuner.setting import Setting, choose_device, read_setting
from studies import SENTIMENT
from studies.benchmarks.common import document, peers
from studies.benchmarks.common.document import Result

# A few seconds of either side, too short to be a comparison.
QUICK = [
    "training.horizon={steps: 12}",
    "data.max_eval_samples=32",
    "search.stages=[{to: 4}]",
    "search.rungs=null",
    "search.seeds=2",
    "baselines=[default]",
    "budget.trials=2",
]
# Our searches: overrides of the study.
OURS: dict[str, list[str]] = {
    "main": [],
    "small": ["budget.trials=6", "search.stages=[{to: 128}]", "search.seeds=2", "baselines=[default]"],
}
# Losses this close, relatively, count as equal quality.
EQUAL = 1.005
# What a user of Optuna would give two dimensions.
PEER_TRIALS = 24


@dataclass(frozen=True)
class PeerTrial:
    """A trial of the peer that ended.

    Attributes:
        seconds: of the trial, loading the model and keeping the best checkpoint included.
        validation_loss: of the kept checkpoint; of the last evaluation where it was pruned.
        test_loss: of the kept checkpoint; None where it was pruned.
    """

    number: int
    outcome: str
    seconds: float
    rate: float
    rank: int
    validation_loss: float
    test_loss: float | None
    commit: str | None


class Peer:
    """`Trainer.hyperparameter_search`, kept in a folder from which it goes on.

    Args:
        study: whose model, data, horizon, ranks and rates are taken.
        device: what to train on.
        work: the folder.
        trials: how many in all.
        options: of TrainingArguments, those that are fast on the device.
    """

    def __init__(self, study: Study, device: torch.device, work: Path, trials: int, options: dict[str, Any]) -> None:
        self.study, self.device, self.work, self.trials, self.options = study, device, work, trials, options
        self.file = work / "peer.jsonl"
        work.mkdir(parents=True, exist_ok=True)
        self.storage = JournalStorage(JournalFileBackend(str(work / "peer.log")))

    def run(self) -> None:
        """Train the trials that are not there yet."""
        left = self.trials - len(self.ended())
        if left <= 0:
            return
        self._give_up_running()
        start = time.perf_counter()
        setting = read_setting(self.study, self.device)
        trainer = _SearchTrainer(self, setting)
        if not (self.work / "peer-start.json").is_file():
            seconds = round(time.perf_counter() - start, 3)
            yaml_io.write_text(self.work / "peer-start.json", json.dumps({"seconds": seconds}) + "\n")
        trainer.hyperparameter_search(
            hp_space=lambda trial: {"learning_rate": trainer.suggest(trial)[0]},
            n_trials=left,
            direction="minimize",
            backend="optuna",
            study_name="peer",
            storage=self.storage,
            load_if_exists=True,
            # Optuna's own choices, with a seed; a run that goes on must not propose the same points again.
            sampler=optuna.samplers.TPESampler(seed=self.study.seed + self.trials - left),
            pruner=optuna.pruners.MedianPruner(),
        )

    def ended(self) -> list[PeerTrial]:
        """Return the trials that ended, in their order."""
        held = self._study()
        states = {trial.number: trial.state for trial in held.trials} if held else {}
        found = [PeerTrial(**fields) for fields in records.lines(self.file)]
        good = (TrialState.COMPLETE, TrialState.PRUNED)
        return sorted((t for t in found if states.get(t.number) in good), key=lambda t: t.number)[: self.trials]

    def _study(self) -> optuna.Study | None:
        if "peer" not in optuna.get_all_study_names(self.storage):
            return None
        return optuna.load_study(study_name="peer", storage=self.storage)

    def _give_up_running(self) -> None:
        """Fail the trial that was running when the script was stopped, or the sampler would wait for it."""
        held = self._study()
        for trial in held.trials if held else []:
            if trial.state == TrialState.RUNNING:
                held.tell(trial.number, state=TrialState.FAIL)  # type: ignore[union-attr]

    def start_seconds(self) -> float:
        """Return what reading data and model took before the first trial."""
        return float(json.loads((self.work / "peer-start.json").read_text(encoding="utf-8"))["seconds"])


class _SearchTrainer(Trainer):
    """The stock Trainer; it writes down each trial and does nothing else differently."""

    def __init__(self, peer: Peer, setting: Setting) -> None:
        self.peer, self.setting = peer, setting
        rows = peers.Rows(setting.data.train)
        every = max(1, -(-setting.steps // EVALUATIONS))
        arguments = peers.arguments(
            peer.device,
            setting.study.training.batch_size,
            output_dir=str(peer.work / "checkpoints"),
            max_steps=setting.steps,
            eval_strategy="steps",
            eval_steps=every,
            save_strategy="steps",
            save_steps=every,
            save_total_limit=1,
            save_only_model=True,
            load_best_model_at_end=True,
            metric_for_best_model="eval_loss",
            greater_is_better=False,
            logging_strategy="no",
            seed=setting.study.seed,
            **peer.options,
        )
        super().__init__(
            model_init=self._model,
            args=arguments,
            train_dataset=rows,
            eval_dataset=peers.Rows(setting.data.validation),
            data_collator=rows.collate,
        )
        self.remove_callback(PrinterCallback)

    def suggest(self, trial: optuna.Trial) -> tuple[float, int]:
        """Return the rate, over AutoLR's own range, and the rank."""
        rates: Any = self.setting.space.distributions["lr_v"]
        ranks: Any = self.setting.space.distributions["rank"]
        rate = trial.suggest_float("learning_rate", rates.low, rates.high, log=True)
        return rate, int(trial.suggest_categorical("rank", list(ranks.choices)))

    def _model(self, trial: optuna.Trial | None = None) -> Any:
        study, device = self.setting.study, self.peer.device
        wanted = "bf16" if device.type == "cuda" else "fp32"
        rank = self.suggest(trial)[1] if trial is not None else min(study.space.rank)
        with quiet():
            loaded = backbone.load(study.model, self.setting.examples.classes, device, wanted)
        return peers.peft_model(loaded, rank, study.seed)

    def train(self, *args: Any, trial: Any = None, **kwargs: Any) -> Any:
        start, outcome = time.perf_counter(), "finished"
        try:
            with quiet():
                return super().train(*args, trial=trial, **kwargs)
        except optuna.TrialPruned:
            outcome = "pruned"
            raise
        except BaseException:
            outcome = ""  # stopped: it does not count
            raise
        finally:
            if outcome:
                self._write_down(trial, outcome, time.perf_counter() - start)

    def _write_down(self, trial: Any, outcome: str, seconds: float) -> None:
        validation, test = float(self.objective), None
        if outcome == "finished":
            data, task = self.setting.data, self.setting.task
            model = peers.unwrap(self.model)  # scored as ours is, without autocast
            validation = evaluate(model, data.validation, task)["loss"]
            test = evaluate(model, data.test, task)["loss"]
        rate, rank = self.suggest(trial)
        record = PeerTrial(
            trial.number, outcome, round(seconds, 3), rate, rank, validation, test, provenance.commit()
        )
        with self.peer.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(vars(record)) + "\n")
        shutil.rmtree(self.peer.work / "checkpoints", ignore_errors=True)
        about = f"rate {rate:.2e}, rank {rank}, select {validation:.4f}, confirm {test}, {seconds:.0f} s"
        print(f"peer trial {trial.number} {outcome}: {about}", flush=True)


def ours(name: str, study: Study, device: torch.device, work: Path) -> dict[str, Any]:
    """Search and train, or return what an earlier call has measured.

    Args:
        name: of `OURS`.
        study: as it is; the overrides of `name` are put on it.
        device: where to train.
        work: the folder.
    """
    folder, file = work / name, work / f"{name}.json"
    if file.is_file():
        return dict(json.loads(file.read_text(encoding="utf-8")))
    shutil.rmtree(folder, ignore_errors=True)  # a search that was stopped is measured from its start
    content = study.model_dump(mode="json")
    apply_overrides(content, OURS[name])
    study = Study.model_validate(content)
    start = time.perf_counter()
    found = autolr.search(study, folder / "search", device=str(device))
    searched = time.perf_counter() - start
    assert found.recipe is not None
    trained = autolr.train(found.recipe, folder / "full-run", device=str(device))
    measured = {
        "search": name,
        "trials": study.budget.trials,
        "seconds": round(time.perf_counter() - start, 3),
        "search_seconds": round(searched, 3),
        "phases": [phase.model_dump(mode="json") for phase in found.phases],
        "candidate": found.recipe.candidate.model_dump(mode="json"),
        "validation_loss": trained.validation["loss"],
        "test_loss": trained.test["loss"],
        "commit": provenance.commit(),
    }
    yaml_io.write_text(file, json.dumps(measured, indent=1) + "\n")
    return measured


def tuned(study: Study, device: torch.device, work: Path, steps: int) -> dict[str, Any]:
    """Return the Trainer's fast options on the device, measured once for a folder."""
    file = work / "peer-options.json"
    if not file.is_file():
        setting = read_setting(study, device)
        wanted = "bf16" if device.type == "cuda" else "fp32"
        with quiet():
            loaded = backbone.load(study.model, setting.examples.classes, device, wanted)
        model = peers.peft_model(loaded, max(study.space.rank))
        batch = study.training.batch_size
        options, rates = peers.tune(model, setting.data.train, batch, device, steps=steps)
        work.mkdir(parents=True, exist_ok=True)
        yaml_io.write_text(file, json.dumps({"options": options, "rates": rates}) + "\n")
    return dict(json.loads(file.read_text(encoding="utf-8")))


def best_of(trials: Iterable[PeerTrial]) -> PeerTrial | None:
    """Return the finished trial with the lowest loss on *validation*."""
    return min((t for t in trials if t.test_loss is not None), key=lambda t: t.validation_loss, default=None)


def reached(trials: list[PeerTrial], start: float, target: float) -> float | None:
    """Return the peer's seconds until its best so far, chosen on *validation*, is at most `target` on *test*."""
    for count, _ in enumerate(trials, 1):
        best = best_of(trials[:count])
        if best is not None and best.test_loss is not None and best.test_loss <= target:
            return start + sum(trial.seconds for trial in trials[:count])
    return None


def compare(
    result: Result, kind: str, own: list[dict[str, Any]], trials: list[PeerTrial], start: float, wanted: int
) -> bool:
    """Add rows and figures of both sides as far as they are there; tell whether both are complete.

    The ratio of times is that of the shortest of our searches whose test loss is as low as the peer's; with
    `_main` in its name, that of the main job.

    Args:
        result: to add to.
        kind: `cpu` or `gpu`.
        own: what `ours` returned for each search that was measured, the main job first.
        trials: of the peer, in their order.
        start: the peer's seconds before its first trial.
        wanted: trials of a complete peer.
    """
    best = best_of(trials)
    complete = len(trials) >= wanted
    for one in own:
        result.row("ours", **one)
    for trial in trials:
        result.row("hf trial", **vars(trial))
    if complete and best is not None and best.test_loss is not None:
        result.figure(f"{kind}_confirm_loss_hf", best.test_loss)
    if own:
        result.figure(f"{kind}_confirm_loss_main", own[0]["test_loss"])
    if len(own) < len(OURS) or not complete:
        return False
    seconds = start + sum(trial.seconds for trial in trials)
    when = reached(trials, start, EQUAL * own[0]["test_loss"])
    result.row("hf", seconds=round(seconds, 1), start_seconds=start, reached_ours=when is not None)
    name = "cpu_time_vs_hf" if kind == "cpu" else "gpu_device_seconds_vs_hf"
    result.figure(f"{name}_main", seconds / own[0]["seconds"])
    target = EQUAL * best.test_loss if best is not None and best.test_loss is not None else float("inf")
    as_good = [one for one in own if one["test_loss"] <= target]
    if as_good:
        shortest = min(as_good, key=lambda one: float(one["seconds"]))
        result.figure(name, seconds / shortest["seconds"])
        result.figure(f"{kind}_confirm_loss_ours", shortest["test_loss"])
    return True


def measure(
    study: Study,
    device: torch.device,
    work: Path,
    *,
    sides: tuple[str, ...],
    peer_trials: int,
    tuning_steps: int = 16,
) -> tuple[Result, bool]:
    """Measure the sides that are asked for, and compare what the folder then holds.

    Returns:
        The result, and whether both sides are complete.
    """
    result = Result("end_to_end")
    result.settings = {"study": study.model_dump(mode="json"), "peer_trials": peer_trials, "equal": EQUAL}
    if "ours" in sides:
        for name in OURS:
            _fresh_cache(work, name)
            ours(name, study, device, work)
    if "peer" in sides:
        _fresh_cache(work, "peer")
        found = tuned(study, device, work, tuning_steps)
        result.settings["peer"] = found
        _fresh_cache(work, "peer")
        Peer(study, device, work, peer_trials, found["options"]).run()
    own = [ours(name, study, device, work) for name in OURS if (work / f"{name}.json").is_file()]
    held = Peer(study, device, work, peer_trials, {})
    trials = held.ended()
    start = held.start_seconds() if trials else 0.0
    kind = "gpu" if device.type == "cuda" else "cpu"
    return result, compare(result, kind, own, trials, start, peer_trials)


def _fresh_cache(work: Path, side: str) -> None:
    """Let each side tokenize for itself, as a first search does."""
    folder = work / "cache" / side
    shutil.rmtree(folder, ignore_errors=True)
    os.environ["AUTOLR_CACHE"] = str(folder)


def main() -> None:
    options = document.parser(__doc__)
    options.add_argument("--work", type=Path, default=Path("runs/end_to_end"), help="folder to go on from")
    options.add_argument("--peer-trials", type=int, default=PEER_TRIALS, help="trials of the peer")
    only = options.add_mutually_exclusive_group()
    only.add_argument("--ours-only", action="store_true")
    only.add_argument("--peer-only", action="store_true")
    given: argparse.Namespace = options.parse_args()
    device = choose_device(given.device)
    study = Study.load(SENTIMENT, QUICK if given.quick else [])
    sides = ("ours",) if given.ours_only else ("peer",) if given.peer_only else ("ours", "peer")
    wanted = study.budget.trials if given.quick else given.peer_trials
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder) if given.quick else given.work
        result, complete = measure(
            study, device, work, sides=sides, peer_trials=wanted, tuning_steps=2 if given.quick else 16
        )
    result.settings["quick"] = given.quick
    # Half a comparison is no result.
    out = given.out or (None if given.quick or complete else given.work)
    document.deliver(result, device, keep=complete and not given.quick, out=out)


if __name__ == "__main__":
    main()
