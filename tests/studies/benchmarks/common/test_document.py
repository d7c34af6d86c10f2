"""The document that each benchmark leaves."""

from __future__ import annotations

import json
import platform

import pytest
import torch

from studies.benchmarks.common import document

CPU = torch.device("cpu")


def measured():
    result = document.Result("toy", settings={"batch_size": 4})
    result.figure("packing", 1.23456)
    result.figure("not_measured", None)
    result.figure("no_number", float("nan"))
    result.row("rate", contender="pack 1", rates=[1.0, 2.0])
    return result


def test_a_result_is_written_and_its_last_line_is_the_document_without_rows(tmp_path, capsys):
    path = document.deliver(measured(), CPU, keep=False, out=tmp_path)
    written = json.loads(path.read_text())
    assert set(written) == {"name", "figures", "settings", "environment", "rows"}
    assert written["figures"] == {"packing": 1.235}
    assert written["rows"] == [{"kind": "rate", "contender": "pack 1", "rates": [1.0, 2.0]}]
    assert {"versions", "commit", "dirty", "processor", "device"} <= set(written["environment"])
    assert path.name.startswith("toy-") and path.name.endswith(f"-{document.machine(CPU)}.json")
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last == {key: value for key, value in written.items() if key != "rows"}


def test_a_quick_result_is_not_kept():
    path = document.deliver(measured(), CPU, keep=False)
    assert document.RESULTS not in path.parents


def test_a_result_says_what_the_machine_is_and_not_whose():
    name = document.machine(CPU)
    assert name.startswith(f"cpu{document.cores()}-")
    text = json.dumps(measured().document(CPU))
    assert str(document.ROOT) not in text
    assert f'"{platform.node()}"' not in text and platform.node() != name


@pytest.mark.parametrize(
    ("processor", "name"),
    [
        ("AMD EPYC 9V74 80-Core Processor", "epyc"),
        ("Intel(R) Xeon(R) Platinum 8480+", "xeon"),
        ("", "unknown"),
    ],
)
def test_machines_are_named_after_their_processor(monkeypatch, processor, name):
    monkeypatch.setattr(document, "processor", lambda: processor)
    monkeypatch.setattr(document, "cores", lambda: 2)
    assert document.machine(CPU) == f"cpu2-{name}"


def test_a_result_with_a_path_of_this_machine_is_refused():
    result = measured()
    result.settings["work"] = str(document.ROOT / "runs")
    with pytest.raises(ValueError, match="path"):
        result.document(CPU)


def test_contenders_take_turns_and_are_compared_by_their_medians():
    order: list[tuple[str, int]] = []

    def contender(name, values):
        return lambda number: order.append((name, number)) or values[number]

    found = document.alternate({"a": contender("a", [1, 9, 2]), "b": contender("b", [4, 4, 4])}, 3)
    assert order == [("a", 0), ("b", 0), ("b", 1), ("a", 1), ("a", 2), ("b", 2)]
    assert found == {"a": [1, 9, 2], "b": [4, 4, 4]}
    assert document.ratio(found, "a", "b") == 0.5
    assert document.ratio(found, "a", "c") is None
