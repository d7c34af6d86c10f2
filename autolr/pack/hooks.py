"""Hooks on the base model: they give each slot's own rows its adapters or matrices, and put its own head on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from autolr.errors import ModelError
from autolr.model.adapters import frozen
from autolr.model.backbone import Backbone
from autolr.model.fused_peft import stack
from autolr.model.projections import Site, by_module
from autolr.schema.space import MethodKind, Role


@dataclass(frozen=True)
class Part:
    """Neighbours in a pass of one method, whose adapters or matrices are multiplied together.

    Attributes:
        slots: their places in the pass.
        kind: their method.
        bound: their tensors, [slots, ...], by name; no larger than the largest of their ranks.
        scale: of each slot's adapters, [slots, 1, 1].
    """

    slots: slice
    kind: MethodKind
    bound: dict[str, Tensor]
    scale: Tensor


class Pass:
    """What the hooks read in a forward pass.

    Attributes:
        parts: slots of one method and of like ranks.
        head: tensors of the head, [slots, ...], by name.
        used: roles that any of its slots trains.
        batch: rows of its input.
        twins: copies of the head's modules, whose tensors are replaced.
    """

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.head: dict[str, Tensor] = {}
        self.used: set[Role] = set()
        self.batch = 0
        self.twins: dict[str, nn.Module] = {}


class PassOfThread(Pass, threading.local):
    """A pass of the thread that reads it: those of a CPU run side by side, each with its way back in its thread."""


class Hooks:
    """What a pack puts on the modules of its base, until `close`.

    Args:
        backbone: the frozen base.
        sites: that any slot may train.
        kinds: the methods any slot may have.
        dtype: of what the slots train.

    Attributes:
        now: the pass that is under way, on a CPU this thread's.
        first: for each method the tensors that start from the base: matrices, or DoRA's lengths of their rows.
    """

    def __init__(
        self, backbone: Backbone, sites: Sequence[Site], kinds: Sequence[MethodKind], dtype: torch.dtype
    ) -> None:
        self.backbone = backbone
        self.dtype = dtype
        on_cpu = next(backbone.model.parameters()).device.type == "cpu"
        # Of a GPU torch's own threads go back, and compute checkpointed layers once more.
        self.now = PassOfThread() if on_cpu else Pass()
        needed = {"dora", "full"} & set(kinds)
        self._frozen = {site.name: frozen(backbone, site) for site in sites} if needed else {}
        self.first: dict[MethodKind, dict[str, Tensor]] = {kind: {} for kind in kinds}
        for name, weight in self._frozen.items():
            if "dora" in kinds:
                lengths = torch.linalg.vector_norm(weight.to(dtype), dim=1)
                self.first["dora"][f"{name}.lora_magnitude_vector"] = lengths
            if "full" in kinds:
                self.first["full"][f"{name}.weight"] = weight
        modules = dict(backbone.model.named_modules())
        self._rows = {
            site: torch.tensor(site.rows.index(), device=modules[site.module].weight.device)
            for site in sites
            if site.rows
        }
        self._handles = self._attach(sites)

    def close(self) -> None:
        """Take the hooks off the base model."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _attach(self, sites: Sequence[Site]) -> list[Any]:
        modules = dict(self.backbone.model.named_modules())
        handles = []
        for name, group in by_module(sites).items():
            handles.append(modules[name].register_forward_hook(self._adapter(group)))
        owners = dict.fromkeys(name.rpartition(".")[0] for name in self.backbone.head_parameters())
        for owner in owners:
            handles.append(Replaced(modules[owner], self._head(owner, modules[owner])))
        return handles

    def _adapter(self, sites: tuple[Site, ...]) -> Callable[..., Tensor | None]:

        def add(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            now = self.now
            used = [site for site in sites if site.role in now.used]
            if not used:
                return None
            slots = now.parts[-1].slots.stop
            if slots > 1 and args[0].shape[0] % now.batch:
                raise ModelError(
                    f"model {self.backbone.source!r}: {sites[0].module} reads {args[0].shape[0]} rows where "
                    f"the batch has {now.batch}, so slots cannot share a pass; set together=1"
                )
            if len(now.parts) == 1:
                return self._adapted(module, used, now.parts[0], args[0], output)
            each = args[0].shape[0] // slots
            rows = [slice(part.slots.start * each, part.slots.stop * each) for part in now.parts]
            return torch.cat(
                [self._adapted(module, used, p, args[0][r], output[r]) for p, r in zip(now.parts, rows, strict=True)]
            )

        return add

    def _adapted(self, module: nn.Module, sites: list[Site], part: Part, x: Tensor, output: Tensor) -> Tensor:
        """Return the output of a module with the adapters of a part's slots, all of whose rows `x` holds."""
        if part.kind == "full":
            return self._whole(module, sites, part, x, output)
        if sites[0].rows:
            a, b = stack(sites, part.bound)
        else:
            a, b = part.bound[f"{sites[0].name}.lora_A"], part.bound[f"{sites[0].name}.lora_B"]
        # [slots, rank, d_in] and [slots, d_out, rank], rounded to the activations' type as autocast does
        # and on their device, which is another than the slots' where the base is split over several
        a, b, x = a.to(output), b.to(output), x.to(output.device)
        x = x.reshape(a.shape[0], -1, a.shape[2])  # [slots, batch * tokens, d_in]
        low = torch.bmm(x, a.transpose(1, 2)) * part.scale.to(output)
        term = torch.bmm(low, b.transpose(1, 2)).view(output.shape)
        return output + term if part.kind != "dora" else self._dora(module, sites[0], part, output, term)

    def _whole(self, module: nn.Module, sites: list[Site], part: Part, x: Tensor, output: Tensor) -> Tensor:
        """Return the output with the rows that the slots' own matrices make."""
        bias = getattr(module, "bias", None)
        for site in sites:
            weight = part.bound[f"{site.name}.weight"].to(output)  # [slots, d_out, d_in]
            made = torch.bmm(
                x.to(output.device).reshape(weight.shape[0], -1, weight.shape[2]), weight.transpose(1, 2)
            )
            made = made.view(*output.shape[:-1], site.d_out)
            rows = self._rows.get(site)
            if bias is not None:
                made = made + (bias if rows is None else bias[rows])
            output = made if rows is None else output.index_copy(-1, rows, made)
        return output

    def _dora(self, module: nn.Module, site: Site, part: Part, output: Tensor, term: Tensor) -> Tensor:
        """Give the rows of W + s B A their learned lengths (Liu et al., "DoRA", 2024, equation 5, as PEFT has it)."""
        a, b = (part.bound[f"{site.name}.lora_{side}"].to(output.device) for side in "AB")
        name = f"{site.name}.lora_magnitude_vector"
        with torch.no_grad():  # the lengths of W + s B A count as constants
            weight, own = self._frozen[site.name], self.first["dora"][name].to(b)
            scale = part.scale[:, 0].to(b.device)
            wa = torch.matmul(weight, a.transpose(1, 2).to(weight.dtype)).to(b.dtype)  # [slots, d_out, rank]
            of_b = torch.bmm(b, torch.bmm(a, a.transpose(1, 2)))
            squares = own.square() + 2 * scale * (wa * b).sum(2) + scale**2 * (of_b * b).sum(2)
            lengths = squares.clamp_min(0.0).sqrt()
        factor = part.bound[name].to(b.device) / lengths  # [slots, d_out]
        factor = factor.repeat_interleave(output.shape[0] // factor.shape[0], 0).to(output.dtype)
        factor = factor.view(output.shape[0], *[1] * (output.dim() - 2), -1)
        bias = getattr(module, "bias", None)
        grown: Tensor = factor * (output + term) if bias is None else factor * (output - bias + term) + bias
        return grown

    def _head(self, owner: str, module: nn.Module) -> Callable[[Tensor], Tensor]:
        """Return a forward pass that gives each slot's rows to the slot's own copy of a module of the head."""
        names = [name for name, _ in module.named_parameters(recurse=False)]
        original, device = deepcopy(module), next(module.parameters()).device

        def forward(given: Tensor) -> Tensor:
            own = {name: self.now.head[f"{owner}.{name}"].to(device) for name in names}
            slots = next(iter(own.values())).shape[0]
            x = given.reshape(slots, -1, *given.shape[1:]).to(device, self.dtype)
            if isinstance(module, nn.Linear):
                flat = x.reshape(slots, -1, module.in_features)
                out = torch.bmm(flat, own["weight"].transpose(1, 2))
                if "bias" in own:
                    out = out + own["bias"].unsqueeze(1)
                return out.view(*given.shape[:-1], module.out_features)
            if owner not in self.now.twins:
                self.now.twins[owner] = deepcopy(original)
            twin = self.now.twins[owner]
            parts = [functional_call(twin, {n: t[i] for n, t in own.items()}, (x[i],)) for i in range(slots)]
            return torch.cat(parts)

        return forward


class Replaced:
    """Another forward pass of a module, until `remove`.

    A hook would run behind the module's own pass. The modules of a head follow each other, and give float32 where a
    GPU's base has bf16 weights: the second one's own pass fails on what the first one's hook returns.
    """

    def __init__(self, module: nn.Module, forward: Callable[..., Tensor]) -> None:
        self.module, self.before = module, module.__dict__.get("forward")
        module.__dict__["forward"] = forward

    def remove(self) -> None:
        """Give the module its own pass back."""
        del self.module.__dict__["forward"]
        if self.before is not None:
            self.module.__dict__["forward"] = self.before
