"""AutoLR: finds how fast W_q and W_v should learn when a transformer is fine-tuned with LoRA.

import autolr

result = autolr.search(autolr.Study(model="...", data="reviews.csv"))
print(result.recipe.evidence.verdict)
autolr.train(result.recipe, out="full-run")
"""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

# Public names and their modules, which are imported on first use, so that `import autolr` costs nothing. They are
# listed once: in the stub, where type checkers find them as well.
_STUB = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
_HOMES = {
    name.name: str(node.module) for node in _STUB.body if isinstance(node, ast.ImportFrom) for name in node.names
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'autolr' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
