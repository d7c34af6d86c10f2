"""Files as programs and people write them: read as they are meant, or refused with the line and what to do."""

from __future__ import annotations

import datetime
import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Sequence, Value

from autolr.data import sources
from autolr.errors import DataError
from autolr.schema.data import Data

TEXTS = [f"text {n}" for n in range(40)]
LABELS = [n % 2 for n in range(40)]


def rows(separator=",", text="text {}".format, label=lambda n: n % 2, header="text,label", end="\n") -> str:
    """A table of text and label, a row a line."""
    lines = [header.replace(",", separator), *(f"{text(n)}{separator}{label(n)}" for n in range(40))]
    return end.join([*lines, ""])


def jsonl(text="text {}".format, label=lambda n: n % 2) -> str:
    return "".join(json.dumps({"text": text(n), "label": label(n)}) + "\n" for n in range(40))


def load(path: Path, content: str | bytes, task="classification", **settings):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return sources.load(Data(source=str(path), **settings), task)


READ = {
    "windows.csv": rows(end="\r\n"),
    "old_mac.csv": rows(end="\r"),
    "no_end.csv": rows().rstrip("\n"),
    "spaces.csv": rows(header="text , label ", label=lambda n: f" {n % 2} "),
    "quoted.csv": rows(header='"text","label"', text='"text {}"'.format),
    "blank_lines.csv": "\n" + rows().replace("text 5", "\n\ntext 5"),
    "index_of_pandas.csv": "".join(
        f"{'' if n == 0 else n - 1},{line}\n" for n, line in enumerate(rows().splitlines())
    ),
    "comma_in_header_too.csv": rows().replace("\n", ",\n"),
    "lines.json": jsonl(),
    "list.jsonl": json.dumps([json.loads(line) for line in jsonl().splitlines()]),
    "bom.jsonl": b"\xef\xbb\xbf" + jsonl().encode(),
    "rows_of_pandas.json": json.dumps({str(n): json.loads(line) for n, line in enumerate(jsonl().splitlines())}),
    "floats.csv": rows(label=lambda n: f"{n % 2}.0"),
    "floats_as_words.jsonl": jsonl(label=lambda n: f"{n % 2}.0"),
}


@pytest.mark.parametrize("name", READ)
def test_what_is_read_without_a_word(tmp_path, name):
    examples = load(tmp_path / name, READ[name])
    assert (examples.texts, examples.labels, examples.classes) == (TEXTS, LABELS, ["0", "1"])
    assert examples.notices == ()


@pytest.mark.parametrize(
    ("name", "content", "note"),
    [
        ("d.csv", rows(";"), "separated by semicolons"),
        ("d.csv", rows("\t"), "separated by tabs"),
        ("d.csv", rows("|"), "separated by bars"),
        ("d.tsv", rows(","), "separated by commas"),
        ("excel.csv", "sep=;\r\n" + rows(";", end="\r\n"), "separated by semicolons"),
    ],
)
def test_separators_are_found_and_named(tmp_path, name, content, note):
    examples = load(tmp_path / name, content)
    assert (examples.texts, examples.labels) == (TEXTS, LABELS)
    assert len(examples.notices) == 1 and note in examples.notices[0]


def test_fields_with_all_that_quotes_may_hold(tmp_path):
    text = '"He said ""no"", twice;\r\nthen left\t{}"'.format
    examples = load(tmp_path / "d.csv", rows(text=text))
    assert examples.texts[3] == 'He said "no", twice;\r\nthen left\t3' and examples.labels == LABELS


def test_other_breaks_of_lines_are_letters(tmp_path):
    examples = load(tmp_path / "d.csv", rows(text="a\u2028b\x0bc\x85d\x1ce {}".format))
    assert examples.texts[0] == "a\u2028b\x0bc\x85d\x1ce 0" and len(examples) == 40


def test_quotes_in_a_file_of_tabs_are_letters_if_they_fit_no_rows(tmp_path):
    content = rows("\t").replace("text 7\t", '"No" he said\t')
    examples = load(tmp_path / "d.tsv", content)
    assert examples.texts[7] == '"No" he said' and "quotes are taken as they are" in examples.notices[0]
    with pytest.raises(DataError, match="row 8 has a quote that joins lines.*csv or jsonl"):
        load(tmp_path / "d.tsv", rows("\t").replace("text 7\t", '"text 7\t').replace("text 9\t", 'text 9"\t'))


def test_types_are_decided_on_the_whole_column(tmp_path):
    """Readers that look at a part of a file take early labels for numbers, and later ones for words."""
    lines = (f"text {n},{n % 2 if n < 30_000 or n % 3 else 'other'}\n" for n in range(33_000))
    examples = load(tmp_path / "d.csv", "text,label\n" + "".join(lines))
    assert examples.classes == ["0", "1", "other"] and len(examples) == 33_000


REFUSED = {
    "comma_in_text.csv": (
        rows(text="a, b {}".format),
        r"do not fit the header: 40.*commas.*row 1 \(line 2\): 3 fields",
    ),
    "comma_at_end.csv": (rows(label=lambda n: f"{n % 2},"), r"row 1 \(line 2\): 3 fields, the header 2.*and 35 more"),
    "fewer.csv": (rows().replace("text 7,1", "text 7"), r"row 8 \(line 9\): 1 field, the header 2"),
    "after_breaks.csv": (
        rows(text='"two\nlines {}"'.format).replace('lines 9",1', 'lines 9",1,2'),
        r"row 10 \(line 20\): 3 fields, the header 2",
    ),
    "open_quote.csv": (rows().replace("text 7", '"text 7'), r"row 8 \(line 9\): a quote is opened and never closed"),
    "odd_quote.csv": (rows().replace("text 7", '"te"xt 7'), r"row 8 \(line 9\): quotes: "),
    "twice.csv": (rows(header="text,text"), "more than one column is called 'text'; rename them"),
    "header_only.csv": ("text,label\n", "holds no rows"),
    "no_header.csv": (
        rows().partition("\n")[2],
        r"first line must be the header.*\(text 0, 0\).*text,label above it",
    ),
    "latin.csv": (rows(text="café {}".format).encode("latin-1"), r"line 2: byte 0xe9 at place 14 is no UTF-8.*iconv"),
    "latin.jsonl": (b'{"text": "a", "label": 1}\n{"text": "\xe9"}\n', "line 2: byte 0xe9"),
    "excel.csv": (rows().encode("utf-16"), "is UTF-16; save it as UTF-8"),
    "utf16_without_mark.csv": (rows().encode("utf-16-le"), "is binary, or UTF-16; save it as UTF-8"),
    "gzip.csv": (gzip.compress(rows().encode()), "packed with gzip; unpack it"),
    "d.csv.gz": (gzip.compress(rows().encode()), "'.gz' are not read.*unpack it with gunzip"),
    "d.xlsx": (b"PK\3\4", "'.xlsx' are not read.*save the sheet as csv"),
    "broken.jsonl": (jsonl().replace('"label": 1}', '"label": 1', 2), "read: 2. Mend.*line 2: is no JSON.*line 4: "),
    "first.jsonl": (jsonl().replace('"text":', '"text"', 1), "line 1: is no JSON"),
    "lists.jsonl": ('["a", 1]\n["b", 0]\n', r'line 1: is \["a", 1\], no record'),
    "twice.jsonl": ('{"text": "a", "text": "b"}\n' * 4, "line 1: is no JSON .the name 'text' occurs twice"),
    "deep.json": ("[" * 100_000, "is no JSON"),
    "uneven.json": (json.dumps({"text": TEXTS, "label": [1]}), r"not equally long \(text 40, label 1\)"),
    "below.json": (json.dumps({"of": "us", "data": [{"text": "a"}]}), "records lie under 'data'; write that list"),
    "words.json": (json.dumps(TEXTS), 'row 1 is "text 0", no record'),
    "lists.csv": (rows(label=lambda n: f'"[{n % 2}, 1]"'), r"row 1: .*several labels for one text \(\[0, 1\]\)"),
    "arrays.csv": (rows(label=lambda n: f"[{n % 2} 1]"), r"row 1: .*several labels for one text \(\[0 1\]\)"),
    "tuples.jsonl": (jsonl(label=lambda n: "('a', 'b')" if n == 5 else "a"), "row 6: .*several labels"),
    "lists_of_names.jsonl": (jsonl(label=lambda n: ["a", "b"] if n == 5 else "a"), "row 6: .*several labels"),
    "objects.jsonl": (jsonl(label=lambda n: {"id": n % 2}), "row 1: .*integers or strings, not an object"),
    "truth.jsonl": (jsonl(label=lambda n: [True, 0, 1][n % 3]), "0 or 1 as well as true or false"),
    "versions.csv": (
        rows(label=lambda n: ["1.0", "1.10"][n % 2]),
        "numbers with fractions.*names of classes must be",
    ),
    "commas.csv": (rows(";", label=lambda n: f"{n % 2},5"), "numbers with fractions"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_with_its_place_and_a_remedy(tmp_path, name):
    content, expected = REFUSED[name]
    with pytest.raises(DataError, match=f"(?s)^data '.*{name}': .*{expected}"):
        load(tmp_path / name, content)


def test_what_a_header_may_look_like_if_its_label_column_is_named(tmp_path):
    examples = load(
        tmp_path / "d.csv", rows(header="text,spam", label=lambda n: ["ham", "spam"][n % 2]), label_column="spam"
    )
    assert examples.classes == ["ham", "spam"]


def test_words_in_brackets_are_words(tmp_path):
    examples = load(tmp_path / "d.csv", rows(label=lambda n: ["[spam]", "(ham)"][n % 2]))
    assert examples.classes == ["(ham)", "[spam]"]


def test_what_may_not_be_read(tmp_path, monkeypatch):
    def closed(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_file", closed)
    with pytest.raises(DataError, match=r"cannot be read \(Permission denied\); check the path and its permissions"):
        sources.load(Data(source=str(tmp_path / "folder")))


def test_names_that_stand_in_place_of_their_numbers_are_words(tmp_path):
    about = named(["no", "yes"], ["no", "yes"] * 20, 0).data.table.schema
    table = pa.table({"text": TEXTS, "label": ["yes", "no"] * 20}).replace_schema_metadata(about.metadata)
    pq.write_table(table, tmp_path / "d.parquet")
    examples = sources.load(Data(source=str(tmp_path / "d.parquet")))
    assert [examples.classes[int(label)] for label in examples.labels[:2]] == ["yes", "no"]


def test_a_regression_needs_numbers_with_points(tmp_path):
    with pytest.raises(DataError, match=r"40 of 40 rows have a number with a decimal comma.*write 1.5, not 1,5"):
        load(tmp_path / "d.csv", rows(";", label=lambda n: f"{n / 10:.1f}".replace(".", ",")), "regression")
    # Python takes these for numbers.
    odd = load(tmp_path / "e.jsonl", jsonl(label=lambda n: {3: "1_000", 5: True}.get(n, n / 10)), "regression")
    assert len(odd) == 38 and "that is no number (rows 4, 6)" in odd.notices[0]


@pytest.mark.parametrize(
    ("labels", "note"),
    [
        (
            ["Pos", "neg", "pos", "neg"],
            "the classes 'Pos', 'pos' in column 'label' differ only in upper and lower case",
        ),
        (["good", "nan", "good", "bad"], "the class 'nan' in column 'label' is a word here; leave the cell empty"),
        (["a", "b", '"a, b"', "b"], "the class 'a, b' in column 'label' looks like several labels"),
    ],
)
def test_classes_that_look_odd_are_classes_with_a_note(tmp_path, labels, note):
    examples = load(tmp_path / "d.csv", rows(label=lambda n: labels[n % 4]))
    assert examples.classes == sorted({label.strip('"') for label in labels})
    assert len(examples.notices) == 1 and examples.notices[0].startswith(note)


@pytest.mark.parametrize("text", ["\ud800", "half \udc00 of it"])
def test_half_a_character_is_left_out(tmp_path, text):
    examples = load(tmp_path / "d.jsonl", jsonl(text=lambda n: text if n == 4 else f"text {n}"))
    assert len(examples) == 39 and "half a character in column 'text' (row 5)" in examples.notices[0]
    examples = load(tmp_path / "d.jsonl", jsonl(label=lambda n: text if n == 4 else "ab"[n % 2]))
    assert examples.classes == ["a", "b"] and "half a character in column 'label' (row 5)" in examples.notices[0]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([[n % 2] for n in range(40)], "row 1: .*several labels for one text"),
        ([datetime.date(2024, 1, 1 + n % 2) for n in range(40)], "must be integers or strings, not a date or time"),
        ([datetime.timedelta(n % 2) for n in range(40)], "not a duration"),
        ([b"ab"[n % 2 : n % 2 + 1] for n in range(40)], "not bytes"),
        (pa.nulls(40), "40 of 40 rows have no label"),
    ],
    ids=str,
)
def test_types_of_parquet_that_are_no_labels(tmp_path, labels, expected):
    pq.write_table(pa.table({"text": TEXTS, "label": labels}), tmp_path / "d.parquet")
    with pytest.raises(DataError, match=expected):
        sources.load(Data(source=str(tmp_path / "d.parquet")))


def test_texts_of_parquet_that_are_no_texts(tmp_path):
    path = tmp_path / "d.parquet"
    data = Data(source=str(path), text_column="text")
    pq.write_table(pa.table({"text": [text.encode() for text in TEXTS], "label": LABELS}), path)
    with pytest.raises(DataError, match="row 1: column 'text' has bytes; save its texts as strings"):
        sources.load(data)
    ends = pa.array(["abc"] * 40).buffers()[1]
    wrong = pa.Array.from_buffers(pa.string(), 40, [None, ends, pa.py_buffer(b"abc" * 9 + b"\xff\xfe1" * 31)])
    pq.write_table(pa.table({"text": wrong, "label": LABELS}), path)
    with pytest.raises(DataError, match="row 10: column 'text' is no UTF-8"):
        sources.load(data)
    pq.write_table(
        pa.table([pa.array(TEXTS), pa.array(TEXTS), pa.array(LABELS)], names=["text", "text", "label"]), path
    )
    with pytest.raises(DataError, match="more than one column is called 'text'"):
        sources.load(data)


def test_folders_of_a_path_are_no_columns(tmp_path):
    (tmp_path / "part=3").mkdir()
    pq.write_table(pa.table({"text": TEXTS, "label": LABELS}), tmp_path / "part=3" / "d.parquet")
    assert sources.load(Data(source=str(tmp_path / "part=3" / "d.parquet"))).labels == LABELS


def test_several_labels_of_a_saved_set_are_refused(tmp_path):
    about = Features(text=Value("string"), label=Sequence(ClassLabel(names=["a", "b"])))
    Dataset.from_dict({"text": TEXTS, "label": [[0, 1]] * 40}, features=about).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(DataError, match="row 1: .*several labels for one text"):
        sources.load(Data(source=str(tmp_path / "saved")))


def named(names: list[str], labels: list[str], start: int) -> Dataset:
    """A split that was encoded by itself."""
    about = Features(text=Value("string"), label=ClassLabel(names=names))
    places = [names.index(label) if label in names else int(label) for label in labels]
    texts = [f"text {start + n}" for n in range(len(labels))]
    return Dataset.from_dict({"text": texts, "label": places}, features=about)


def test_classes_of_splits_are_matched_by_name(tmp_path):
    splits = {
        "train": named(["no", "yes"], ["no", "yes"] * 40, 0),
        "test": named(["maybe", "yes", "no"], [*["no", "yes", "yes"] * 15, "-1", "maybe"], 100),
    }
    DatasetDict(splits).save_to_disk(str(tmp_path / "saved"))
    examples = sources.load(Data(source=str(tmp_path / "saved"), test_split="test"))
    words = [examples.classes[int(label)] for label in examples.labels]
    assert words == ["no", "yes"] * 40 + ["no", "yes", "yes"] * 15 and examples.classes == ["no", "yes"]
    assert sorted(examples.notices) == [
        "1 of 127 examples left out: a label in column 'label' that train does not have (row 127)",
        "1 of 127 examples left out: no label in column 'label' (row 126)",
    ]


@pytest.mark.parametrize("names", [["no", "yes"], ["yes", "no"]])
def test_words_of_a_file_are_matched_with_names(tmp_path, names):
    """Whichever of the two is trained on."""
    named(names, ["no", "yes"] * 40, 100).to_parquet(str(tmp_path / "named.parquet"))
    words = rows(label=lambda n: ["no", "yes", "yes"][n % 3])
    (tmp_path / "words.csv").write_text(words)
    for source, split in (("named.parquet", "words.csv"), ("words.csv", "named.parquet")):
        examples = sources.load(Data(source=str(tmp_path / source), test_split=str(tmp_path / split)))
        found = dict(zip(examples.texts, (examples.classes[int(label)] for label in examples.labels), strict=True))
        assert [found[f"text {n}"] for n in range(3)] == ["no", "yes", "yes"]
        assert [found[f"text {n}"] for n in (100, 101)] == ["no", "yes"]
    (tmp_path / "numbers.csv").write_text(rows())
    with pytest.raises(DataError, match="that train does not have"):  # whose 1 is it?
        sources.load(Data(source=str(tmp_path / "named.parquet"), test_split=str(tmp_path / "numbers.csv")))


def test_places_beyond_the_names_stay_without_one(tmp_path):
    """Also if another split has a name for that place."""
    train = named(["no", "yes"], ["no", "yes"] * 60, 0).data.table
    wrong = train.set_column(1, "label", pa.array([*[0, 1] * 59, 0, 2]))  # datasets itself would not write it
    pq.write_table(wrong.replace_schema_metadata(train.schema.metadata), tmp_path / "train.parquet")
    named(["no", "yes", "maybe"], [*["no", "yes"] * 20, "maybe"], 200).to_parquet(str(tmp_path / "test.parquet"))
    examples = sources.load(Data(source=str(tmp_path / "train.parquet"), test_split=str(tmp_path / "test.parquet")))
    assert examples.classes == ["no", "yes"]
    assert "a label in column 'label' that is none of the 3 classes (row 120)" in examples.notices[0]


def test_settings_that_the_source_has_not_are_refused(tmp_path):
    (tmp_path / "d.csv").write_text(rows())
    with pytest.raises(DataError, match="has no splits; leave data.split .'test'. out"):
        sources.load(Data(source=str(tmp_path / "d.csv"), split="test"))
    with pytest.raises(DataError, match="has no subsets; leave data.subset"):
        sources.load(Data(source=str(tmp_path / "d.csv"), subset="sst2"))
    with pytest.raises(DataError, match="it has d.csv: give one of its files"):
        sources.load(Data(source=str(tmp_path)))
    with pytest.raises(DataError, match="patterns such as .* are not expanded"):
        sources.load(Data(source=str(tmp_path / "*.csv")))
