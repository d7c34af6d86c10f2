"""Recorded passes: what is replayed reads and writes the tensors it was recorded with."""

from __future__ import annotations

from dataclasses import replace

import torch

from autolr.pack import slot_count
from autolr.pack.graphs import STRIDE, WARM, Graphs
from autolr.pack.pack import Pack
from tests import tiny
from tests.pack.test_packed_equals_alone import SLOTS, STEPS, assert_same, make_pack


class Tape:
    """A recording that does the work again, and insists on the addresses it was made with, as a graph would."""

    def __init__(self, pack: list[Pack], work) -> None:
        self.pack, self.work = pack[0], work
        self.places: list[int] = []

    def replay(self) -> None:
        self.work()
        now, leaves = self.pack.hooks.now, self.pack.binding.leaves(slice(0, len(self.pack.slots))).values()
        tensors = [*now.head.values(), *(part.scale for part in now.parts), self.pack.block.gradients, *leaves]
        tensors += [tensor for part in now.parts for tensor in part.bound.values()]
        places = [tensor.data_ptr() for tensor in tensors]
        self.places = self.places or places
        assert places == self.places


def trained(graphs: Graphs | None, kind: str, packs: list[Pack]):
    with make_pack("bert", torch.float64, together=3, kinds=[kind], graphs=graphs) as pack:
        packs.append(pack)
        first, second = (pack.admit(replace(slot, kind=kind)) for slot in SLOTS[:2])
        for _ in range(STEPS // 2):
            pack.step()
        pack.evict(first)  # the shapes of the passes change
        third = pack.admit(replace(SLOTS[2], kind=kind))
        for _ in range(STEPS // 2):
            pack.step()
        return [(pack.values(slot), slot.losses) for slot in (second, third)]


def test_replayed_passes_give_what_passes_give():
    for kind in ("lora", "dora"):
        packs: list[Pack] = []
        graphs = Graphs(0, lambda work, packs=packs: Tape(packs, work))
        recorded, plain = trained(graphs, kind, packs), trained(None, kind, [])
        assert graphs.shapes == 2  # before and after the eviction: the texts are all shorter than the stride
        for (values, losses), (expected, expected_losses) in zip(recorded, plain, strict=True):
            assert_same(values, expected, 1e-9)
            assert torch.allclose(torch.tensor(losses), torch.tensor(expected_losses), rtol=1e-9)


def test_a_shape_is_recorded_when_it_came_often_enough_and_padded_to_the_stride():
    made, seen = [], []
    graphs = Graphs(7, lambda work: made.append(work) or type("Now", (), {"replay": lambda self: work()})())
    for tokens in (3, 5, 9, STRIDE, STRIDE + 1):
        ids = torch.full((2, tokens), tokens)
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor([0, tokens])}
        graphs.run("key", batch, lambda got: seen.append({k: v.clone() for k, v in got.items()}))
    assert (len(made), graphs.shapes) == (1, 1)
    assert [got["input_ids"].shape[1] for got in seen] == [STRIDE] * 4 + [2 * STRIDE]
    assert seen[WARM - 1]["labels"].tolist() == [0, 9]  # the recorded one, and the one after it
    assert seen[WARM]["labels"].tolist() == [0, STRIDE]
    assert seen[0]["input_ids"][0].tolist() == [3] * 3 + [7] * (STRIDE - 3)
    assert seen[0]["attention_mask"].sum().item() == 6


def test_recording_is_chosen_where_it_pays_fits_and_works():
    def broken(on: bool) -> float:
        if on:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        return 1.0

    assert slot_count.recording(lambda on: 3.0 if on else 2.0, peak=10, limit=20) == (True, "1.50 times as fast")
    assert slot_count.recording(lambda on: 2.0, peak=10, limit=20) == (False, "1.00 times as fast")
    assert slot_count.recording(broken, peak=10, limit=20)[1].endswith("when stream is capturing")
    assert slot_count.recording(broken, peak=11, limit=20) == (False, "no memory for their activations")


def test_the_tiny_texts_are_shorter_than_the_stride():
    assert max(tiny.tokens().lengths()) <= STRIDE
