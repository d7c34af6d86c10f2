"""Full runs of several processes: batch and rates stay the recipe's, and the adapter is that of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from autolr.errors import RunError
from autolr.finetune import fitting, trainer
from autolr.finetune.distributed import Processes
from autolr.finetune.param_groups import create_optimizer
from autolr.finetune.run import train
from autolr.model import adapters, backbone, sparse_logits
from autolr.schema.recipe import Rates, Recipe
from tests.finetune.test_run import recipe  # noqa: F401 (a fixture)

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "examples" / "accelerate"


def launch(*words: object, processes: int = 2) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", processes]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=240, env=environment, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-3000:]


def in_float64(recipe: Recipe) -> Recipe:  # noqa: F811
    """Return a recipe whose products are not rounded to bf16; the workers train in float64."""
    return recipe.model_copy(update={"training": recipe.training.model_copy(update={"precision": "fp32"})})


@pytest.fixture
def in_double(monkeypatch) -> None:
    """Trains in float64, as the workers do."""
    made = adapters.peft_model
    monkeypatch.setattr(adapters, "peft_model", lambda *arguments: made(*arguments).double())


def close(one: Path, other: Path, tolerance: float) -> None:
    tensors, others = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (one, other))
    assert tensors.keys() == others.keys()
    for name, value in tensors.items():
        torch.testing.assert_close(value, others[name], rtol=0, atol=tolerance)


def test_two_processes_train_what_one_trains_whole_or_in_parts(recipe, in_double, tmp_path):  # noqa: F811
    recipe = in_float64(recipe.model_copy(update={"rates": Rates(q=0.005, v=0.02, head=0.01)}))
    recipe.save(tmp_path / "recipe.yaml")
    train(recipe, tmp_path / "alone", device="cpu")
    # The recipe's batch of 8 is 4 for each process, in parts of 2 where no more fit.
    for two, fits, batch in (("whole", 0, 4), ("parts", 2, 2)):
        launch(ROOT / "tests/finetune/worker.py", tmp_path / "recipe.yaml", tmp_path / two, fits)
        close(tmp_path / two, tmp_path / "alone", 1e-6)
        together = [json.loads((tmp_path / f"{two}-{rank}.json").read_text()) for rank in (0, 1)]
        for told in together:
            assert told["groups"] == pytest.approx({"q": 0.005, "v": 0.02, "head": 0.01})
            assert set(told["batches"][-recipe.steps * (4 // batch) :]) == {batch}
        found, alone = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in (two, "alone"))
        assert found["test"] == pytest.approx(alone["test"], abs=1e-6)
        losses = [[entry["loss"] for entry in one["log"] if "loss" in entry] for one in (found, alone)]
        assert losses[0] == pytest.approx(losses[1], abs=1e-3)


def test_a_language_model_counts_each_token_once_in_two_processes(
    recipe,  # noqa: F811
    in_double,
    model_folders,
    tmp_path,
):
    training = recipe.training.model_copy(update={"batch_size": 4, "precision": "fp32"})
    language = {"model": model_folders["lm"], "task": "lm", "metric": "perplexity", "classes": [], "steps": 6}
    data = recipe.data.model_copy(update={"text_column": "text"})
    told = {**language, "training": training, "data": data, "data_fingerprint": None, "rates": Rates(q=0.005, v=0.02)}
    recipe = recipe.model_copy(update=told)
    recipe.save(tmp_path / "recipe.yaml")
    train(recipe, tmp_path / "alone", device="cpu")
    launch(ROOT / "tests/finetune/worker.py", tmp_path / "recipe.yaml", tmp_path / "two", 0)
    close(tmp_path / "two", tmp_path / "alone", 1e-6)


def test_one_process_takes_its_batch_in_parts_where_it_does_not_fit(
    recipe,  # noqa: F811
    in_double,
    tmp_path,
    monkeypatch,
):
    own, recipe = sparse_logits.forward, in_float64(recipe)
    alone = train(recipe, tmp_path / "alone", device="cpu")

    def forward(model, batch):
        if torch.is_grad_enabled() and len(batch["labels"]) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return own(model, batch)

    for module in (trainer, fitting):
        monkeypatch.setattr(module, "forward", forward)
    for fits in (4, 2, 1):
        train(recipe, tmp_path / f"parts of {fits}", device="cpu")
        close(tmp_path / f"parts of {fits}", alone.folder, 1e-6)
    fits = 0
    with pytest.raises(RunError, match=r"one text of \d+ tokens does not fit"):
        train(recipe, tmp_path / "none", device="cpu")


def test_processes_that_cannot_share_a_batch_are_refused():
    with pytest.raises(RunError, match=r"batch of 8 cannot be shared evenly by 3 processes; launch 1, 2, 4, 8"):
        Processes(3, 0).join("cpu", 8)


def test_shares_are_all_of_every_batch_once():
    order = [[3, 1, 4, 1, 5, 9, 2, 6], [5, 3, 5, 8, 9, 7, 9, 3]]
    for count, parts in ((1, 1), (2, 1), (2, 2), (4, 2), (2, 3)):
        shares = [Processes(count, rank).share(order, parts) for rank in range(count)]
        for step, rows in enumerate(order):
            own = [part for share in shares for part in share[step * parts : (step + 1) * parts]]
            assert sum(own, []) == rows
            assert max(map(len, own)) - min(map(len, own)) <= 1


# FSDP2: torch's own sharding, with the groups that AutoLR makes.


def sharded(rank: int, model: str, store: str, found) -> None:
    from torch.distributed.fsdp import fully_shard

    torch.distributed.init_process_group("gloo", f"file://{store}", world_size=2, rank=rank)
    base, recipe = _tuned(model, found)  # noqa: F811
    for layer in base.base_model.model.bert.encoder.layer:
        fully_shard(layer)
    fully_shard(base)
    values = _steps(base, recipe, rank)
    if rank == 0:
        torch.save(values, f"{store}.pt")
    torch.distributed.destroy_process_group()


def _tuned(model: str, found: dict):
    recipe = Recipe.model_validate(found)  # noqa: F811
    base = backbone.load(model, recipe.classes)
    return adapters.peft_model(base, "qv", recipe.candidate.rank, recipe.method.lora_alpha, 0), recipe


def _steps(model, recipe, rank: int | None = None, steps: int = 5):  # noqa: F811
    optimizer = create_optimizer(model, recipe)
    groups = {
        group["name"]: (group["lr"], sum(p.numel() for p in group["params"])) for group in optimizer.param_groups
    }
    torch.manual_seed(1)
    for _ in range(steps):
        ids, labels = torch.randint(5, 40, (8, 6)), torch.randint(0, 2, (8,))
        if rank is not None:
            ids, labels = ids[4 * rank : 4 * rank + 4], labels[4 * rank : 4 * rank + 4]
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        torch.nn.functional.cross_entropy(logits, labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    values = {
        name: (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone()
        for name, p in model.named_parameters()
        if p.requires_grad
    }
    return groups, values


def test_sharded_groups_keep_their_rates_and_train_what_one_process_trains(recipe, tmp_path):  # noqa: F811
    rates = Rates(q=0.005, v=0.02, head=0.01)
    found = recipe.model_copy(update={"rates": rates}).model_dump(mode="json")
    torch.multiprocessing.spawn(sharded, (recipe.model, str(tmp_path / "store"), found), nprocs=2)
    groups, values = torch.load(tmp_path / "store.pt", weights_only=True)
    alone_groups, alone = _steps(*_tuned(recipe.model, found))
    assert {name: lr for name, (lr, _) in groups.items()} == {"q": 0.005, "v": 0.02, "head": 0.01}
    assert groups == alone_groups
    assert values.keys() == alone.keys()
    for name, value in values.items():
        torch.testing.assert_close(value, alone[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", sorted(path.name for path in CONFIGS.glob("*.yaml")))
def test_config_files_are_what_accelerate_reads(name):
    from accelerate.commands.config.config_args import load_config_from_file

    found = load_config_from_file(str(CONFIGS / name))
    assert str(found.mixed_precision) == "no" and found.num_processes >= 2
    assert f"--config_file examples/accelerate/{name} -m autolr train" in (CONFIGS / name).read_text()
    if "fsdp" in name:
        assert str(yaml.safe_load((CONFIGS / name).read_text())["fsdp_config"]["fsdp_version"]) == "2"


def test_the_command_trains_in_two_processes_and_speaks_once(recipe, tmp_path):  # noqa: F811
    """`accelerate launch` starts several processes of a CPU only through MPI; torchrun sets what it would."""
    recipe.model_copy(update={"steps": 4}).save(tmp_path / "recipe.yaml")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", 2, "--rdzv-backend", "c10d"]
    command += ["--rdzv-endpoint", "127.0.0.1:0", "-m", "autolr", "train", tmp_path / "recipe.yaml"]
    command += ["--device", "cpu", "--out", tmp_path / "run"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("2 processes with 4 of each batch") == 1 and done.stdout.count("test     accuracy") == 1
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()
