"""Arithmetic of the frozen base: bf16 where the device is fast at it.

On a CPU only the products with frozen weights are rounded; activations, adapters, head and all
sums between the products stay in float32, since attention in bf16 is slow there. On a GPU the
base is held in bf16, and its activations are bf16 as well. What is trained is always float32.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from autolr.errors import ModelError
from autolr.schema.training import Precision

QUANTIZED = ("int8", "nf4")
# What torch calls the instructions that multiply bf16 numbers.
BF16_INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "bf16")


def choose(wanted: Precision, device: torch.device) -> Precision:
    """Turn `auto` into the precision that is fast on the device."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return "bf16" if any(capabilities.get(name) for name in BF16_INSTRUCTIONS) else "fp32"


def quantization(wanted: Precision, held: Any, source: str, device: torch.device) -> Any:
    """Return how transformers keeps a frozen base in few bits; None where it does not, or as its checkpoint says.

    Args:
        wanted: the study's precision.
        device: where the base goes. Products of 4-bit weights are computed in bf16 if it is a GPU that is fast at it.
        held: `quantization_config` of the checkpoint; None: it holds plain numbers.
        source: what the user calls the model.

    Raises:
        ModelError: bitsandbytes is needed and not installed, or the checkpoint is quantized otherwise.
    """
    method = held if held is None or isinstance(held, dict) else held.to_dict()
    kind = str((method or {}).get("quant_method", "")).removesuffix("_4bit").removesuffix("_8bit")
    if method is not None and kind != "bitsandbytes":
        raise ModelError(
            f"model {source!r}: its checkpoint is quantized with {kind or 'an unnamed method'}, which "
            "AutoLR does not train on; take the model's plain weights, and training.precision=nf4 for 4 bits"
        )
    if method is None and wanted not in QUANTIZED:
        return None
    if importlib.util.find_spec("bitsandbytes") is None:
        what = "its checkpoint is quantized" if method is not None else f"training.precision {wanted}"
        raise ModelError(f"model {source!r}: {what}: this needs bitsandbytes; pip install bitsandbytes")
    if method is not None:
        return None
    from transformers import BitsAndBytesConfig

    # What becomes the head, under the names families give it, is trained and stays as it is.
    heads = ["classifier", "pre_classifier", "score", "pooler", "head"]
    if wanted == "int8":
        settings: dict[str, Any] = {"load_in_8bit": True}
    else:
        settings = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": activations(device)}
    return BitsAndBytesConfig(**settings, llm_int8_skip_modules=heads)  # type: ignore[no-untyped-call]


def spare_packing(model: nn.Module) -> None:
    """Keep bitsandbytes from packing 4-bit weights for inference on a CPU, from which there is no way back."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def whole(device: torch.device) -> bool:
    """Return True if bf16 means the whole base on this device, and not only its products."""
    return device.type == "cuda"


def halve(model: nn.Module) -> None:
    """Round the parameters of a model to bf16, as transformers does when it loads one.

    Buffers stay as they are: frequencies of rotary embeddings in bf16 would turn a token at place 2,000 by up to two
    radians too far.
    """
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(torch.bfloat16)


def activations(device: torch.device) -> torch.dtype:
    """Return the type in which a base of few bits computes: bf16 on a GPU that is fast at it, else float32."""
    return torch.bfloat16 if whole(device) and choose("auto", device) == "bf16" else torch.float32


class _Product(torch.autograd.Function):
    """x W^T with both rounded to bf16, sums in float32, back in the type of x; W gets no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return nn.functional.linear(x.to(weight.dtype), weight).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (weight,) = ctx.saved_tensors
        return (grads[0].to(weight.dtype) @ weight).to(grads[0].dtype), None


class _Rounded:
    """The forward pass of a frozen linear module, its weight rounded to bf16 once."""

    def __init__(self, module: nn.Linear | Conv1D) -> None:
        weight = module.weight.detach()  # [d_out, d_in]; Conv1D keeps it the other way round
        self.weight = (weight if isinstance(module, nn.Linear) else weight.T).to(torch.bfloat16).contiguous()
        self.bias = module.bias

    def __call__(self, x: Tensor) -> Tensor:
        product: Tensor = _Product.apply(x, self.weight)  # type: ignore[no-untyped-call]
        return product if self.bias is None else product.add_(self.bias)


def round_products(model: nn.Module, trained: tuple[str, ...]) -> None:
    """Let the linear modules of a frozen model multiply in bf16, except those that are trained.

    Args:
        model: frozen, float32, on a CPU.
        trained: full names of modules that hold trained parameters.
    """
    for name, module in model.named_modules():
        spared = any(name == owner or name.startswith(f"{owner}.") for owner in trained)
        if type(module) in (nn.Linear, Conv1D) and not spared:
            module.forward = _Rounded(module)


@contextmanager
def exact(model: nn.Module) -> Iterator[None]:
    """Multiply in the weights' own precision while the context is open."""
    rounded = {module: module.__dict__["forward"] for module in model.modules() if _is_rounded(module)}
    for module in rounded:
        del module.__dict__["forward"]
    try:
        yield
    finally:
        for module, forward in rounded.items():
            module.__dict__["forward"] = forward


def _is_rounded(module: nn.Module) -> bool:
    return isinstance(module.__dict__.get("forward"), _Rounded)
