"""The private names of torch that the simulated GPU needs. No other file of this package uses one.

Torch may change or drop a private name without notice. `check` therefore looks at each of them when a GPU is opened,
and says which one is at fault, what it was for, and with which torch it worked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from operator import attrgetter
from typing import Any
from unittest import mock

import torch
import torch.utils.checkpoint

WORKED_WITH = "2.13.0"
# Each name, and what it is for.
NAMES = {
    "Tensor._make_wrapper_subclass": "tensors that say cuda and keep their numbers in a CPU tensor",
    "_C._disabled_torch_function_impl": "calls on such a tensor reach torch as calls on any other do",
    "_C.DisableTorchFunction": "the CPU's own computations are not taken for the GPU's",
    "_C._nn._parse_to": "the arguments of Tensor.to",
    "utils.checkpoint._checkpoint_without_reentrant_generator": "checkpointed layers, computed again on the way back",
    "_C._group_tensors_by_device_and_dtype": "optimizers and clipping, which work on all tensors of a device at once",
    "ops.aten.add_.Tensor._schema": "the name of an operation, and which of its arguments it writes to",
}
# torch has this one only in builds for CUDA, where AutoLR calls it; the simulated GPU puts its own in that place.
END_ALLOCATE_TO_POOL = "_cuda_endAllocateToPool"


def _find(name: str) -> Any:
    try:
        return attrgetter(name)(torch)
    except AttributeError:
        return None  # `check` says so, when a GPU is opened


make_wrapper: Any = _find("Tensor._make_wrapper_subclass")
no_torch_function: Any = _find("_C._disabled_torch_function_impl")
parse_to: Any = _find("_C._nn._parse_to")


def quiet() -> AbstractContextManager[None]:
    """Return a context in which calls go to torch itself, past every mode."""
    made: AbstractContextManager[None] = torch._C.DisableTorchFunction()
    return made


@cache
def name_of(operation: Any) -> str:
    """Return the name of an ATen operation: `add_` of aten::add_.Tensor."""
    name: str = operation._schema.name
    return name.partition("::")[2]


def written(operation: Any, args: Iterable[Any]) -> list[Any]:
    """Return those of an ATen operation's arguments that it writes to."""
    schemas = operation._schema.arguments
    return [arg for arg, own in zip(args, schemas, strict=False) if own.alias_info and own.alias_info.is_write]


def complaint(name: str, error: object) -> RuntimeError:
    """Return the error that says that a private name does not do what it did."""
    return RuntimeError(
        f"tests/simgpu: torch {torch.__version__} has no torch.{name} that works as in {WORKED_WITH} ({error}). "
        f"It is for this: {NAMES[name]}. Change tests/simgpu/private.py, or test with torch {WORKED_WITH}."
    )


def check() -> None:
    """Look at each private name.

    Raises:
        RuntimeError: this torch lacks one, or it does something else.
    """
    for name in NAMES:
        if _find(name) is None:
            raise complaint(name, "it is missing")
    plain = torch.ones(2)
    trials: dict[str, Callable[[], bool]] = {
        "_C.DisableTorchFunction": lambda: hasattr(quiet(), "__exit__"),
        "_C._nn._parse_to": lambda: (
            parse_to(torch.device("cuda", 1), torch.half)[:2] == (torch.device("cuda", 1), torch.half)
        ),
        "_C._group_tensors_by_device_and_dtype": lambda: (
            list(torch._C._group_tensors_by_device_and_dtype([[plain]], False)) == [(plain.device, plain.dtype)]
        ),
        "ops.aten.add_.Tensor._schema": lambda: (
            name_of(torch.ops.aten.add_.Tensor) == "add_"
            and written(torch.ops.aten.add_.Tensor, (plain, 1)) == [plain]
        ),
    }
    for name, works in trials.items():
        try:
            good, why = works(), "it gives something else"
        except Exception as error:
            good, why = False, repr(error)
        if not good:
            raise complaint(name, why)


@contextmanager
def grouped_by_device() -> Iterator[None]:
    """Let optimizers and clipping group tensors by the device these say they lie on: C++ takes it for the CPU."""
    name = "_group_tensors_by_device_and_dtype"
    own = getattr(torch._C, name)

    def grouped(lists: Any, with_indices: bool = False) -> Any:
        found = own(lists, with_indices)
        return {(tensors[0][0].device, dtype): (tensors, at) for (_, dtype), (tensors, at) in found.items()}

    with mock.patch.object(torch._C, name, grouped):
        yield


@contextmanager
def recomputed_inside(mode: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
    """Let checkpointed layers be computed again inside a mode: autograd calls them without its caller's modes."""
    place, name = torch.utils.checkpoint, "_checkpoint_without_reentrant_generator"
    own = getattr(place, name)

    def generator(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        def inside(*values: Any, **named: Any) -> Any:
            with mode():
                return function(*values, **named)

        return own(inside, *args, **kwargs)

    with mock.patch.object(place, name, generator):
        yield
