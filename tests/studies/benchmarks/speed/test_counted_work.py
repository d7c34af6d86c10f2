"""Counted performance: the counter counts what a hand does, and a pack's step costs no more than is committed."""

from __future__ import annotations

import json
from collections import Counter as Multiset
from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from studies import STUDIES
from studies.benchmarks.common import shapes
from studies.benchmarks.common.document import Result, environment
from studies.benchmarks.speed import counted_work, kernel_counter

RESULTS = STUDIES / "benchmarks" / "results"
ROOT = STUDIES.parent
PAGE = ROOT / "docs" / "pages" / "gpu.md"
CPU, META = torch.device("cpu"), torch.device("meta")


@pytest.fixture(scope="module")
def committed():
    newest = max(RESULTS.glob("counted-*.json"))
    return newest, json.loads(newest.read_text(encoding="utf-8"))


# The counter, by hand


def trained(device):
    """Return the operations of a toy's training step, [4, 8] x [8, 16]."""
    x, weight = torch.ones(4, 8, device=device), torch.ones(8, 16, device=device, requires_grad=True)
    with kernel_counter.Counter(device) as counter:
        y = (x @ weight).relu()
        (y * 3).sum().backward()
        with torch.no_grad():
            weight.sub_(weight.grad)
    return counter.operations


@pytest.mark.parametrize("device", [META, CPU])
def test_a_toy_has_the_kernels_flops_and_bytes_that_a_hand_counts(device):
    phases = kernel_counter.by_phase(trained(device))
    found = {phase: [(o.name, o.kind, o.flops, o.moved) for o in own] for phase, own in phases.items()}
    x, weight, y = 4 * 4 * 8, 4 * 8 * 16, 4 * 4 * 16  # bytes
    assert found == {
        "forward": [
            ("mm", "product", 2 * 4 * 8 * 16, x + weight + y),
            ("relu", "other", 0, y + y),
            ("mul", "other", 0, y + y),
            ("sum", "other", 0, y + 4),
            ("ones_like", "other", 0, 4 + 4),
        ],
        "backward": [
            ("mul", "other", 0, 4 + y),  # the gradient of a sum is one number, expanded
            ("threshold_backward", "other", 0, y + y + y),
            ("mm", "product", 2 * 4 * 8 * 16, x + y + weight),
        ],
        "optimizer": [("sub_", "other", 0, 3 * weight)],
    }


def test_gathers_and_overwrites_move_what_they_touch():
    table, picks = torch.empty(1000, 8, device=META), torch.empty(3, dtype=torch.int64, device=META)
    with kernel_counter.Counter(META) as counter:
        rows = table[picks]
        table.zero_()
        rows.copy_(torch.empty(3, 8, device=META))
        rows.expand(2, 3, 8).sum()
        other = torch.empty(3, 8, device=META)
        torch.sqrt(rows, out=other)
        torch.div(rows, other, out=other)
        rows.addcmul_(other, other)
    row = 4 * 3 * 8
    moved = [("index", 2 * row), ("zero_", 4 * 1000 * 8), ("copy_", 2 * row), ("sum", row + 4)]
    moved += [("sqrt", 2 * row), ("div", 3 * row), ("addcmul_", 3 * row)]
    assert [(o.name, o.moved) for o in counter.operations] == moved


@pytest.mark.parametrize("device", [META, CPU])
def test_the_peak_is_that_of_the_tensors_alive_together(device):
    with kernel_counter.Counter(device, vocabulary=50) as counter:
        a = torch.zeros(100, device=device)  # 400 bytes
        b = a + 1  # 800
        del a  # 400
        c = b.view(10, 10)
        logits = torch.zeros(3, 50, device=device)  # 1000, 600 of them logits
        assert (counter.live.other, counter.live.logits) == (400, 600)
        d = torch.cat([b, b])  # 1800: the peak
        del b, d
        assert counter.live.total == 1000  # its view keeps it
        twice = logits * 2  # 1600, and the most logits
        del logits, twice, c
    assert counter.live.total == 0
    assert (counter.peak.other, counter.peak.logits, counter.logits_peak) == (1200, 600, 1200)
    counter.restart()
    assert counter.peak.total == 0 and not counter.operations


def test_what_autograd_keeps_is_alive_until_the_way_back():
    weight = torch.zeros(10, 10, device=META, requires_grad=True)
    with kernel_counter.Counter(META) as counter:
        x = torch.zeros(5, 10, device=META)  # 200 bytes
        y = (x @ weight).exp()  # 200, and 200 of the product while exp runs
        assert counter.live.total == 400
        loss = y.sum()
        del x, y
        assert counter.live.total == 404
        loss.backward()
        del loss
        assert counter.live.total == 400  # the gradient
    assert counter.peak.total >= 600


# Against torch's own counter


def tiny(**changes):
    sizes = shapes._llama(32, 64, 2, 4, 2, 100) if changes.get("learned") else shapes._encoder(32, 2, 4, 100)
    shape = shapes.Shape("toy", "llama" if changes.get("learned") else "roberta", sizes)
    case = counted_work.Case("toy", shape, 2, 8, slots=(1, 2))
    return replace(case, **changes)


@pytest.mark.parametrize("learned", [None, 1.0])
def test_flops_of_a_real_model_are_those_of_torchs_counter(learned):
    model = tiny(learned=learned).base(CPU, torch.float32).model.requires_grad_(True)
    ids = torch.arange(5, 21).view(2, 8)

    def step():
        with sdpa_kernel(SDPBackend.MATH):
            model(input_ids=ids).logits.sum().backward()

    with FlopCounterMode(display=False) as torchs:
        step()
    with kernel_counter.Counter(CPU) as own:
        step()
    assert sum(o.flops for o in own.operations) == torchs.get_total_flops() > 0
    products = {o.name for o in own.operations if o.kind == "product"}
    assert products <= {"mm", "addmm", "bmm", "baddbmm"}


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_one_kernel_each_way_and_costs_what_torchs_counter_says(masked):
    q, k, v = (torch.empty(2, 4, 16, 8, device=META, requires_grad=True) for _ in range(3))
    mask = torch.empty(2, 1, 16, 16, dtype=torch.bool, device=META) if masked else None
    with kernel_counter.fused(), FlopCounterMode(display=False) as torchs, kernel_counter.Counter(META) as own:
        torch.nn.functional.scaled_dot_product_attention(q, k, v, mask, is_causal=not masked).sum().backward()
    attention = [o for o in own.operations if o.kind == "attention"]
    assert [o.backward for o in attention] == [False, True]
    product = 2 * 2 * 4 * 16 * 16 * 8  # scores, or values: [2 * 4] x [16, 8] x [8, 16]
    assert [o.flops for o in attention] == [2 * product, 5 * product]  # the scores are computed again
    assert torchs.get_total_flops() == 7 * product


# Packs


def names(operations):
    """Return how often each operation runs; fused attention has other names on a CPU, where masks cost two more."""
    found = Multiset("attention" if o.kind == "attention" else o.name for o in operations)
    return found - Multiset(scalar_tensor=found["scalar_tensor"])


def differences(case):
    """Return what each phase has more and fewer of on the meta device than on a CPU."""
    # Ids, mask and labels go to the device, and a language model's places, which are found on the host. A CPU is the
    # host, and it pads the learned tokens to four.
    if not case.vocabulary:
        return {"forward": (Multiset(_to_copy=3), Multiset()), "backward": (Multiset(), Multiset())}
    found = Multiset(ne=1, nonzero=1, constant_pad_nd=2)
    return {"forward": (Multiset(_to_copy=4), found), "backward": (Multiset(), Multiset(constant_pad_nd=1))}


@pytest.mark.parametrize(
    "changes",
    [
        {"length": None, "steps": 2},
        {"learned": 1.0},
        {"learned": 0.5},
        {"learned": 0.5, "gradient_checkpointing": True},
    ],
    ids=["natural", "all", "half", "checkpointed"],
)
def test_a_pack_without_numbers_counts_as_one_with_numbers(changes):
    case = tiny(**changes)
    meta = counted_work.count(case, 2, case.base(META, torch.float32))
    cpu = counted_work.count(case, 2, case.base(CPU, torch.float32))
    assert (meta.tokens, meta.padded, meta.learned, meta.weights) == (
        cpu.tokens,
        cpu.padded,
        cpu.learned,
        cpu.weights,
    )
    for ours, theirs in zip(meta.operations, cpu.operations, strict=True):
        ours, theirs = kernel_counter.by_phase(ours), kernel_counter.by_phase(theirs)
        for phase, (more, fewer) in differences(case).items():
            assert names(ours[phase]) + fewer == names(theirs[phase]) + more
            of_products = [[o for o in own[phase] if o.kind == "product"] for own in (ours, theirs)]
            assert kernel_counter.tally(of_products[0]) == kernel_counter.tally(of_products[1])
            adapters = [names(o for o in own[phase] if o.owner == "pack") for own in (ours, theirs)]
            assert adapters[0] == adapters[1] + more


def test_what_is_not_the_packs_is_the_stock_models():
    case = tiny(learned=1.0)
    step = kernel_counter.by_phase(counted_work.count(case, 2).operations[0])
    model, ids = case.base().model, torch.zeros(4, 8, dtype=torch.int64, device=META)
    mask = torch.ones_like(ids)
    given = kernel_counter.Given()
    given.whole = True
    with given, kernel_counter.fused(), kernel_counter.Counter(META) as alone:
        model(input_ids=ids, attention_mask=mask)
    of_model = Multiset(o.name for o in alone.operations if o.owner == "model")
    assert of_model and Multiset(o.name for o in step["forward"] if o.owner == "model") == of_model
    adapters = Multiset(o.name for o in step["forward"] if o.owner == "pack")
    sites = 2 * 2  # W_q and W_v of two layers
    assert adapters["bmm"] == 2 * sites
    back = Multiset(o.name for o in step["backward"] if o.owner == "pack")
    assert back["bmm"] == 4 * sites - 2  # the gradients of both factors; nothing before the first layer needs one


def test_peaks_grow_with_slots_by_rows_activations_and_logits():
    case = tiny(learned=1.0)
    one, two = counted_work.count(case, 1), counted_work.count(case, 2)
    assert two.weights == one.weights and two.rows == pytest.approx(2 * one.rows, rel=0.01)
    assert two.logits == 2 * one.logits > 0
    assert two.bytes_a_logit == one.bytes_a_logit > 0
    trained = 2 * (8 * (32 + 32) + 8 * (32 + 16))  # rank 8 on W_q and W_v of two layers
    assert one.rows == pytest.approx(5 * 4 * trained, rel=0.01)  # weights, average, gradient and two moments
    assert one.peak == one.weights + one.rows + one.activations + one.logits


# The script and its results


def test_the_kept_lengths_are_those_of_the_embedded_sentences():
    assert list(shapes.natural_lengths()) == shapes._sentences().lengths()


def test_the_script_leaves_its_document(tmp_path, capsys):
    counted_work.main(["--quick", "--only", "sft_1b", "--out", str(tmp_path)])
    document = json.loads(next(tmp_path.glob("counted-*.json")).read_text())
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {k: v for k, v in document.items() if k != "rows"}
    assert document["figures"]["sft_1b_b4x128_all.kernels"] > 100
    assert not any("second" in name or name.endswith("_ms") for name in document["figures"])
    one, two = document["rows"]
    groups = one["groups"]
    assert sum(groups[name]["bytes"] for name in ("products", "attention", "other")) == groups["all"]["bytes"]
    assert sum(own["kernels"] for own in one["phases"].values()) == groups["all"]["kernels"]
    assert two["groups"]["all"]["flops"] == 2 * groups["all"]["flops"]


def test_another_device_is_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        counted_work.main(["--device", "cuda:0"])
    assert stopped.value.code == 2 and "Leave the option out" in capsys.readouterr().err


def costs(row):
    """Return what must not grow, from a row of a result."""
    found = {f"{name} {unit}": own[unit] for name, own in row["groups"].items() for unit in ("kernels", "bytes")}
    found |= {f"{phase} kernels": own["kernels"] for phase, own in row["phases"].items()}
    found |= {name: row["memory"][name] for name in ("rows", "peak")}
    return found | {"bytes a logit": row["bytes_a_logit"] or 0}


def grown(now, before):
    """Return the costs that are higher than they were, in words."""
    return [f"{name}: {value} instead of {before[name]}" for name, value in now.items() if value > before[name]]


@pytest.mark.parametrize("name", ["roberta_b32_natural", "llama_1b_b4x128", "sft_1b_b4x128_all"])
def test_a_step_costs_no_more_than_is_committed(committed, name):
    path, document = committed
    current, then = environment(CPU)["versions"], document["environment"]["versions"]
    if any(current[package] != then[package] for package in ("torch", "transformers")):
        pytest.skip(f"{path.name} was counted with other versions of torch and transformers")
    case = next(case for case in counted_work.CASES if case.name == name)
    result = Result("counted")
    counted_work.measure(result, replace(case, slots=(1,), steps=1))
    now = costs(result.rows[0])
    if case.steps > 1:  # the first step's texts have a length of their own, which changes bytes, but no kernels
        now = {name: value for name, value in now.items() if name.endswith("kernels")}
    before = next(row for row in document["rows"] if (row["case"], row["slots"]) == (name, 1))
    found = grown(now, costs(before))
    command = "python -m studies.benchmarks.speed.counted_work"
    advice = f"If that is meant, run {command} and commit its result in place of {path.name}."
    assert not found, f"{name}: a step costs more ({'; '.join(found)}). {advice}"


def test_a_step_that_costs_more_would_be_noticed(committed):
    row = committed[1]["rows"][0]
    now = costs(row)
    assert not grown(now, costs(row)) and len(now) > 15
    assert all(value > 0 for name, value in now.items() if "logit" not in name)
    for name in now:
        assert [words.partition(":")[0] for words in grown(now | {name: now[name] + 1}, costs(row))] == [name]


def test_the_page_shows_the_committed_counts(committed):
    path, document = committed
    page, readme = (file.read_text(encoding="utf-8") for file in (PAGE, ROOT / "README.md"))
    assert path.name in page and path.name in readme
    assert all(table in page for table in counted_work.tables(document["rows"]).split("\n\n"))
