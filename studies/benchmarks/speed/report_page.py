"""How large the report page is and how soon it shows, in a real browser.

    python -m studies.benchmarks.speed.report_page [--trials 200]

A made search of 200 trials with 50 losses each. In a new headless Chromium for each round (`BROWSER_PATH`, or the one
that is found; needs playwright), which opens the file as a reader does: seconds until the page has loaded, and until
the first figures are drawn; those further down are drawn as they come near.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from autolr.report.page import write_report
from studies.benchmarks.common.document import Result, deliver, parser

ROUNDS, DRAWN = 7, ".figure .main-svg"


def main() -> None:
    """Write the page, open it, tell."""
    options = parser(__doc__)
    options.add_argument("--trials", type=int, default=200)
    given = options.parse_args()
    from playwright.sync_api import sync_playwright

    from tests.report import made

    program = os.environ.get("BROWSER_PATH") or shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        sys.exit("no Chromium found; install it, or name it in BROWSER_PATH")
    rounds = 2 if given.quick else ROUNDS
    result = Result("page", settings={"trials": given.trials, "rounds": rounds})
    loaded, drawn = [], []
    with tempfile.TemporaryDirectory() as name, sync_playwright() as driver:
        page = write_report(made.searched(Path(name), given.trials, finished=False), Path(name) / "page.html")
        result.figure("megabytes", page.stat().st_size / 1e6)
        for number in range(rounds):
            browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
            result.settings["browser"] = browser.version
            opened = browser.new_page(viewport={"width": 1200, "height": 900})
            start = time.perf_counter()
            opened.goto(page.as_uri())
            loaded.append(time.perf_counter() - start)
            opened.wait_for_selector(DRAWN)
            drawn.append(time.perf_counter() - start)
            result.row("open", round=number, loaded_s=round(loaded[-1], 2), drawn_s=round(drawn[-1], 2))
            browser.close()
    result.figure("loaded_s", statistics.median(loaded))
    result.figure("first_figures_s", statistics.median(drawn))
    result.figure("first_figures_s_worst", max(drawn))
    deliver(result, torch.device("cpu"), keep=not given.quick, out=given.out)


if __name__ == "__main__":
    main()
