"""Tokens kept between runs: texts are tokenized once for each tokenizer, data set and length.

A file holds flat arrays: all ids, all labels, and where each example ends. `Dataset.map` of `datasets` keeps the same
tokens in twice the bytes; key, notices, damaged files and the number of files would still be ours.

The cache lies in the user's cache folder (`AUTOLR_CACHE` names another one). Losing it costs time alone: a file that
is missing, damaged or cannot be written is made anew or done without.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from autolr.data import lm_labels
from autolr.data.batches import tokenize
from autolr.data.lm_labels import Learned
from autolr.data.sources import Examples
from autolr.schema.data import LANGUAGE

# The newest files are kept.
MAX_FILES = 20
# Version of how tokens are made: another number whenever the same data would give other tokens.
TOKENIZATION = 2


def tokens(examples: Examples, tokenizer: Any, max_length: int, limit: int | None = None) -> Learned:
    """Return the tokens of examples, from the cache or anew; without labels if a class or a number is learned.

    Raises:
        DataError: see `autolr.data.lm_labels.learn`.
    """
    path = folder() / f"{_key(examples, tokenizer, max_length)}.safetensors"
    kept = _read(path, len(examples))
    if kept is not None:
        return kept
    if examples.task in LANGUAGE:
        fresh = lm_labels.learn(examples, tokenizer, max_length, limit)
    else:
        fresh = Learned(tokenize(tokenizer, examples.texts, max_length, examples.pairs), [])
    # A read-only or full disk costs the next run some time, and this one nothing.
    with contextlib.suppress(OSError, SafetensorError):
        _write(path, fresh)
    return fresh


def folder() -> Path:
    """Return where tokens are kept."""
    named = os.environ.get("AUTOLR_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "autolr"


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Return a sha256 over what a tokenizer makes tokens with: vocabulary, rules, special tokens, chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_truncation()  # set by the last call, and again by the next
        backend.no_padding()
    return _sha256(
        type(tokenizer).__name__,
        backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items())),
        repr(tokenizer.special_tokens_map),
        str(getattr(tokenizer, "truncation_side", None)),
        str(getattr(tokenizer, "chat_template", None)),
        str(tokenizer("a")["input_ids"]),  # the begin token is not always part of the backend
    )


def _key(examples: Examples, tokenizer: Any, max_length: int) -> str:
    return _sha256(
        str(TOKENIZATION),
        *(importlib.metadata.version(name) for name in ("tokenizers", "transformers")),
        tokenizer_fingerprint(tokenizer),
        str(max_length),
        examples.fingerprint,
        examples.task,
        str(examples.pairs is not None),  # the same characters may be a text or a pair
    )[:32]


def _sha256(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def _read(path: Path, count: int) -> Learned | None:
    """Return what a file holds of so many examples; None if there is none, or it is damaged."""
    try:
        kept = load_file(path)
        ends, notices = kept.pop("ends"), json.loads(bytes(kept.pop("notices")))
        if len(ends) != count or any(ends[-1] != len(flat) for flat in kept.values()):
            return None
        lists = {name: [part.tolist() for part in np.split(flat, ends[:-1])] for name, flat in kept.items()}
        os.utime(path)
        return Learned(lists["ids"], lists.get("labels", []), tuple(notices))
    except (OSError, SafetensorError, KeyError, IndexError, ValueError):
        return None


def _write(path: Path, learned: Learned) -> None:
    """Write a file whole or not at all, and remove the oldest of too many."""
    lists = {"ids": learned.ids, **({"labels": learned.labels} if learned.labels else {})}
    arrays = {name: np.concatenate([np.asarray(part, np.int32) for part in parts]) for name, parts in lists.items()}
    arrays["ends"] = np.cumsum([len(ids) for ids in learned.ids])
    arrays["notices"] = np.frombuffer(json.dumps(learned.notices).encode(), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}")
    try:
        save_file(arrays, draft)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    by_age = sorted(path.parent.glob("*.safetensors"), key=lambda file: file.stat().st_mtime)
    for old in by_age[:-MAX_FILES]:
        old.unlink()
