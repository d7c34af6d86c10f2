"""The numbers of a GPU, and where its backward passes run."""

# mypy: allow-untyped-calls
from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from tests import tiny
from tests.simgpu import Gpu

OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "products": lambda x, w: functional.linear(x, w) + x @ w.T + torch.einsum("bd,ed->be", x, w),
    "bmm": lambda x, w: torch.bmm(x.view(2, 2, 6), w.expand(2, 6, 6)).view(4, 6),
    "norms": lambda x, w: (
        functional.layer_norm(x, (6,), w[0], w[1]) * torch.linalg.vector_norm(x, dim=1, keepdim=True)
    ),
    "softmax": lambda x, w: (x @ w).softmax(1) + (x @ w).log_softmax(1),
    "attention": lambda x, w: functional.scaled_dot_product_attention(x[None, None], w[None, None], w[None, None])[
        0, 0
    ],
    "pointwise": lambda x, w: functional.gelu(x) * x.sigmoid() + x.square().clamp_min(0.1).sqrt() - x.tanh(),
    "places": lambda x, w: torch.cat([x[:, :3], x.flip(1)[:, 3:]], 1).index_select(
        1, torch.arange(5, -1, -1).to(x.device)
    ),
    "mask": lambda x, w: x.masked_fill(x > 0, 0.0) + torch.where(x > 0, x, x * 2),
    "in place": lambda x, w: x.clone().mul_(2).add_(w[:4]).lerp_(x, 0.3),
    "loss": lambda x, w: functional.cross_entropy(x @ w, torch.tensor([0, 1, 2, 5]).to(x.device), reduction="none"),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_numbers_and_gradients_are_the_cpus(gpu: Gpu, name: str) -> None:
    # PyTorch: an operation gives the same on every device; here it is the same kernel, so it is exactly the same.
    results = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        x, w = (torch.randn(shape, dtype=torch.float64).to(device).requires_grad_() for shape in ((4, 6), (6, 6)))
        out = OPERATIONS[name](x, w)
        out.square().sum().backward()
        grads = [leaf.grad for leaf in (x, w) if leaf.grad is not None]
        assert all(tensor.device.type == device for tensor in (out, *grads)) and grads
        results.append([tensor.detach().cpu() for tensor in (out, *grads)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_model_of_transformers_gives_what_it_gives_on_the_cpu(gpu: Gpu, family: str) -> None:
    # transformers: a model runs where its weights and its input are.
    results = []
    for device in ("cpu", "cuda"):
        model = tiny.model(family, torch.float64).requires_grad_(True).to(device)
        ids = torch.arange(5, 25).view(2, 10).to(device)
        out = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=torch.tensor([0, 2]).to(device))
        out.loss.backward()
        grads = [parameter.grad.cpu() for parameter in model.parameters() if parameter.grad is not None]
        results.append([out.loss.detach().cpu(), out.logits.detach().cpu(), *grads])
    assert len(results[0]) == len(results[1]) > 10
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_backward_runs_in_another_thread_that_does_not_see_the_callers_state(gpu: Gpu) -> None:
    # PyTorch, "Autograd mechanics", "Multithreaded Autograd": a device thread for each GPU.
    own, seen = threading.local(), []
    own.value = 1
    x = torch.ones(1, device="cuda", requires_grad=True)
    y = x * 2
    y.register_hook(lambda grad: seen.append((threading.current_thread(), hasattr(own, "value"))))
    y.backward()
    assert seen[0][0] is not threading.current_thread() and not seen[0][1]
    grads = torch.autograd.grad(x * 3, x)
    assert grads[0].item() == 3 and grads[0].is_cuda
    z = torch.ones(1, requires_grad=True)
    z.register_hook(lambda grad: seen.append((threading.current_thread(), True)))
    (z * 2).backward()
    assert seen[1][0] is threading.current_thread()  # the CPU's way back is the caller's


def test_errors_of_the_way_back_reach_the_caller(gpu: Gpu) -> None:
    # PyTorch, "Autograd mechanics": the engine raises in the thread that called it.
    x = torch.ones(1, device="cuda", requires_grad=True)

    def fail(grad: Tensor) -> None:
        raise ValueError("of a hook")

    x.register_hook(fail)
    with pytest.raises(ValueError, match="of a hook"):
        (x * 2).backward()


def test_gradients_cross_devices(make_gpu: Callable[..., Gpu]) -> None:
    # PyTorch, Tensor.to is differentiable: the gradient is on the device of its tensor.
    make_gpu(devices=2)
    host, first = torch.ones(2, requires_grad=True), torch.ones(2, device="cuda:0", requires_grad=True)
    loss = (host.to("cuda:1") * first.to("cuda:1") * 3).cpu().sum()
    loss.backward()
    assert host.grad is not None and host.grad.is_cpu and host.grad.tolist() == [3, 3]
    assert first.grad is not None and first.grad.device.index == 0 and first.grad.tolist() == [3, 3]


def test_checkpointed_layers_are_computed_again(gpu: Gpu) -> None:
    # PyTorch, torch.utils.checkpoint: the forward pass of a part is run again on the way back.
    calls = []

    def part(x: Tensor) -> Tensor:
        calls.append(threading.current_thread())
        return (x * torch.ones(2, device="cuda")).sin()

    x = torch.ones(2, device="cuda", requires_grad=True)
    checkpoint(part, x, use_reentrant=False).sum().backward()
    assert len(calls) == 2 and calls[1] is not threading.current_thread()
    torch.testing.assert_close(x.grad.cpu(), torch.ones(2).cos())  # type: ignore[union-attr]


def test_autocast_computes_products_in_half_and_norms_in_float32(gpu: Gpu) -> None:
    # PyTorch, "Automatic Mixed Precision package", "CUDA Ops that can autocast to float16 / float32".
    x, w = (torch.ones(4, 4, device="cuda") for _ in range(2))
    with torch.autocast("cuda", dtype=torch.bfloat16):
        product = functional.linear(x, w)
        assert product.dtype == (x @ w).dtype == torch.bfloat16
        assert functional.layer_norm(product, (4,)).dtype == product.softmax(0).dtype == torch.float32
        assert (product + product).dtype == torch.bfloat16
    assert functional.linear(x, w).dtype == torch.float32


def test_an_optimizer_of_torch_takes_the_cpus_steps(gpu: Gpu) -> None:
    # PyTorch, torch.optim.AdamW: the same update on every device.
    results = []
    for device in ("cpu", "cuda"):
        weight = torch.arange(4.0, dtype=torch.float64).to(device).requires_grad_()
        optimizer = torch.optim.AdamW([weight], lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            weight.square().sum().backward()
            torch.nn.utils.clip_grad_norm_([weight], 1.0)
            optimizer.step()
        results.append(weight.detach().cpu())
    assert torch.equal(*results)
