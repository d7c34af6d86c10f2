"""Tables of all kinds in all formats: read as they are, or refused; never wrong in silence, never a traceback.

    python -m studies.benchmarks.robustness.fuzz_tables [--quick]

Hypothesis draws tables: texts with every sign, labels of every type, missing cells, other columns. Each is written
as csv in several dialects, tsv, json, jsonl, parquet, arrow and a saved folder, by pandas, pyarrow, datasets and
Python's own writers, and read. Examples that are read must be those that were drawn, whatever the format. Then one
file is damaged, and must be refused: a field more or less, an open quote, a broken line, a list of labels, another
encoding, no header, a name twice, a lost end.

`right`: files that gave the examples drawn. `refused`: files that the command line refused with one message and exit
code 2. `without_remedy`: refused files whose message does not say what to do. `differences`: files that were read,
and gave other examples in silence. `tracebacks`: files that ended otherwise.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, disable_progress_bars
from hypothesis import strategies as st

from autolr import cli
from autolr.data import sources
from autolr.errors import AutoLRError
from autolr.schema.data import Data
from studies.benchmarks.common import document, tiny_model
from studies.benchmarks.robustness.drawn_cases import drawn

TABLES, QUICK = 1000, 30
ROWS = (24, 40)
SHOWN = 20
# What a message asks for.
REMEDY = re.compile(
    r"\b(give|set|save|put|write|rename|remove|mend|unpack|convert|check|choose|leave|separate|scale|needed|double)\b",
    re.I,
)
ODD = [
    '"',
    "'",
    ",",
    ";",
    "\t",
    "\n",
    "\r\n",
    "\r",
    "|",
    "\\",
    "\0",
    "\ufeff",
    "\u2028",
    "\x0b",
    "\x1c",
    "é",
    "日",
    "🙂",
    "#",
]
# Labels, and what class each is.
CLASSES: dict[str, tuple[list[Any], Callable[[Any], str]]] = {
    "integers": ([0, 1, 2], str),
    "negative": ([-1, 1, 10], str),
    "whole floats": ([0.0, 1.0, -3.0], lambda value: str(int(value))),
    "truth": ([True, False], str),
    "words": (["good", "bad", "a good one"], str),
    "words for nothing": (["NA", "null", "None", "nan"], str),
    "words with spaces": ([" good", "good", "bad "], str.strip),
    "padded": (["007", "07", "7"], str),
    "mixed": (["0", "1.0", "other", "true"], str),
    "days": (["2024-01-01", "2024-01-02"], str),
    "odd": (["é,ß", 'say "no"', "two\nlines", "semi;colon"], str),
}


@dataclass
class Table:
    """What was drawn.

    Attributes:
        columns: by name, the texts first, the labels second.
        expected: text and class of each example, or text and number.
    """

    task: str
    kind: str
    columns: dict[str, list[Any]]
    expected: list[tuple[str, Any]]
    settings: dict[str, Any] = field(default_factory=dict)


@st.composite
def tables(draw: Any) -> Table:
    """Draw a table of which some cells are missing."""
    rows = draw(st.integers(*ROWS))
    letters = st.one_of(st.sampled_from(ODD), st.characters(exclude_categories=["Cs"]), st.sampled_from("abc 019.-"))
    texts = draw(st.lists(st.lists(letters, max_size=12).map("".join), min_size=rows, max_size=rows))
    texts = [f"{text} word {row}" for row, text in enumerate(texts)]
    task = draw(st.sampled_from(["classification"] * 4 + ["regression"]))
    kind = "numbers"
    if task == "regression":
        labels: list[Any] = draw(
            st.lists(st.floats(-2, 2).map(lambda value: value + 0.0), min_size=rows, max_size=rows)
        )
        labels = [value if row % 7 else float(row % 3) for row, value in enumerate(labels)]
        named: Callable[[Any], Any] = float
    else:
        kind = draw(st.sampled_from(list(CLASSES)))
        known, named = CLASSES[kind]
        order = draw(st.lists(st.sampled_from(known), min_size=rows, max_size=rows))
        labels = [*known, *order][:rows]  # each class is there
    missing = draw(st.sampled_from([None, None, "label", "text"]))
    lost = draw(st.integers(len(labels) // 2, rows - 1))
    if missing == "label":
        labels[lost] = None
    elif missing == "text":
        texts[lost] = ""
    expected = [(text, named(label)) for text, label in zip(texts, labels, strict=True) if text and label is not None]
    text_name = draw(st.sampled_from(["text", "Text", "sentence", "review"]))
    columns = {text_name: texts, draw(st.sampled_from(["label", "LABEL", "target"])): labels}
    if draw(st.booleans()):
        columns["id"] = [f"{row:04d}" for row in range(rows)]
    if draw(st.booleans()):
        columns["note"] = [None if row % 3 else f"note {row % 2}" for row in range(rows)]
    return Table(task, kind, columns, expected, {"text_column": text_name})


# Writers


def as_csv(path: Path, columns: dict[str, list[Any]], **dialect: Any) -> None:
    """Write what `csv.writer` makes of a table."""
    encoding = dialect.pop("encoding", "utf-8")
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.writer(file, **dialect)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def records(columns: dict[str, list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def as_jsonl(path: Path, columns: dict[str, list[Any]], gaps: bool = False) -> None:
    rows = [{name: value for name, value in row.items() if not gaps or value is not None} for row in records(columns)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def as_ipc(path: Path, columns: dict[str, list[Any]], opened: Callable[..., Any]) -> None:
    table = pa.table(columns)
    with pa.OSFile(str(path), "wb") as file, opened(file, table.schema) as writer:
        writer.write_table(table)


def as_other_types(path: Path, columns: dict[str, list[Any]]) -> None:
    """Write parquet of other types: large strings, dictionaries, decimals, small integers."""
    table = {}
    for name, column in columns.items():
        found = pa.array(column)
        if pa.types.is_string(found.type):
            found = found.dictionary_encode() if len(set(column)) < 9 else found.cast(pa.large_string())
        elif pa.types.is_integer(found.type):
            found = found.cast(pa.int8())
        elif pa.types.is_floating(found.type) and all(value is None or value == int(value) for value in column):
            found = pa.array(
                [None if value is None else Decimal(int(value)) for value in column], pa.decimal128(12, 2)
            )
        table[name] = found
    pq.write_table(pa.table(table), path, row_group_size=7)


def as_classes(path: Path, columns: dict[str, list[Any]]) -> None:
    """Save words as `datasets` encodes them: places among names, -1 where there is none."""
    (text, texts), (label, labels), *_ = columns.items()
    names = sorted({str(value) for value in labels if value is not None}, reverse=True)
    places = [-1 if value is None else names.index(str(value)) for value in labels]
    about = Features({text: Value("string"), label: ClassLabel(names=names)})
    Dataset.from_dict({text: texts, label: places}, features=about).to_parquet(str(path))


WRITERS: dict[str, Callable[[Path, dict[str, list[Any]]], Any]] = {
    "excel.csv": lambda path, columns: as_csv(path, columns, encoding="utf-8-sig"),
    "unix.csv": lambda path, columns: as_csv(path, columns, quoting=csv.QUOTE_ALL, lineterminator="\n"),
    "semicolons.csv": lambda path, columns: as_csv(path, columns, delimiter=";"),
    "tabs.csv": lambda path, columns: as_csv(path, columns, delimiter="\t"),
    "d.tsv": lambda path, columns: as_csv(path, columns, delimiter="\t"),
    "d.jsonl": as_jsonl,
    "gaps.jsonl": lambda path, columns: as_jsonl(path, columns, gaps=True),
    "list.json": lambda path, columns: path.write_text(json.dumps(records(columns), indent=1)),
    "columns.json": lambda path, columns: path.write_text(json.dumps(columns, ensure_ascii=False), encoding="utf-8"),
    "pandas.json": lambda path, columns: pd.DataFrame(columns, dtype=object).to_json(path, double_precision=15),
    "d.parquet": lambda path, columns: pq.write_table(pa.table(columns), path),
    "pandas.parquet": lambda path, columns: pd.DataFrame(columns).convert_dtypes().to_parquet(path),
    "types.parquet": as_other_types,
    "classes.parquet": as_classes,
    "file.arrow": lambda path, columns: as_ipc(path, columns, pa.ipc.new_file),
    "stream.arrow": lambda path, columns: as_ipc(path, columns, pa.ipc.new_stream),
    "saved": lambda path, columns: Dataset.from_dict(columns).save_to_disk(str(path)),
}


# Damage: each changes a file so that it can be refused alone, or read as it was.


def _line(draw: Any, lines: list[bytes]) -> int:
    return int(draw(st.integers(1, len(lines) - 1)))


def damaged(draw: Any, table: Table, folder: Path) -> tuple[str, Path]:
    """Write a file with one fault; return what it is."""
    simple = {name: [str(value).replace("\n", " ") for value in column] for name, column in table.columns.items()}
    simple = dict(list(simple.items())[:2])
    plain = {name: [re.sub(r"[^\w .-]", "", value) for value in column] for name, column in simple.items()}
    what = draw(st.sampled_from(["more", "fewer", "quote", "line", "list", "encoding", "header", "twice", "end"]))
    path = folder / f"{what}.csv"
    if what in ("line", "list", "end"):
        path = folder / f"{what}.jsonl"
        rows = records(plain)
        place = draw(st.integers(0, len(rows) - 1))
        if what == "list":
            rows[place][list(plain)[1]] = ["a", "b"]  # type: ignore[assignment]
        lines = [json.dumps(row).encode() + b"\n" for row in rows]
        if what == "line":
            cut = draw(st.integers(1, len(lines[place]) - 3))
            lines[place] = lines[place][:cut] + b"\n"
        content = b"".join(lines)
        path.write_bytes(content[: -draw(st.integers(3, len(lines[-1]) - 1))] if what == "end" else content)
        return what, path
    as_csv(path, plain, lineterminator="\n")
    lines = path.read_bytes().splitlines(keepends=True)
    place = _line(draw, lines)
    if what == "more":
        lines[place] = lines[place].rstrip(b"\n") + b",x\n"
    elif what == "fewer":
        lines[place] = lines[place].partition(b",")[0] + b"\n"
    elif what == "quote":
        lines[place] = b'"' + lines[place]
    elif what == "encoding":
        lines[place] = b"caf\xe9 " + lines[place]
    elif what == "header":
        del lines[0]
    elif what == "twice":
        lines[0] = b"text,text\n"
    path.write_bytes(b"".join(lines))
    return what, path


def outcome(path: Path, table: Table, study: Path) -> tuple[str, str]:
    """Read a file; return `right`, `refused`, `without_remedy`, `difference` or `traceback`, and what was said."""
    try:
        found = sources.load(Data(source=str(path), **table.settings), table.task)  # type: ignore[arg-type]
    except AutoLRError:
        return _refused(path, table, study)
    except BaseException as error:
        return "traceback", repr(error)[:300]
    labels: list[Any] = (
        [found.classes[int(label)] for label in found.labels] if table.task != "regression" else found.labels
    )  # type: ignore[assignment]
    examples = list(zip(found.texts, labels, strict=True))
    if examples == table.expected:
        return "right", ""
    first = next((pair for pair in zip(examples, table.expected, strict=False) if pair[0] != pair[1]), None)
    return "difference", f"{len(examples)} of {len(table.expected)} examples; first: {first}"[:300]


def _refused(path: Path, table: Table, study: Path) -> tuple[str, str]:
    """Ask the command line, as a user would."""
    words = ["search", str(study), "--data", str(path), "--dry-run", "--device", "cpu", f"task={table.task}"]
    words += ["metric=pearson"] if table.task == "regression" else []
    words += [f"data.{key}={value}" for key, value in table.settings.items()]
    said = io.StringIO()
    code: Any = 0
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            cli.main(words)
    except SystemExit as end:
        code = end.code
    except BaseException as error:
        return "traceback", repr(error)[:300]
    text = said.getvalue().strip()
    if code != 2 or "Traceback" in text:
        return "traceback", text[-300:]
    return "refused" if REMEDY.search(text) else "without_remedy", text[:300].replace(str(path.parent), "")


def splits(draw: Any, table: Table, folder: Path) -> tuple[Path, Table]:
    """Save two splits, each encoded by itself, with names of classes in an order of its own."""
    (text, texts), (label, labels), *_ = table.columns.items()
    _, named = CLASSES[table.kind]
    kept = [(one, named(other)) for one, other in zip(texts, labels, strict=True) if one and other is not None]
    sets, whole = {}, []
    for split in ("train", "test"):
        names = draw(st.permutations(sorted({name for _, name in kept})))
        rows = [(f"{one} {split}", name) for one, name in kept]
        about = Features({text: Value("string"), label: ClassLabel(names=list(names))})
        encoded = {text: [one for one, _ in rows], label: [names.index(name) for _, name in rows]}
        sets[split] = Dataset.from_dict(encoded, features=about)
        whole += rows
    DatasetDict(sets).save_to_disk(str(folder / "splits"))
    return folder / "splits", Table(table.task, table.kind, {}, whole, {**table.settings, "test_split": "test"})


def measure(count: int = TABLES, number: int = 0) -> dict[str, Any]:
    """Draw tables, and read them in all formats.

    Args:
        count: tables that are drawn.
        number: seed of what is drawn.

    Returns:
        The figures, and a row for each format and each damage: how many files ended how. `failed`: the first files
        that were read wrongly or not at all, with what was said.
    """
    disable_progress_bars()
    counts: dict[str, Counter[str]] = {}
    failed: list[dict[str, str]] = []
    tried = [0]
    with tempfile.TemporaryDirectory(prefix="tables-") as temporary:
        home = Path(temporary)
        study, _ = tiny_model.world(home)
        (home / "study.yaml").write_text(yaml.safe_dump(study))

        def note(name: str, path: Path, table: Table) -> None:
            how, said = outcome(path, table, home / "study.yaml")
            counts.setdefault(name, Counter())[how] += 1
            if how in ("difference", "traceback", "without_remedy") and len(failed) < SHOWN:
                failed.append(
                    {"file": name, "labels": table.kind, "outcome": how, "said": said.replace(temporary, "")}
                )

        @drawn(st.data(), count, number)
        def one(data: Any) -> None:
            table = data.draw(tables())
            tried[0] += 1
            with tempfile.TemporaryDirectory(dir=home) as below:
                folder = Path(below)
                for name, write in WRITERS.items():
                    if name in ("classes.parquet", "pandas.json") and table.task == "regression":
                        continue  # pandas rounds numbers to 15 places
                    write(folder / name, table.columns)
                    note(name, folder / name, _as_written(table) if name == "classes.parquet" else table)
                if table.task == "classification":
                    note("splits", *splits(data.draw, table, folder))
                plain = Table(table.task, table.kind, table.columns, [], {})
                what, path = damaged(data.draw, table, folder)
                note(f"damage: {what}", path, plain)

        one()
    total = sum(counts.values(), Counter())
    files = sum(total.values())
    return {
        "figures": {
            "tables": tried[0],
            "files": files,
            "right": total["right"],
            "refused": total["refused"],
            "without_remedy": total["without_remedy"],
            "tracebacks": total["traceback"],
            "differences": total["difference"],
        },
        "rows": [{"file": name, **own} for name, own in sorted(counts.items())],
        "failed": failed,
    }


def _as_written(table: Table) -> Table:
    """Return what a file of names of classes gives: the names, as `datasets` has written them."""
    (_, texts), (_, labels), *_ = table.columns.items()
    expected = [(text, str(label)) for text, label in zip(texts, labels, strict=True) if text and label is not None]
    return Table(table.task, table.kind, table.columns, expected, table.settings)


def main() -> None:
    given = document.parser(__doc__).parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    count = QUICK if given.quick else TABLES
    found = measure(count)
    result = document.Result("fuzz_tables", settings={"tables": count, "formats": list(WRITERS)})
    for name, value in found["figures"].items():
        result.figure(name, value)
    for row in found["rows"]:
        result.row("format", **row)
    for row in found["failed"]:
        result.row("failed", **row)
    document.deliver(result, torch.device("cpu"), keep=not given.quick, out=given.out)


if __name__ == "__main__":
    main()
