"""What a run has taken is on disk, once, also over several sittings."""

from __future__ import annotations

import pyarrow.parquet as pq
import pytest
import torch

from autolr.progress import resources
from autolr.progress.resources import Recorder, Training, usage

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
    assert recorder.every > resources.SAMPLE_INTERVAL_S  # sampled less often from then on
    recorder.write()
    table = pq.read_table(tmp_path / "r.parquet")
    assert table.num_rows == 160 and table.schema.equals(resources.SCHEMA)
    assert not [path for path in tmp_path.iterdir() if path.name != "r.parquet"]


def test_power_is_what_the_counters_say(tmp_path, monkeypatch):
    counters = [tmp_path / f"intel-rapl:{n}" / "energy_uj" for n in (0, 1)]
    part = tmp_path / "intel-rapl:0:0" / "energy_uj"
    for counter in (*counters, part):
        counter.parent.mkdir()
        counter.write_text("1000000\n")
    monkeypatch.setattr(resources, "RAPL", tmp_path)
    recorder = Recorder(tmp_path / "r.parquet", CPU)
    now = [100.0]
    monkeypatch.setattr(resources.time, "monotonic", lambda: now[0])
    assert recorder._watts() is None
    now[0] += 2
    for counter in (*counters, part):
        counter.write_text("31000000\n")  # 30 J each; the part's are in its package's
    assert recorder._watts() == 30.0
    now[0] += 2
    counters[0].write_text("5\n")  # begun again
    assert recorder._watts() is None
    counters[0].write_text("nothing of a number")
    assert recorder._watts() is None and recorder._watts() is None
    monkeypatch.setattr(resources, "RAPL", tmp_path / "none")
    assert Recorder(tmp_path / "r.parquet", CPU)._watts() is None


def test_a_file_from_before_power_was_recorded_goes_on(tmp_path):
    path = tmp_path / "r.parquet"
    recorder = Recorder(path, CPU)
    recorder.phase("search")
    recorder.sample([])
    recorder.write()
    pq.write_table(pq.read_table(path).drop_columns("watts"), path)
    again = Recorder(path, CPU)
    again.sample([])
    again.write()
    assert pq.read_table(path).num_rows == 2 and pq.read_table(path).schema.equals(resources.SCHEMA)
