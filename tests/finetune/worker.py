"""A process of a full run, as a launcher starts it: trains a recipe and writes down what its optimizer was given."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from autolr.finetune import fitting, run, trainer
from autolr.finetune.distributed import Processes
from autolr.model import adapters, sparse_logits
from autolr.schema.recipe import Recipe


def main(recipe: str, out: str, fits: int) -> None:
    """Train; `fits` rows at most fit the memory, 0: all do."""
    torch.set_num_threads(1)
    told: dict = {"groups": {}, "batches": []}
    create, own, made = trainer.create_optimizer, sparse_logits.forward, adapters.peft_model

    def note(model, found):
        optimizer = create(model, found)
        told["groups"] = {group["name"]: group["lr"] for group in optimizer.param_groups}
        return optimizer

    def forward(model, batch):
        if model.training:
            told["batches"].append(len(batch["labels"]))
        if fits and torch.is_grad_enabled() and len(batch["labels"]) > fits:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return own(model, batch)

    trainer.create_optimizer = note
    trainer.forward = fitting.forward = forward
    adapters.peft_model = lambda *arguments: made(*arguments).double()  # so that rounding is not what is compared
    result = run.train(Recipe.load(recipe), out, device="cpu")
    told["log"] = result.metrics["log"]
    here = Processes.here()
    Path(f"{out}-{here.rank}.json").write_text(json.dumps(told))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
