"""A GPU that is not the first: everything is measured, recorded and trained there, and the first is left alone."""

from __future__ import annotations

import os

import pytest
import torch

from autolr.finetune.distributed import Processes
from autolr.model import placement
from autolr.pack import slot_count
from autolr.tuner.setting import choose_device
from autolr.tuner.workers import local
from autolr.tuner.workers.local import LocalPool, Order
from tests.gpu.training import apart, base_on, config, pack_on, trained


def measured(device: str, most: int = 2) -> slot_count.Capacity:
    """Measure a pack of a language model, whose passes are not recorded."""
    base = base_on("llama/lm", device, torch.bfloat16)

    def make(count, passes=None, graphs=False):
        return pack_on(base, "llama/lm", graphs=graphs, capacity=count, together=count)

    return slot_count.measure(make, config(0, 8), most)


@pytest.mark.parametrize("graphs", [False, True], ids=["eager", "recorded"])
def test_a_pack_on_the_second_gpu_takes_the_same_steps(make_gpu, graphs):
    expected = trained("bert", "cpu", ("lora", "dora"), steps=8)
    gpu = make_gpu(devices=2)
    choose_device("cuda:1")
    found = trained("bert", "cuda:1", ("lora", "dora"), steps=8, graphs=graphs)
    assert apart(expected, found) < 1e-12
    assert gpu.current == 1 and set(gpu.asked) == {1} and (gpu.replayed > 0) == graphs


@pytest.mark.parametrize("chosen", ["cuda:0", "cuda:1"])
def test_recordings_follow_their_tensors_whichever_gpu_is_current(make_gpu, chosen):
    # torch's own stream for recordings stays on the GPU of the first recording: the second needs a stream of its own.
    expected = trained("bert", "cpu", steps=6)
    gpu = make_gpu(devices=2)
    torch.cuda.set_device(chosen)
    for device in ("cuda:0", "cuda:1"):
        gpu.forget()
        assert apart(expected, trained("bert", device, steps=6, graphs=True)) < 1e-12
        assert gpu.replayed and gpu.current == int(chosen[-1])


def test_capacity_is_that_of_the_gpu_that_is_asked_about(make_gpu):
    first = make_gpu(devices=2, limit=2**24)
    alone = measured("cuda:0")
    assert set(first.asked) == {0}
    gpu = make_gpu(devices=2, limit=2**24)
    choose_device("cuda:1")
    other = measured("cuda:1")
    assert set(gpu.asked) == {1} and gpu.current == 1
    assert other.peak_bytes == alone.peak_bytes > 0 and other.slot_bytes == alone.slot_bytes > 0
    assert other.free_bytes == alone.free_bytes


def test_little_memory_on_the_second_gpu_means_few_slots(make_gpu):
    gpu = make_gpu(devices=2)
    choose_device("cuda:1")
    one = measured("cuda:1", 1)
    gpu.memories[1].limit = int(
        (gpu.used(1) + 1.3 * one.peak_bytes) / slot_count.USABLE_SHARE
    )  # the first one has room
    few = measured("cuda:1", 4)
    assert few.slots == 1 and "memory" in few.reason


def test_a_base_that_fits_one_gpu_asks_no_other(make_gpu):
    gpu = make_gpu(devices=4, limit=2**30)
    placed = placement.place(10**8, "auto", torch.device("cuda", 2), "m")
    assert set(gpu.asked) == {2} and placed.split is None
    choose_device("cuda:3")
    gpu.asked.clear()
    assert placement.place(10**8, "auto", torch.device("cuda"), "m").split is None
    assert set(gpu.asked) == {3}
    torch.ones(2**20, device="cuda:1")
    split = placement.place(10**9, "bf16", torch.device("cuda", 2), "m").split
    assert set(gpu.asked) == set(split) == {0, 1, 2, 3}


def test_what_torch_keeps_of_a_search_counts_as_free(make_gpu, monkeypatch):
    gpu = make_gpu(limit=2**24)
    held = torch.empty(12 * 2**20, dtype=torch.uint8, device="cuda")
    del held
    assert torch.cuda.mem_get_info()[0] == gpu.limit - 12 * 2**20
    monkeypatch.setattr(placement.importlib.util, "find_spec", lambda name: object())  # bitsandbytes is installed
    placed = placement.place(6 * 2**20, "auto", torch.device("cuda"), "m")
    assert placed.precision == "auto" and placed.reason.startswith("on one device")


@pytest.mark.parametrize("seen", ["", "4,GPU-7f,6"], ids=["all", "some"])
def test_each_worker_sees_its_own_gpu_alone(make_gpu, monkeypatch, tmp_path, seen):
    make_gpu(devices=3)
    started: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
    monkeypatch.setattr(local.subprocess, "Popen", lambda command, env, **_: started.append((command, env)))
    (tmp_path / "workers").mkdir()
    fleet = LocalPool(Order(tmp_path, local.devices(3, None)))
    for place in range(fleet.size):
        fleet.start(place)
    assert [env["CUDA_VISIBLE_DEVICES"] for _, env in started] == (seen.split(",") if seen else ["0", "1", "2"])
    assert all(command[command.index("--device") + 1] == "cuda:0" for command, _ in started)


@pytest.mark.parametrize("own", [None, "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_a_gpus_memory_may_grow_in_place_unless_the_user_has_said_how(gpu, monkeypatch, own):
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.setenv(name, "")  # so that it is as before when the test ends
        monkeypatch.delenv(name)
    if own:
        monkeypatch.setenv(own, "max_split_size_mb:64")
    choose_device("cuda")
    assert os.environ.get(own or "PYTORCH_ALLOC_CONF") == (
        "max_split_size_mb:64" if own else "expandable_segments:True"
    )
    assert own is None or "expandable_segments:True" not in os.environ.values()


@pytest.mark.parametrize("device", [None, "cuda", "cuda:0"])
def test_a_launched_process_takes_its_own_gpu_and_leaves_the_others_alone(make_gpu, monkeypatch, device):
    gpu, met = make_gpu(devices=2), []
    monkeypatch.setattr("accelerate.PartialState", lambda cpu: met.append(cpu))
    assert Processes(count=2, rank=1, local=1).join(device, 8) == torch.device("cuda", 1)
    assert met == [False] and gpu.current == 1 and set(gpu.asked) == {1}
    assert Processes(count=2, rank=1, local=1).join("cpu", 8) == torch.device("cpu") and met == [False, True]
