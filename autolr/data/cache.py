"""Tokens kept between runs: texts are tokenized once for each tokenizer, data set and length.

The cache lies in the user's cache folder (`AUTOLR_CACHE` names another one). Losing it costs
time alone: a file that is missing, damaged or cannot be written is made anew or done without.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from autolr.data.batches import tokenize
from autolr.data.sources import Examples

# The newest files that are kept.
KEPT = 20


def tokens(examples: Examples, tokenizer: Any, max_length: int) -> list[list[int]]:
    """Return the token ids of all examples, each cut to `max_length`, from the cache or anew."""
    path = folder() / f"{_key(examples, tokenizer, max_length)}.safetensors"
    try:
        held = load_file(path)
        flat, ends = held["ids"], held["ends"]
        if len(ends) == len(examples) and ends[-1] == len(flat):
            os.utime(path)
            return [part.tolist() for part in np.split(flat, ends[:-1])]
    except (OSError, SafetensorError, KeyError, IndexError):
        pass
    ids = tokenize(tokenizer, examples.texts, max_length, examples.pairs)
    _keep(path, ids)
    return ids


def folder() -> Path:
    """Return where tokens are kept."""
    named = os.environ.get("AUTOLR_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "autolr"


def _key(examples: Examples, tokenizer: Any, max_length: int) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_truncation()  # set by the last call, and again by the next
        backend.no_padding()
    about = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    parts = (
        examples.fingerprint,
        type(tokenizer).__name__,
        about,
        repr(tokenizer.special_tokens_map),
        str(max_length),
    )
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _keep(path: Path, ids: list[list[int]]) -> None:
    flat = np.concatenate([np.asarray(part, dtype=np.int32) for part in ids])
    ends = np.cumsum([len(part) for part in ids])
    draft = path.with_suffix(f".{os.getpid()}")
    # A read-only or full disk costs the next run some time, and this one nothing.
    with contextlib.suppress(OSError, SafetensorError):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"ids": flat, "ends": ends}, draft)
        draft.replace(path)
        by_age = sorted(path.parent.glob("*.safetensors"), key=lambda file: file.stat().st_mtime)
        for old in by_age[:-KEPT]:
            old.unlink()
    with contextlib.suppress(OSError):
        draft.unlink(missing_ok=True)
