"""Whole searches and full runs on a GPU, phase by phase, against stock trials one after another.

RoBERTa-base classifies sentences of natural lengths, and Llama-1B learns completions. Both have random weights, so
the losses mean nothing. The measurement is time: of AutoLR's phases, and of the same tokens in plain PEFT trials.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

import autolr
from autolr import Study
from autolr.finetune.evaluation import evaluate
from autolr.model import backbone
from autolr.model.quiet import quiet
from autolr.rundir.result import SearchResult
from autolr.tuner.setting import Setting, read_setting
from studies.benchmarks.common import peers
from studies.benchmarks.common.shapes import LLAMA_1B, ROBERTA, TINIEST_ROBERTA, TINY_LLAMA, Shape, natural_lengths
from studies.benchmarks.gpu import models
from studies.benchmarks.gpu.parts import DEVICE, GIB, Part, Run, first_line
from studies.benchmarks.gpu.plain_loops import Loop
from studies.benchmarks.gpu.rates import digits

# Stock trials that are timed, each from its first values to its score.
STOCK = 3


@dataclass(frozen=True)
class Case:
    """What is searched.

    Attributes:
        name: of the case.
        shape: of the model.
        language: learn completions; else classify.
        lengths: tokens of each text.
        study: the study's settings, without model and data.
    """

    name: str
    shape: Shape
    language: bool
    lengths: tuple[int, ...]
    study: dict[str, Any]

    def build(self, folder: Path) -> Study:
        """Write model and data, and return the study of them."""
        models.build(self.shape, folder / "model", DEVICE, language=self.language)
        vocabulary, file = self.shape.sizes["vocab_size"], folder / "data.jsonl"
        if self.language:
            models.prompts(self.lengths[0], len(self.lengths), vocabulary, file)
        else:
            models.sentences(self.lengths, vocabulary, file)
        data = {"source": str(file), "validation": 0.1, "test": 0.1, "max_length": max(8, *self.lengths)}
        task = "sft" if self.language else "classification"
        return Study.model_validate(
            {"name": self.name, "model": str(folder / "model"), "task": task, "data": data, **self.study}
        )


def cases(*, simulated: bool) -> list[Case]:
    """Return what is searched."""
    if simulated:
        few = {
            "training": {"batch_size": 2, "horizon": {"steps": 6}},
            "search": {"stages": [{"to": 4}], "rungs": [2], "seeds": 2, "slots": 2},
            "space": {"rank": [2]},
            "baselines": ["default"],
            "budget": {"trials": 2},
        }
        return [
            Case("roberta", TINIEST_ROBERTA, False, natural_lengths()[:40], few),
            Case("llama_1b", TINY_LLAMA, True, (12,) * 40, few),
        ]
    return [
        Case(
            "roberta",
            ROBERTA,
            False,
            natural_lengths(),
            {"training": {"batch_size": 32, "horizon": {"epochs": 3}}, "budget": {"trials": 16, "time": "90s"}},
        ),
        Case(
            "llama_1b",
            LLAMA_1B,
            True,
            (128,) * 2048,
            {"training": {"batch_size": 4, "horizon": {"epochs": 1}}, "budget": {"trials": 16, "time": "120s"}},
        ),
    ]


def parts(run: Run) -> list[Part]:
    """Return the parts of a call that searches."""
    return [
        Part(case.name, 0 if run.simulated else 120, partial(whole, case=case))
        for case in cases(simulated=run.simulated)
    ]


def whole(run: Run, case: Case) -> None:
    """Search, train the winner to the end, and time the same tokens in stock trials."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start = time.perf_counter()
        study = case.build(folder)
        run.release()
        run.row("built", case=case.name, seconds=digits(time.perf_counter() - start))
        torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        found = autolr.search(study, folder / "search", device=str(DEVICE))
        searched = time.perf_counter() - start
        trained = _searched(run, case, found, searched)
        run.release()
        start = time.perf_counter()
        assert found.recipe is not None
        full = autolr.train(found.recipe, folder / "full-run", device=str(DEVICE))
        seconds = digits(time.perf_counter() - start)
        run.row(
            "full run",
            case=case.name,
            seconds=seconds,
            steps=found.recipe.steps,
            validation=full.validation,
            test=full.test,
        )
        run.figure(f"{case.name}_full_run_seconds", seconds)
        run.release()
        _stock(run, case, study, searched, trained)


def _searched(run: Run, case: Case, found: SearchResult, seconds: float) -> int:
    """Write what a search took, phase by phase; return the tokens it trained."""
    for phase in found.phases:
        run.row("phase", case=case.name, **phase.model_dump(mode="json"))
    trained = sum(phase.trained_tokens for phase in found.phases)
    about = json.loads((found.folder / "machine.json").read_text(encoding="utf-8"))
    assert found.recipe is not None
    outcomes = [trial.outcome for trial in found.trials]
    run.row(
        "search",
        case=case.name,
        seconds=digits(seconds),
        trained_tokens=trained,
        tokens_per_second=digits(trained / seconds),
        trials={outcome: outcomes.count(outcome) for outcome in sorted(set(outcomes))},
        candidate=found.recipe.candidate.model_dump(mode="json"),
        allocated_gib=digits(torch.cuda.max_memory_allocated() / GIB),
        reserved_gib=digits(torch.cuda.max_memory_reserved() / GIB),
        machine={
            name: about[name] for name in ("slots", "reason", "predicted_bytes", "peak_bytes", "graphs", "rates")
        },
        graphs_reason=about["graphs_reason"],
    )
    run.figure(f"{case.name}_search_seconds", seconds)
    return trained


def _stock(run: Run, case: Case, study: Study, searched: float, trained: int) -> None:
    """Time stock trials of the search's length, scored on *validation*, and compare them by trained tokens."""
    setting = read_setting(study, DEVICE)
    with quiet():
        base = backbone.load(study.model, setting.examples.classes, DEVICE, "bf16", study.task)
    model = peers.peft_model(base, max(study.space.rank))
    batch, data = study.training.batch_size, setting.data.train
    mean = statistics.fmean(data.lengths())
    for graphs in (False, True):
        name = "captured loop" if graphs else "loop"
        try:
            seconds = _trials(run, model, setting, batch, graphs=graphs)
        except RuntimeError as error:
            run.row("not possible", case=case.name, contender=name, reason=first_line(error))
            continue
        each = statistics.median(seconds)
        # So long would stock trials take for as many tokens as the search has trained.
        same = each * trained / (setting.length * batch * mean)
        row = {"steps": setting.length, "seconds_each": [digits(value) for value in seconds]}
        run.row("stock", case=case.name, contender=name, **row, seconds_for_the_same_tokens=digits(same))
        run.figure(f"{case.name}_search_to_{name.replace(' ', '_')}", same / searched)


def _trials(run: Run, model: Any, setting: Setting, batch: int, *, graphs: bool) -> list[float]:
    """Return the seconds of stock trials, one after another; a first one warms up.

    A captured loop is kept from trial to trial, with its adapter's first values and its optimizer's zeros put back.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    kept = [parameter.detach().clone() for parameter in trained]
    loop, seconds = Loop(run, model, setting.data.train, batch, graphs=graphs), []
    for trial in range(STOCK + 1):
        run.wait()
        start = time.perf_counter()
        with torch.no_grad():
            for parameter, value in zip(trained, kept, strict=True):
                parameter.copy_(value)
            for state in loop.optimizer.state.values():
                for value in state.values():
                    value.zero_()
        loop.rate(setting.length, trial)
        with torch.autocast("cuda", torch.bfloat16):
            evaluate(model, setting.data.validation, setting.task)
        model.train()
        run.wait()
        seconds.append(time.perf_counter() - start)
    return seconds[1:]
