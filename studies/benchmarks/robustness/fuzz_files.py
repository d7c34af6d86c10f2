"""Broken study, recipe and data files: how many of them end in a traceback or never end.

Files start valid, are changed in one to four places by hypothesis, and are read by the command line in this process,
with `--dry-run`: a message and code 2, or a plan, are right; anything else is counted.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from hypothesis import strategies as st

from autolr import cli
from studies.benchmarks.common import tiny_model
from studies.benchmarks.robustness.drawn_cases import drawn

CASES = 200
# Seconds of the processor that a case may take, and how many times as long on the clock: others may need it as well.
# A plan of the tiny study takes about one.
LIMIT, PATIENCE = 30, 10
TEXTS = [
    "", " ", "\0", "a\0b", "~nobody-of-this-name/x", "~", ".", "..", "/", "../../etc/passwd", "/dev/zero", "x" * 5000,
    "a/" * 3000, "\ud800", "🙂", "λ", "NaN", "-inf", "1e999", "<script>", "{}", "[]", "!!python/name:os.system", "*a",
    "https://a:b@c/d", "pandas", "text", "demo:", "demo:none", "demo:rotten-tomatoes.csv", "a:b", "os:system", "%s%n",
    "{0.__class__}", "0x10", "1_000", "2020-99-99", "10m", "-5s", "1e400h", "glue", "org/name", "con", "a b", "\n",
]  # fmt: skip
NUMBERS = [0, -1, 1, 2, 3, 1e-300, 1e300, 2**31, 2**63, 10**30, 10**4000, 0.5, 1.5, -0.0, float("nan"), float("inf")]
BYTES = [
    b"\0",
    b"\xff\xfe",
    b"\xc3",
    b"\x1b[2J",
    b": ",
    b"- ",
    b"\t",
    b"{",
    b"]",
    b"'",
    b'"',
    b"&a *a",
    b"---\n",
    b"%",
]


class HangError(BaseException):
    """A case took longer than it may. No `Exception`: nobody is to catch it on the way."""


def values() -> st.SearchStrategy[Any]:
    """Return what a value is replaced by."""
    plain = st.one_of(
        st.none(), st.booleans(), st.sampled_from(NUMBERS), st.sampled_from(TEXTS), st.text(max_size=20)
    )
    return st.one_of(
        plain, st.lists(plain, max_size=4), st.dictionaries(st.sampled_from(["low", "high", "source", "x"]), plain)
    )


def places(content: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value of a document."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield (*above, key)
        yield from places(value, (*above, key))


def changed(draw: Callable[[Any], Any], content: dict[str, Any]) -> dict[str, Any]:
    """Return a document with one to three values replaced, taken out or added."""
    content = copy.deepcopy(content)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(places(content))))
        inner = content
        for key in path[:-1]:
            inner = inner[key]
        what = draw(st.sampled_from(["replace", "replace", "replace", "remove", "add"]))
        if what == "replace":
            inner[path[-1]] = draw(values())
        elif what == "remove":
            del inner[path[-1]]
        elif isinstance(inner, dict):
            inner[draw(st.sampled_from(["colour", "low", "", "variants", "trust_remote_code"]))] = draw(values())
        if not content:
            break
    return content


def spoilt(draw: Callable[[Any], Any], data: bytes) -> bytes:
    """Return bytes with a few of them cut, doubled or replaced."""
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(data)))
        what = draw(st.sampled_from(["cut", "insert", "double", "swap"]))
        if what == "cut":
            data = data[:at] + data[at + draw(st.integers(1, 400)) :]
        elif what == "insert":
            data = data[:at] + draw(st.sampled_from(BYTES)) + data[at:]
        elif what == "double":
            data = data[:at] + data[max(0, at - 200) : at] * draw(st.integers(1, 3)) + data[at:]
        else:
            data = data[:at] + bytes([draw(st.integers(0, 255))]) + data[at + 1 :]
    return data


@st.composite
def documents(draw: Any, kind: str, valid: dict[str, Any]) -> tuple[str, str, bytes]:
    """Draw a study or recipe file."""
    content = changed(draw, valid)
    try:
        text = yaml.safe_dump(content, allow_unicode=True).encode("utf-8", "surrogatepass")
    except (yaml.YAMLError, ValueError):
        text = json.dumps(content, default=str).encode()
    return kind, "yaml", spoilt(draw, text)


@st.composite
def tables(draw: Any, rows: list[dict[str, Any]]) -> tuple[str, str, bytes]:
    """Draw a data file."""
    rows = copy.deepcopy(rows[: draw(st.sampled_from([0, 1, 3, 40, len(rows)]))])
    for _ in range(draw(st.integers(0, 3))):
        if not rows:
            break
        name = draw(st.sampled_from(["text", "label", "more"]))
        value = draw(values())
        which = draw(st.sampled_from(["one", "some", "all", "gone"]))
        step = {"one": len(rows), "some": 7, "all": 1, "gone": 1}[which]
        for row in rows[::step]:
            row.pop(name, None) if which == "gone" else row.update({name: value})
    kind = draw(st.sampled_from(["csv", "tsv", "json", "jsonl", "parquet"]))
    frame, path = pd.DataFrame(rows), Path("drawn")
    try:
        if kind == "parquet":
            frame.astype(str).to_parquet(path)
        elif kind in ("csv", "tsv"):
            frame.to_csv(path, index=False, sep="," if kind == "csv" else "\t", errors="surrogatepass")
        else:
            text = json.dumps(rows) if kind == "json" else "".join(json.dumps(row) + "\n" for row in rows)
            path.write_bytes(text.encode())
        data = path.read_bytes()
    except (ValueError, TypeError, OverflowError, OSError):
        data = json.dumps(rows, default=str).encode()
    return "data", kind, spoilt(draw, data)


def run(words: list[str], limit: float = LIMIT) -> tuple[str, float]:
    """Run the command line; return `message`, `plan`, `traceback` or `hang`, and the seconds it took."""

    def late(*_: Any) -> None:
        raise HangError

    said, start = io.StringIO(), time.perf_counter()
    timers = {signal.ITIMER_PROF: limit, signal.ITIMER_REAL: PATIENCE * limit}
    before = {which: signal.signal(which, late) for which in (signal.SIGPROF, signal.SIGALRM)}
    for timer, seconds in timers.items():
        signal.setitimer(timer, seconds)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            cli.main(words)
        outcome = "plan"
    except SystemExit as end:
        is_clear = end.code == 2 and "Traceback" not in said.getvalue()
        outcome = "plan" if end.code in (0, None) else "message" if is_clear else "traceback"
    except HangError:
        outcome = "hang"
    except BaseException:  # whatever it is, a user would see it
        outcome = "traceback"
    finally:
        for timer in timers:
            signal.setitimer(timer, 0)
        for which, handler in before.items():
            signal.signal(which, handler)
    if outcome == "traceback":
        (Path("tracebacks") / f"{len(list(Path('tracebacks').iterdir()))}.txt").write_text(
            said.getvalue(), errors="replace"
        )
    return outcome, time.perf_counter() - start


def words_of(kind: str, suffix: str, study: Path) -> list[str]:
    """Return the command line that reads a drawn file."""
    drawn = f"drawn.{suffix}"
    if kind == "recipe":
        return ["train", drawn, "--dry-run", "--device", "cpu"]
    return ["search", drawn if kind == "study" else str(study), "--dry-run", "--device", "cpu"] + (
        ["--data", drawn] if kind == "data" else []
    )


def measure(cases: int = CASES, folder: Path | None = None, number: int = 0) -> dict[str, Any]:
    """Fuzz the command line.

    Args:
        cases: files that are drawn.
        folder: to work in; files that failed stay in it. None: a temporary one.
        number: seed of what is drawn.

    Returns:
        `fuzzed`, `tracebacks` and `hangs`; `slowest_s`: seconds of the slowest; a row for each kind of file, how many
        of it ended how, and for each file that failed, with what was said.
    """
    folder = folder or Path(tempfile.mkdtemp(prefix="fuzz-"))
    here = Path.cwd()
    counts: dict[str, dict[str, int]] = {}
    failed: list[dict[str, str]] = []
    slowest = [0.0]
    offline = os.environ.get("HF_HUB_OFFLINE")
    os.environ["HF_HUB_OFFLINE"] = "1"
    study, recipe = tiny_model.world(folder)
    os.chdir(folder)
    Path("tracebacks").mkdir()
    Path("study.yaml").write_text(yaml.safe_dump(study))
    rows = [json.loads(line) for line in Path("data.jsonl").read_text().splitlines()]

    @drawn(st.one_of(documents("study", study), documents("recipe", recipe), tables(rows)), cases, number)
    def one(case: tuple[str, str, bytes]) -> None:
        kind, suffix, data = case
        Path(f"drawn.{suffix}").write_bytes(data)
        outcome, seconds = run(words_of(kind, suffix, Path("study.yaml")))
        slowest[0] = max(slowest[0], seconds)
        own = counts.setdefault(kind, {})
        own[outcome] = own.get(outcome, 0) + 1
        if outcome in ("traceback", "hang"):
            number = sum(row["outcome"] == "traceback" for row in failed)
            name = f"failed-{len(failed)}.{suffix}"
            Path(name).write_bytes(data)
            text = Path("tracebacks", f"{number}.txt").read_text() if outcome == "traceback" else ""
            failed.append({"file": name, "kind": kind, "outcome": outcome, "last_line": text.strip()[-300:]})

    try:
        one()
    finally:
        os.chdir(here)
        if offline is None:
            del os.environ["HF_HUB_OFFLINE"]
    total = {outcome: sum(own.get(outcome, 0) for own in counts.values()) for outcome in ("traceback", "hang")}
    return {
        "fuzzed": sum(sum(own.values()) for own in counts.values()),
        "tracebacks": total["traceback"],
        "hangs": total["hang"],
        "slowest_s": round(slowest[0], 2),
        "rows": [{"files": kind, **own} for kind, own in counts.items()] + failed,
    }
