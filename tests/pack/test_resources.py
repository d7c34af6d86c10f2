"""What a run has taken is on disk, once, also over several sittings."""

from __future__ import annotations

import pyarrow.parquet as pq
import pytest
import torch

from autolr.pack import resources
from autolr.pack.resources import Recorder, Training, usage

CPU = torch.device("cpu")


def test_sittings_add_up(tmp_path):
    path = tmp_path / "resources.parquet"
    for tokens in (100, 50):
        recorder = Recorder(path, CPU)
        recorder.phase("search")
        recorder._started -= 2
        recorder.sample([Training(0, "trial 0", 3, tokens // 2, 0.1)])
        recorder.note(Training(0, "trial 0", 6, tokens, 0.2, ended=True))
        recorder.write()
    found = usage(path)["search"]
    assert found.tokens == 150 and found.seconds == pytest.approx(4, abs=0.5)
    assert found.peak_bytes > 1e6 and 0 <= found.utilisation <= 1
    assert usage(tmp_path / "none") == {}


def test_the_file_stays_small_and_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(resources, "MOST_ROWS", 50)
    recorder = Recorder(tmp_path / "r.parquet", CPU)
    recorder.phase("search")
    for step in range(40):
        recorder.sample([Training(slot, f"trial {slot}", step, step, 0.0) for slot in range(3)])
    assert recorder.every > resources.EVERY  # sampled less often from then on
    recorder.write()
    table = pq.read_table(tmp_path / "r.parquet")
    assert table.num_rows == 160 and table.schema.equals(resources.SCHEMA)
    assert not [path for path in tmp_path.iterdir() if path.name != "r.parquet"]
