"""What a new torch that breaks the simulated GPU is told."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import torch

from tests.simgpu import Gpu, private


@pytest.mark.parametrize("name", private.NAMES)
def test_a_name_that_torch_lacks_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The promise of tests/simgpu/private.py.
    own = private._find
    monkeypatch.setattr(private, "_find", lambda asked: None if asked == name else own(asked))
    with pytest.raises(RuntimeError, match=re.escape(name)) as failure, Gpu():
        pass
    said = str(failure.value)
    assert private.NAMES[name] in said and private.WORKED_WITH in said and torch.__version__ in said
    monkeypatch.undo()
    with Gpu():  # the machine that was not opened is not in the way
        pass


def test_a_name_that_does_something_else_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    # The promise of tests/simgpu/private.py.
    monkeypatch.setattr(private, "parse_to", lambda *_: (None, None, False, None))
    with pytest.raises(RuntimeError, match=r"_parse_to.*it gives something else"), Gpu():
        pass


def test_no_other_file_uses_a_private_name_of_torch() -> None:
    # The promise of tests/simgpu/private.py; torch.__future__ and the like are public.
    found = []
    for path in Path(__file__).parent.glob("*.py"):
        if path.name == "private.py" or path.name.startswith("test_"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Attribute) or not re.match(r"_[^_]", node.attr):
                continue
            if ast.unparse(node).startswith("torch."):
                found.append(f"{path.name}:{node.lineno} {ast.unparse(node)}")
    # Where AutoLR's own call is put, and an operation.
    assert {entry.partition(" ")[2] for entry in found} == {"torch._C", "torch.ops.aten._to_copy"}, found
