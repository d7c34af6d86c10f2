"""The activation pattern: how much each attention head takes part in the loss (paper 2, section 3.1).

The activation of head h in layer l on a sample is sum_jk Γ_jk dL/dΓ_jk, Γ its attention probabilities. With
O = Γ V, the head's slice of what the output projection reads, this is <O, dL/dO>: a hook on each W_o sees all of it,
whatever computes the attention, and no attention matrix is stored. An elementwise gate between the two (Qwen3-Next)
changes nothing: <O ⊙ g, dL/d(O ⊙ g)> = <O, dL/dO>.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from autolr.data.batches import TokenSet, by_length
from autolr.data.tasks import Task
from autolr.errors import ModelError, RunError
from autolr.model.backbone import Backbone
from autolr.model.projections import Site
from autolr.model.sparse_logits import forward

Array = np.ndarray[Any, np.dtype[np.float64]]
Kind = Literal["absolute", "signed"]


@dataclass(frozen=True)
class Pattern:
    """Activations of all heads, sample by sample.

    Attributes:
        activations: float64 [samples, layers, heads], signed.
        losses: of each sample, [samples].
        layers: names of the output projections, one for each layer that has attention, in the order of the pass.
    """

    activations: Array
    losses: Array
    layers: tuple[str, ...]

    def of(self, kind: Kind = "absolute") -> Array:
        """Return the pattern [layers, heads].

        Args:
            kind: `absolute`: the mean of absolute values, as paper 2's code has it; `signed`: of the values
                themselves, as its formula says.
        """
        return self.each(kind).mean(0)  # type: ignore[no-any-return]

    def each(self, kind: Kind = "absolute") -> Array:
        """Return the pattern of each sample, [samples, layers, heads]."""
        return self.absolutes if kind == "absolute" else self.activations

    @cached_property
    def absolutes(self) -> Array:
        """Absolute values of the activations."""
        return np.abs(self.activations)

    def save(self, path: Path) -> None:
        """Write the pattern as a safetensors file."""
        tensors = {"activations": self.activations, "losses": self.losses}
        save_file(
            {name: np.ascontiguousarray(value) for name, value in tensors.items()},
            path,
            {"layers": " ".join(self.layers)},
        )

    @classmethod
    def load(cls, path: Path) -> Pattern:
        """Read a pattern.

        Raises:
            RunError: it is not one.
        """
        try:
            with safe_open(path, framework="np") as file:
                layers = tuple((file.metadata() or {})["layers"].split(" "))
                return cls(file.get_tensor("activations"), file.get_tensor("losses"), layers)
        except (OSError, KeyError, SafetensorError):
            raise RunError(f"{path}: is no activation pattern; autolr heads writes them") from None


def output_sites(backbone: Backbone) -> list[Site]:
    """Return W_o of each layer with a W_v.

    Raises:
        ModelError: a layer has none that AutoLR knows, so its heads cannot be told apart.
    """
    sites = [site for site in backbone.projections.sites if site.role == "o"]
    if len(sites) != backbone.projections.covered:
        raise ModelError(
            f"model {backbone.source!r}: {backbone.projections.covered} layers have a W_v, {len(sites)} an output "
            "projection that AutoLR knows, so its heads cannot be looked at"
        )
    return sites


def heads_of(backbone: Backbone) -> int:
    """Return the number of query heads of a layer."""
    return int(backbone.model.config.get_text_config().num_attention_heads)


def measure(
    backbone: Backbone,
    task: Task,
    data: TokenSet,
    model: Any = None,
    *,
    batch_size: int = 16,
    seen: Callable[[int], None] | None = None,
) -> Pattern:
    """Measure the activation pattern of a model on examples.

    Nothing is trained: one pass forward and back, in eval mode, with a loss for each sample, so that a value does not
    depend on who shares its batch.

    Args:
        backbone: says where the output projections are.
        task: gives the losses.
        data: the samples.
        model: the model itself; None: the backbone's. May be PEFT's around it.
        batch_size: samples of a pass.
        seen: is called with the number of samples done after each pass.

    Raises:
        ModelError: an output projection is not called, or not with [samples, tokens, heads * size].
    """
    model = backbone.model if model is None else model
    sites, heads = output_sites(backbone), heads_of(backbone)
    device = next(model.parameters()).device
    parts: list[Tensor] = []
    losses: list[Tensor] = []
    rows: list[int] = []
    names: list[str] = []
    with _frozen(model):
        for picked in by_length(data.lengths(), batch_size):
            batch = {key: value.to(device) for key, value in data.collate(picked).items()}
            with _watched(model, backbone, sites, heads, len(picked)) as found:
                each = task.losses(forward(model, batch).float(), batch["labels"])
                each.sum().backward()  # type: ignore[no-untyped-call]
            names = [name for name, _ in found]
            parts.append(torch.stack([value.double().cpu() for _, value in found], 1))
            losses.append(each.detach().double().cpu())
            rows += picked
            if seen:
                seen(len(rows))
    back = torch.tensor(rows).argsort()  # from the order of lengths to that of the data
    activations = torch.cat(parts)[back].numpy()
    if not np.isfinite(activations).all():
        raise ModelError(f"model {backbone.source!r}: its activations are no finite numbers; it may have diverged")
    return Pattern(activations, torch.cat(losses)[back].numpy(), tuple(names))


@contextmanager
def _watched(
    model: Any, backbone: Backbone, sites: Sequence[Site], heads: int, rows: int
) -> Iterator[list[tuple[str, Tensor]]]:
    """Yield a list that holds, after the way back, W_o's name and <O_h, dL/dO_h> [rows, heads], call by call."""
    found: list[tuple[str, Tensor]] = []
    called: list[str] = []

    def watch(name: str) -> Callable[..., tuple[Any, ...]]:
        def read(_module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
            x: Tensor = args[0]
            if x.dim() != 3 or x.shape[0] != rows or x.shape[2] % heads:
                raise ModelError(
                    f"model {backbone.source!r}: {name} reads {tuple(x.shape)}, not {rows} samples of {heads} heads"
                )
            if not x.requires_grad:  # nothing before the first W_o needs a gradient
                x = x.detach().requires_grad_()
            values, place = x.detach(), len(called)
            called.append(name)

            def multiply(grad: Tensor) -> None:
                product = (values * grad).float() if grad.dtype == torch.bfloat16 else values * grad
                found[place] = name, product.unflatten(2, (heads, -1)).sum((1, 3))  # type: ignore[no-untyped-call]

            found.append((name, torch.empty(0)))
            x.register_hook(multiply)  # type: ignore[no-untyped-call]
            return (x, *args[1:])

        return read

    prefix = "base_model.model." if hasattr(model, "peft_config") else ""
    handles = [model.get_submodule(prefix + s.module).register_forward_pre_hook(watch(s.module)) for s in sites]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
    lacking = {site.module for site in sites} - {name for name, value in found if value.numel()}
    if lacking:
        raise ModelError(
            f"model {backbone.source!r}: {sorted(lacking)[0]} takes no part in the loss, or is computed without its "
            "module, so its heads cannot be looked at"
        )


@contextmanager
def _frozen(model: Any) -> Iterator[None]:
    """Let no parameter ask for a gradient, and nothing be drawn."""
    training = [module for module in model.modules() if module.training]
    asking = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        model.eval()
        for parameter in asking:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)
        for module in training:
            module.training = True
