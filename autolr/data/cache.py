"""Tokens kept between runs: texts are tokenized once for each tokenizer, data set and length.

The cache lies in the user's cache folder (`AUTOLR_CACHE` names another one). Losing it costs
time alone: a file that is missing, damaged or cannot be written is made anew or done without.
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

from autolr.data import language
from autolr.data.batches import tokenize
from autolr.data.sources import Examples
from autolr.study import LANGUAGE

# The newest files that are kept.
KEPT = 20
# Which way of making tokens a file is of: another number whenever the same data would give other tokens.
TOKENIZATION = 2
NOTICES = "notices"


Tokens = tuple[list[list[int]], list[list[int]] | None]


def tokens(examples: Examples, tokenizer: Any, max_length: int) -> Tokens:
    """Return the token ids of all examples, each cut to `max_length`, from the cache or anew.

    Returns:
        The ids, and where texts are learned their labels; see `autolr.data.language`.

    Raises:
        DataError: see `autolr.data.language.learn`.
    """
    if examples.task in LANGUAGE:
        found = learned(examples, tokenizer, max_length)
        return found.ids, found.labels
    path = _path(examples, tokenizer, max_length)
    held = _held(path, ("ids",), len(examples))
    if held is None:
        held = {"ids": tokenize(tokenizer, examples.texts, max_length, examples.pairs)}
        _keep(path, held)
    return held["ids"], None


def learned(examples: Examples, tokenizer: Any, max_length: int, limit: int | None = None) -> language.Learned:
    """Return the tokens of texts that are learned, from the cache or anew; see `autolr.data.language.learn`.

    Raises:
        DataError: see `autolr.data.language.learn`.
    """
    path = _path(examples, tokenizer, max_length)
    held = _held(path, ("ids", "labels"), len(examples))
    if held is not None:
        return language.Learned(held["ids"], held["labels"], tuple(held[NOTICES]))
    fresh = language.learn(examples, tokenizer, max_length, limit)
    _keep(path, {"ids": fresh.ids, "labels": fresh.labels}, fresh.notices)
    return fresh


def folder() -> Path:
    """Return where tokens are kept."""
    named = os.environ.get("AUTOLR_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "autolr"


def _path(examples: Examples, tokenizer: Any, max_length: int) -> Path:
    return folder() / f"{_key(examples, tokenizer, max_length)}.safetensors"


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Return a sha256 over what a tokenizer makes tokens with: vocabulary, rules, special tokens, chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_truncation()  # set by the last call, and again by the next
        backend.no_padding()
    parts = [
        type(tokenizer).__name__,
        backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items())),
        repr(tokenizer.special_tokens_map),
        str(getattr(tokenizer, "truncation_side", None)),
        str(getattr(tokenizer, "chat_template", None)),
        str(tokenizer("a")["input_ids"]),  # the begin token is not always part of the backend
    ]
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def _key(examples: Examples, tokenizer: Any, max_length: int) -> str:
    parts = [
        str(TOKENIZATION),
        *(importlib.metadata.version(name) for name in ("tokenizers", "transformers")),
        tokenizer_fingerprint(tokenizer),
        str(max_length),
        examples.fingerprint,
        examples.task,
        str(examples.pairs is not None),  # the same characters may be a text or a pair
    ]
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _held(path: Path, names: tuple[str, ...], count: int) -> dict[str, list[Any]] | None:
    """Return what a file holds, in lists of one an example; None if there is none, or it is damaged."""
    try:
        held = load_file(path)
        ends = held["ends"]
        if len(ends) != count or any(ends[-1] != len(held[name]) for name in names):
            return None
        found = {name: [part.tolist() for part in np.split(held[name], ends[:-1])] for name in names}
        found[NOTICES] = json.loads(bytes(held[NOTICES]))
        os.utime(path)
        return found
    except (OSError, SafetensorError, KeyError, IndexError, ValueError):
        return None


def _keep(path: Path, lists: dict[str, list[list[int]]], notices: tuple[str, ...] = ()) -> None:
    flat = {name: np.concatenate([np.asarray(part, dtype=np.int32) for part in own]) for name, own in lists.items()}
    ends = np.cumsum([len(part) for part in lists["ids"]])
    told = np.frombuffer(json.dumps(notices).encode(), np.uint8)
    draft = path.with_suffix(f".{os.getpid()}")
    # A read-only or full disk costs the next run some time, and this one nothing.
    with contextlib.suppress(OSError, SafetensorError):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({**flat, "ends": ends, NOTICES: told}, draft)
        draft.replace(path)
        by_age = sorted(path.parent.glob("*.safetensors"), key=lambda file: file.stat().st_mtime)
        for old in by_age[:-KEPT]:
            old.unlink()
    with contextlib.suppress(OSError):
        draft.unlink(missing_ok=True)
