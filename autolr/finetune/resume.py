"""Which checkpoint a full run resumes from: the newest that is whole."""

from __future__ import annotations

import json
import pickle
import shutil
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers.trainer_pt_utils import safe_globals


def last_checkpoint(folder: Path, *, clean: bool = False) -> str | None:
    """Return the newest complete checkpoint; those that a crash left incomplete are passed over, or cleaned away."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    for path in sorted(found, key=lambda path: step_of(path.name), reverse=True):
        if _is_whole(path):
            return str(path)
        if clean:
            shutil.rmtree(path, ignore_errors=True)
    return None


def _is_whole(checkpoint: Path) -> bool:
    """Return True if all that a run needs to go on is there, plain tensors and numbers, and nothing of it cut short.

    The Trainer writes its state last, but a machine that dies may lose any file's end.
    """
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        with safe_open(checkpoint / "adapter_model.safetensors", framework="pt") as tensors:
            tensors.keys()
        of_chance = [path.name for path in checkpoint.glob("rng_state*.pth")] or ["rng_state.pth"]
        for name in ("optimizer.pt", "scheduler.pt", *of_chance):
            with zipfile.ZipFile(checkpoint / name) as archive:
                if archive.testzip() is not None:
                    return False
            with safe_globals():  # type: ignore[no-untyped-call]  # of the state of chance
                torch.load(checkpoint / name, map_location="cpu", weights_only=True)
    except (OSError, ValueError, RuntimeError, SafetensorError, zipfile.BadZipFile, pickle.UnpicklingError):
        return False
    return True


def step_of(checkpoint: str | None) -> int:
    """Return the step in the name of a checkpoint; 0 without one."""
    return int(checkpoint.rpartition("-")[2]) if checkpoint else 0
