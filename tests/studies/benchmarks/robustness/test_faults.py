"""The fault benchmark: what it makes of the traces of killed processes, and that its parts run."""

from __future__ import annotations

import json
import os
import sys

import pytest

from studies.benchmarks.robustness import faults, kills, many_workers


def test_parts_are_measured_in_sittings_and_delivered_together(tmp_path, monkeypatch, capsys):
    part = "def measure(number=0): return {'number_of_NAME': number, 'rows': [{'row': 1}]}"
    monkeypatch.setattr(faults, "ROOM", "parts")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    (tmp_path / "parts").mkdir()
    monkeypatch.setattr(faults, "PARTS", {name: ({"number": 2}, {"number": 1}) for name in ("one", "other")})
    for name in ("one", "other"):
        (tmp_path / "parts" / f"{name}.py").write_text(part.replace("NAME", name))
    for words in (["--part", "one"], []):
        monkeypatch.setattr(sys, "argv", ["faults", "--kept", str(tmp_path / "kept"), *words])
        monkeypatch.setattr(faults.document, "RESULTS", tmp_path / "results")
        faults.main()
        (tmp_path / "parts" / "one.py").unlink(missing_ok=True)  # it is not measured again
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["figures"] == {"number_of_one": 2, "number_of_other": 2}
    assert len(list((tmp_path / "results").glob("faults-*.json"))) == 1


def test_what_is_trained_twice_is_counted_from_the_traces(tmp_path):
    first = [f"{at / 10} trial-1 {at}" for at in range(1, 51)] + [f"{at / 10} trial-2 {at}" for at in range(1, 11)]
    (tmp_path / "100").write_text("\n".join(first) + "\n")
    # Another goes on with trial 1 from step 40, and with trial 2 from where it was.
    second = [f"{10 + at / 10} trial-1 {at}" for at in range(41, 61)] + ["20.0 trial-2 11"]
    (tmp_path / "101").write_text("\n".join(second) + "\n")
    found = kills._repeated(tmp_path)
    assert found["repeated_rungs"] == 10 / kills.RUNG
    assert found["repeated_share_pct"] == pytest.approx(100 * 10 / 81, abs=0.01)


def test_a_played_search_goes_through_the_database(postgres, monkeypatch, capsys):
    monkeypatch.delenv("AUTOLR_STORAGE", raising=False)
    found = many_workers.measure({3: 9})
    assert found["rows"][0]["trials"] == 9
    assert found["rows"][0]["workers"] == 3
    # Nine trials of about ten minutes on three workers.
    assert 0.2 < found["rows"][0]["hours"] < 1.5
    assert 0 < found["idle_share_pct"] < 100
