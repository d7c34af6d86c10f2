"""Counts what torch does on a device: kernels, floating point operations, bytes moved, and the peak of live bytes.

The conventions:

- A kernel is one operation that torch dispatches and that computes or copies something. Views and allocations are
  free. A few operations launch more than one kernel on a GPU, so the count is one of dispatches.
- FLOPs are those of products and attention, by the formulas of `torch.utils.flop_counter`.
- Bytes moved are what an operation reads and writes if no cache keeps anything between operations. A gather reads as
  much as it returns.
- Live bytes are those of tensor storages. An allocator's rounding and the libraries' workspaces come on top.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

Phase = Literal["forward", "backward", "optimizer"]
Kind = Literal["product", "attention", "other"]
PHASES: tuple[Phase, ...] = ("forward", "backward", "optimizer")

# These read no more of their inputs than they return.
GATHERS = {"embedding", "index", "index_select", "gather", "nll_loss_forward"}
# These write no more of their target than they are given.
SCATTERS = {"index_put", "index_put_", "_index_put_impl_", "index_add_", "scatter_"}
# These write their target without reading it.
OVERWRITES = {"copy_", "fill_", "zero_"}
# The code that a kernel is launched by: the innermost of these packages on the stack.
PACKAGES = {"transformers": "model", "autolr.pack": "pack", "autolr": "task"}


class Operation(NamedTuple):
    """One kernel.

    Attributes:
        name: torch's, such as `mm`.
        kind: product, attention, or other: elementwise work, norms, sums, copies.
        backward: launched by the backward pass; what a checkpointed layer recomputes there belongs to it.
        owner: the code that launched it, or the forward operation it is the gradient of; see `PACKAGES`.
        logits: reads or writes a tensor whose last dimension is the vocabulary.
        flops: floating point operations.
        moved: bytes read and written.
    """

    name: str
    kind: Kind
    backward: bool
    owner: str
    logits: bool
    flops: int
    moved: int


@dataclass
class Tally:
    """Kernels, FLOPs and bytes moved, in sum."""

    kernels: float = 0
    flops: float = 0
    bytes: float = 0

    def __truediv__(self, steps: int) -> Tally:
        return Tally(*(value / steps for value in asdict(self).values()))


@dataclass
class Live:
    """Bytes of tensors that exist at the same time; `logits` are those as wide as the vocabulary."""

    logits: int = 0
    other: int = 0

    @property
    def total(self) -> int:
        """All bytes."""
        return self.logits + self.other


def tally(operations: Iterable[Operation]) -> Tally:
    """Return the sums over operations."""
    found = Tally()
    for operation in operations:
        found.kernels += 1
        found.flops += operation.flops
        found.bytes += operation.moved
    return found


def by_phase(operations: Sequence[Operation]) -> dict[Phase, list[Operation]]:
    """Return the operations of one training step by phase; the optimizer's follow the backward pass."""
    last = max((at for at, operation in enumerate(operations) if operation.backward), default=len(operations))
    found: dict[Phase, list[Operation]] = {phase: [] for phase in PHASES}
    for at, operation in enumerate(operations):
        found["backward" if operation.backward else "forward" if at < last else "optimizer"].append(operation)
    return found


class Counter(TorchDispatchMode):
    """Counts the operations of a device while it is entered.

    Args:
        device: whose tensors count.
        vocabulary: last dimension of logits; 0: none count as logits.

    Attributes:
        operations: counted so far.
        live: bytes of the tensors that were made since and still exist.
        peak: `live` at its highest since the last `restart`.
        logits_peak: the highest number of logits' bytes since then.
    """

    def __init__(self, device: torch.device, vocabulary: int = 0) -> None:
        super().__init__()
        self.device = device
        self.vocabulary = vocabulary
        self.operations: list[Operation] = []
        self.live = Live()
        self._storages: dict[int, weakref.finalize[Any, Any]] = {}
        self._owners: dict[int, str] = {}
        self.restart()

    def restart(self) -> None:
        """Forget the operations and the peak, and keep what is live."""
        self.operations.clear()
        self.peak = Live(self.live.logits, self.live.other)
        self.logits_peak = self.live.logits

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        inputs, outputs = self._tensors((args, kwargs)), self._tensors(out)
        if not inputs and not outputs:
            return out
        owner = self._owner()
        read, changed = self._arguments(func, args, kwargs)
        held = {storage(tensor) for tensor in inputs}
        made = [tensor for tensor in outputs if storage(tensor) not in held]
        for tensor in made:
            self._see(tensor)
        name = func.name().partition("::")[2].partition(".")[0]
        if changed or (made and "empty" not in name):
            formula = flop_registry.get(func.overloadpacket)
            attention = "attention" in name
            self.operations.append(
                Operation(
                    name=name,
                    kind="attention" if attention else "product" if formula else "other",
                    backward=torch._C._current_graph_task_id() != -1,
                    owner=owner,
                    logits=any(map(self._is_logits, (*inputs, *outputs))),
                    flops=int(formula(*args, **kwargs, out_val=out)) if formula else 0,
                    moved=_moved(name, read, changed, made),
                )
            )
        return out

    def _tensors(self, values: Any) -> list[Tensor]:
        """Return the tensors of the device in arguments or results, each once."""
        found = (value for value in tree_leaves(values) if isinstance(value, Tensor))
        return list({id(tensor): tensor for tensor in found if tensor.device.type == self.device.type}.values())

    def _arguments(
        self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the tensors that an operation is given to read, and those that it writes to."""
        given = {argument.name: value for argument, value in zip(func._schema.arguments, args, strict=False)} | kwargs
        about = {argument.name: argument for argument in func._schema.arguments}
        written = {name for name, own in about.items() if own.alias_info is not None and own.alias_info.is_write}
        read = self._tensors([value for name, value in given.items() if not about[name].is_out])
        return read, self._tensors([value for name, value in given.items() if name in written])

    def _is_logits(self, tensor: Tensor) -> bool:
        return bool(self.vocabulary) and tensor.dim() > 1 and tensor.shape[-1] == self.vocabulary

    def _see(self, tensor: Tensor) -> None:
        """Count the storage of a new tensor until it is freed."""
        own = tensor.untyped_storage()
        key, size, part = storage(tensor), own.nbytes(), "logits" if self._is_logits(tensor) else "other"

        def freed() -> None:
            del self._storages[key]
            setattr(self.live, part, getattr(self.live, part) - size)

        if key in self._storages:
            return
        # torch keeps one Python object of a storage for as long as the storage lives.
        self._storages[key] = weakref.finalize(own, freed)
        setattr(self.live, part, getattr(self.live, part) + size)
        if self.live.total > self.peak.total:
            self.peak = Live(self.live.logits, self.live.other)
        self.logits_peak = max(self.logits_peak, self.live.logits)

    def _owner(self) -> str:
        """Return whose kernel is launched: by the stack, or on the way back by the forward operation."""
        made = torch.autograd._get_sequence_nr()  # type: ignore[attr-defined]
        frame = sys._getframe(2)
        while frame is not None:
            module = frame.f_globals.get("__name__", "")
            if module == "torch.autograd.graph":  # the backward engine
                node = torch._C._current_autograd_node()
                return self._owners.get(node._sequence_nr(), "model") if node is not None else "model"
            for package, owner in PACKAGES.items():
                if module.startswith(package):
                    # The node of the backward pass, if there is one, was made just before this operation.
                    self._owners.setdefault(made - 1, owner)
                    return owner
            frame = frame.f_back  # type: ignore[assignment]
        return "model"


class Given(TorchFunctionMode):
    """Answers what a step asks of tensors without numbers.

    Attributes:
        whole: the answer to `bool(tensor)`, by which transformers asks whether a batch has no padding.
    """

    def __init__(self) -> None:
        super().__init__()
        self.whole = False

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return self.whole if func is Tensor.__bool__ else func(*args, **kwargs or {})


def fused() -> AbstractContextManager[Any]:
    """Let attention be one fused operation each way; on the meta device torch takes it apart."""
    return mock.patch.object(functional, "scaled_dot_product_attention", fused_attention)


def fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return attention as a GPU computes it; arguments as in torch's own function.

    Without a mask this is torch's flash kernel, with one its memory-efficient kernel.
    """
    aten = torch.ops.aten
    if attn_mask is None:  # keys and values of fewer heads than queries are the kernel's business
        found = aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, scale=scale)
        return found[0]
    if attn_mask.dtype == torch.bool:
        zero, never = (torch.tensor(number, dtype=query.dtype) for number in (0.0, -torch.inf))
        attn_mask = torch.where(attn_mask, zero, never)
    bias = attn_mask.expand(*query.shape[:3], key.shape[2])
    keep = torch.is_grad_enabled()
    found = aten._scaled_dot_product_efficient_attention(
        query, key, value, bias, keep, dropout_p, is_causal, scale=scale
    )
    return found[0]


def storage(tensor: Tensor) -> int:
    """Return what tells a tensor's storage from all others that live."""
    return id(tensor.untyped_storage())


def size(tensor: Tensor) -> int:
    """Return the bytes of a tensor's elements; those along an expanded dimension are the same."""
    count = tensor.element_size()
    for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= length if stride or not length else 1
    return count


def _moved(name: str, read: Sequence[Tensor], changed: Sequence[Tensor], made: Sequence[Tensor]) -> int:
    """Return the bytes that an operation reads and writes."""
    written = sum(map(size, (*changed, *made)))
    if name in GATHERS:
        return 2 * written
    targets = {id(tensor) for tensor in changed}
    others = sum(size(tensor) for tensor in read if id(tensor) not in targets)
    if name in SCATTERS:
        return 2 * others
    if name in OVERWRITES:
        return written + others
    if name == "nll_loss_backward":  # of its inputs it needs the shapes
        return written
    return written + sum(map(size, read))
