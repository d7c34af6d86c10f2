"""What was chosen for the machine is written down, and a search that goes on keeps it."""

from __future__ import annotations

import pytest
import torch

from autolr.errors import RunError
from autolr.pack import slot_count
from autolr.rundir.folder import RunFolder
from autolr.schema.study import Study
from autolr.tuner import hardware
from autolr.tuner.run import search
from autolr.tuner.setting import choose_device, read_setting


def test_the_prediction_is_near_the_real_peak(small_study, tmp_path):
    result = search(small_study, tmp_path / "run", device="cpu")
    held = hardware._held(RunFolder(result.folder))
    assert held.slots == 4
    assert held.reason == "as asked"
    assert held.peak_bytes > 100 * 2**20
    assert "4 slots (as asked)" in held.describe()


def test_slots_are_chosen_once(small_study, tmp_path, monkeypatch):
    study = small_study.model_copy(update={"search": small_study.search.model_copy(update={"slots": "auto"})})
    setting = read_setting(study, choose_device("cpu"))
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    first = hardware.fit(setting, folder)
    assert first.slots == slot_count.CPU_SLOTS
    monkeypatch.setattr(slot_count, "CPU_SLOTS", 5)
    assert hardware.fit(setting, folder) == first
    assert hardware.fit(setting).slots == 5


def test_a_device_too_small_for_one_slot_is_named(small_study, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(slot_count, "measure", full)
    with pytest.raises(RunError, match="lower data.max_length or the rank"):
        hardware.fit(read_setting(small_study, choose_device("cpu")))


def test_slots_do_not_make_another_study(small_study):
    other = Study.model_validate(
        {**small_study.model_dump(), "search": {**small_study.search.model_dump(), "slots": 2}}
    )
    assert other.identity() == small_study.identity()
