"""The second task of the oracles: which section of Debian does a package with this description belong to?

    python -m studies.research.oracle.sections sections.csv

The descriptions are those of the archive's own index, as `apt-cache dumpavail` prints them; they stay on the machine,
and only what was measured on them is kept. As many packages of each section.
"""

from __future__ import annotations

import argparse
import csv
import random
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

SECTIONS = ("admin", "games", "graphics", "math", "net", "science", "sound", "text")
EACH = 600


def stanzas(lines: Iterable[str]) -> Iterator[dict[str, str]]:
    """Yield the fields of each package; continued lines are left out."""
    fields: dict[str, str] = {}
    for line in lines:
        if not line.strip():
            if fields:
                yield fields
            fields = {}
        elif not line[0].isspace():
            key, _, value = line.partition(":")
            fields[key] = value.strip()
    if fields:
        yield fields


def examples(lines: Iterable[str], seed: int = 0) -> list[tuple[str, str]]:
    """Return descriptions and sections in an order of chance; a description of two sections is left out."""
    found: dict[str, set[str]] = {section: set() for section in SECTIONS}
    for fields in stanzas(lines):
        if fields.get("Section") in found:
            found[fields["Section"]].add(fields.get("Description") or fields.get("Description-en", ""))
    times = Counter(text for texts in found.values() for text in texts)
    rng = random.Random(seed)
    rows = []
    for section, texts in found.items():
        usable = sorted(text for text in texts if times[text] == 1 and len(text.split()) >= 3)
        rows += [(text, section) for text in rng.sample(usable, min(EACH, len(usable)))]
    rng.shuffle(rows)
    return rows


def write(path: Path) -> None:
    """Write the examples of this machine's package index as csv.

    Raises:
        SystemExit: there is no index here, or too small a one.
    """
    try:
        shown = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"no package index of Debian on this machine ({error}); run this where apt is") from None
    rows = examples(shown.splitlines())
    if len(rows) < EACH * len(SECTIONS) // 2:
        raise SystemExit(f"the package index holds {len(rows)} of these packages, too few; run apt-get update")
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    print(f"{path}: {len(rows)} packages")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    write(parser.parse_args().file)
