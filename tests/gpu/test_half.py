"""The base in bf16, as every search on a GPU has it: each family, each method."""

from __future__ import annotations

import pytest
import torch

from tests import tiny
from tests.gpu.training import apart, base_on, config, kinds_of, pack_on, result

# By this much the first losses of bf16 differ from those of float32 at most, and the scores after two steps.
ROUNDING, AFTER = 0.1, 0.25


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family_trains_by_every_method_on_a_base_in_bf16(gpu, family):
    results = {}
    for device, dtype in (("cpu", torch.float32), ("cuda", torch.bfloat16)):
        kinds = kinds_of(family)
        with pack_on(base_on(family, device, dtype), family, kinds=kinds) as pack:
            slots = [pack.admit(config(seed, 4, kind)) for seed, kind in enumerate(kinds)]
            first = pack.values(slots[0])
            for _ in range(2):
                pack.step()
            results[device] = result(pack, slots)
            changed = [name for name, value in pack.values(slots[0]).items() if not torch.equal(value, first[name])]
            assert len(changed) > len(first) // 3 and pack.rows.dtype == torch.float32
    losses = [torch.tensor([losses[0] for _, losses in found.slots]) for found in results.values()]
    assert (losses[0] - losses[1]).abs().max() < ROUNDING
    assert (results["cpu"].scores - results["cuda"].scores).abs().mean() < AFTER
    assert apart(results["cpu"], results["cuda"]) > 0  # they are two precisions
