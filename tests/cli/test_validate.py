"""`autolr validate`: what it shows, and what it refuses with one message."""

from __future__ import annotations

import pytest

from autolr import cli
from autolr.testing import kit
from tests import tiny


def test_a_model_is_described_and_checked(model_folders, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["validate", "--model", model_folders["gpt2"], "--device", "cpu"])
    assert not end.value.code
    said = capsys.readouterr().out
    assert "2 q 32x32 (some rows of c_attn)" in said
    assert "coverage    q and v in 2 of 2 layers" in said
    # Two layers, q and v, rank 4: 2 x 2 x 4 x (32 + 32), as many parameters as on separate matrices.
    assert "rank 4      1,024 parameters" in said
    assert said.count("passed      ") == 8 and said.rstrip().endswith("all checks passed")


def test_a_model_that_is_refused_ends_with_code_2(tmp_path, capsys):
    tiny.model("cohere").save_pretrained(tmp_path)
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        cli.main(["validate", "--model", str(tmp_path)])
    assert end.value.code == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: model") and captured.err.count("\n") == 1
    assert "no sequence-classification class" in captured.err


def test_a_check_that_fails_is_named(model_folders, capsys, monkeypatch):
    def wrong(bench):
        raise ValueError("no")

    monkeypatch.setattr(kit, "check_roles", wrong)
    with pytest.raises(SystemExit) as end:
        cli.main(["validate", "--model", model_folders["bert"], "--device", "cpu"])
    captured = capsys.readouterr()
    assert end.value.code == 2
    assert "FAILED      roles: ValueError: no" in captured.out
    assert "1 of the checks failed (roles)" in captured.err
