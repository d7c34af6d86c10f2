"""Every shipped study is bound to the real command: `autolr search NAME --dry-run`, with stand-ins for the hub."""

from __future__ import annotations

import csv
import random

import pytest
from typer.testing import CliRunner

from autolr.cli import app, resolve
from autolr.errors import AutoLRError
from autolr.schema.study import Study
from tests.conftest import OTHER

NAMES = list(resolve.shipped())


def table(study: Study, path) -> str:
    """Write a small table with the columns that a study asks for."""
    rng = random.Random(0)
    texts = [study.data.text_column or "text", *([study.data.pair_column] if study.data.pair_column else [])]
    columns = ["prompt", "completion"] if study.task == "sft" else [*texts, "label"]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*columns, "idx"])
        for row in range(400):
            texts = [" ".join(rng.sample(OTHER, 6)) for _ in columns[:-1]]
            label = rng.uniform(0, 5) if study.task == "regression" else f"class{row % 2}"
            writer.writerow([*texts, label, f"id{row}"])
    return str(path)


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_study_can_be_planned(name, model_folders, tmp_path):
    study = resolve.resolve([name], {}, None)
    assert study.name == name
    family = "lm" if study.task == "sft" else "llama" if "llama" in name else "bert"
    words = [
        f"data.source={table(study, tmp_path / 'data.csv')}",
        f"model={model_folders[family]}",
        "data.subset=null",
    ]
    words += [] if study.task == "sft" else ["data.label_column=label"]
    words += ["training.horizon={steps: 8}", "training.batch_size=4", "search.slots=2"]
    done = CliRunner().invoke(app, ["search", name, *words, "--dry-run", "--device", "cpu"])
    assert done.exit_code == 0, done.output
    assert f"study         {name}: " in done.output
    assert "nothing was written" in done.output


def test_the_glue_studies_are_the_papers():
    tasks = {name.removeprefix("glue-") for name in NAMES if name.startswith("glue-")}
    assert tasks == {"cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb"}
    for task in tasks:
        study = resolve.resolve([f"glue-{task}"], {}, None)
        assert (study.model, study.data.subset) == ("FacebookAI/roberta-base", task)
        assert study.training.horizon.epochs == (20 if task in ("cola", "rte", "mrpc", "stsb") else 10)
        assert (study.training.batch_size, study.training.betas, study.method.lora_alpha) == (32, (0.9, 0.99), 8)
        assert {ratio * 1e-4 for ratio in study.space.ratio} <= set(study.space.lr_v)  # Table 2's cells
    assert resolve.resolve(["glue-cola"], {}, None).metric == "matthews"
    assert resolve.resolve(["glue-stsb"], {}, None).task == "regression"


def test_a_file_of_several_studies_says_which():
    path = resolve.shipped()["glue-cola"].path
    with pytest.raises(AutoLRError, match="Name one of: glue-cola, glue-rte"):
        resolve.resolve([str(path)], {}, None)
    with pytest.raises(AutoLRError, match="no such file or shipped study. Shipped studies: .*glue-cola"):
        resolve.resolve(["glue"], {}, None)
