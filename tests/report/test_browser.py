"""The page as a reader meets it, in a real browser without a window."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from autolr.report import dashboard
from autolr.report.page import write_report
from autolr.rundir.folder import RunFolder
from autolr.rundir.result import SearchResult
from tests.report import made

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROME = os.environ.get("BROWSER_PATH") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(CHROME is None, reason="no Chromium on this machine")
ALL_DRAWN = "html[data-drawn=all]"
STARTED = "html[data-drawn]"
# A busy machine may draw no frame for long, and what is waited for in a page has no limit of its own.
LATER = "const later = ms => new Promise(done => setTimeout(done, ms, 'too late'));"
SCROLL = """async () => { LATER for (const box of document.querySelectorAll(".figure")) {
    box.scrollIntoView();
    for (let i = 0; i < 2; i++) await Promise.race([new Promise(requestAnimationFrame), later(200)]); }
    scrollTo(0, 0); }""".replace("LATER", LATER)
COPIED = "() => { LATER return Promise.race([navigator.clipboard.readText(), later(20000)]); }".replace(
    "LATER", LATER
)
DRAWINGS = "[...document.querySelectorAll('.main-svg')]"


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        # Containers run as root, where Chromium's sandbox does not start; the only page it opens is ours.
        started = driver.chromium.launch(executable_path=CHROME, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    kinds = {
        "whole": made.searched(folder),
        "unfinished": made.searched(folder, 12, finished=False),
        "empty": made.result(folder),
        "one_rate": made.searched(folder, targets="vo"),
        "many": made.searched(folder, 200, finished=False),
    }
    return {name: write_report(result, folder / f"{name}.html") for name, result in kinds.items()}


@pytest.fixture
def open_page(browser, pages):
    contexts = []

    def opened(name: str, width: int = 1100, scheme: str = "light"):
        context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme, offline=True)
        contexts.append(context)
        page = context.new_page()
        page.problems = []
        page.on("console", lambda message: page.problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.goto(pages[name].as_uri())
        page.wait_for_selector(STARTED, state="attached", timeout=120_000)
        page.evaluate(SCROLL)
        page.wait_for_selector(ALL_DRAWN, state="attached", timeout=120_000)
        return page

    yield opened
    for context in contexts:
        context.close()


@pytest.mark.parametrize("name", ["whole", "unfinished", "empty", "one_rate", "many"])
def test_it_opens_without_errors_and_figures_have_marks(open_page, name):
    page = open_page(name)
    assert page.problems == []
    marks = page.evaluate(
        """() => Object.fromEntries([...document.querySelectorAll(".figure")].map(box => [box.id,
            box.querySelectorAll(".scatterlayer path, .barlayer path, .contour path").length]))"""
    )
    assert (len(marks) >= 8) if name != "empty" else marks == {}
    assert all(marks.values()), marks


def test_the_text_is_there_to_read_before_the_figures(browser, pages):
    page = browser.new_page()
    page.add_init_script("addEventListener('load', () => { window.atLoad = typeof Plotly; });")
    page.goto(pages["many"].as_uri())
    page.wait_for_selector(STARTED, state="attached", timeout=120_000)
    assert page.evaluate("[atLoad, typeof Plotly]") == ["undefined", "object"]
    page.close()


def test_figures_are_drawn_when_they_come_near(browser, pages):
    page = browser.new_page(viewport={"width": 1100, "height": 844})
    page.goto(pages["whole"].as_uri())
    page.wait_for_selector(STARTED, state="attached", timeout=120_000)
    has = "key => document.querySelectorAll(`#figure-${key} .main-svg`).length > 0"
    assert not page.evaluate(has, "history")
    page.locator("nav a[href='#history']").click()
    page.wait_for_selector("#figure-history .main-svg", state="attached", timeout=60_000)
    assert not page.evaluate(has, "rank_effect")
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.wait_for_selector(ALL_DRAWN, state="attached", timeout=60_000)
    page.close()


def test_hovering_shows_the_candidate(open_page):
    page = open_page("whole")
    point = page.locator("#figure-rate_map .scatterlayer .points path").first
    point.scroll_into_view_if_needed()
    # Other marks may lie on top; what counts is what is under the pointer.
    box = point.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_selector("#figure-rate_map .hoverlayer .hovertext", timeout=10_000)
    said = page.locator("#figure-rate_map .hoverlayer").text_content()
    assert "trial" in said and "λ=" in said and "lr_v=" in said
    page.locator("#figure-convergence").scroll_into_view_if_needed()
    middle = page.evaluate(
        """() => {
            const lines = [...document.querySelectorAll("#figure-convergence .lines path.js-line")];
            const line = lines[lines.length - 1], point = line.getPointAtLength(line.getTotalLength() / 2);
            const seen = point.matrixTransform(line.getScreenCTM());
            return [seen.x, seen.y];
        }"""
    )
    page.mouse.move(*middle)
    page.wait_for_selector("#figure-convergence .hoverlayer .hovertext", timeout=10_000)
    assert "λ=" in page.locator("#figure-convergence .hoverlayer").text_content()


def test_the_button_copies_the_recipe(browser, pages, open_page):
    page = open_page("whole")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    button = page.locator("button[data-copy=recipe]")
    button.click()
    page.wait_for_function("document.querySelector('button[data-copy=recipe]').textContent === 'copied'")
    assert page.evaluate(COPIED) == page.locator("#recipe").text_content()
    assert "lr_v:" in page.locator("#recipe").text_content()


def test_dark_and_light(open_page):
    ground = "getComputedStyle(document.body).backgroundColor"
    text = "getComputedStyle(document.querySelector('#figure-steps_to_target .xtitle')).fill"
    line = "getComputedStyle(document.querySelector('#figure-steps_to_target .shapelayer path')).stroke"
    page = open_page("whole")
    light = [page.evaluate(what) for what in (ground, text, line)]
    page.locator("#theme").click()
    page.wait_for_function(f"{line} !== '{light[2]}'")
    dark = [page.evaluate(what) for what in (ground, text, line)]
    assert all(a != b for a, b in zip(light, dark, strict=True))
    assert sum(map(int, dark[0][4:-1].split(","))) < 150 < 600 < sum(map(int, light[0][4:-1].split(",")))
    preferred = open_page("whole", scheme="dark")
    assert [preferred.evaluate(what) for what in (ground, text, line)] == dark
    assert page.problems == preferred.problems == []


@pytest.mark.parametrize("name", ["whole", "many", "empty"])
def test_a_phone_shows_all_of_it(open_page, name):
    page = open_page(name, width=390)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    edges = page.evaluate(f"{DRAWINGS}.map(one => one.getBoundingClientRect().right)")
    assert all(edge <= 390 for edge in edges) and page.problems == []


def test_a_narrower_window_gets_narrower_figures(open_page):
    page = open_page("whole")
    page.set_viewport_size({"width": 500, "height": 844})
    page.wait_for_function("document.querySelector('#figure-rate_map .main-svg').getBoundingClientRect().width < 500")


def test_paper_is_light_and_shows_all(open_page):
    page = open_page("whole", scheme="dark")
    printed = page.pdf(format="A4")
    assert printed.startswith(b"%PDF") and len(printed) > 30_000
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("document.documentElement.dataset.theme") == "light"
    widths = page.evaluate(
        "[...document.querySelectorAll('.main-svg')].map(one => one.getBoundingClientRect().width)"
    )
    assert max(widths) <= 660
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def wait_for(what, seconds: float = 120.0):
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end
        time.sleep(0.1)
    return found


def test_the_dashboard_shows_our_figures_while_a_search_writes(browser, small_study, tmp_path, monkeypatch):
    monkeypatch.setattr(dashboard, "EVERY", 0.5)
    budget = small_study.budget.model_copy(update={"trials": 2000})
    small_study.model_copy(update={"budget": budget}).save(tmp_path / "study.yaml")
    folder = RunFolder(tmp_path / "run")
    words = ["search", str(tmp_path / "study.yaml"), "--out", str(folder.path), "--device", "cpu"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen([sys.executable, "-m", "autolr", *words], stdout=log, stderr=log)
    try:
        wait_for(lambda: folder.journal.is_file() and len(SearchResult.load(folder.path).ended()) > 3)
        address: list[str] = []
        serving = (folder, "127.0.0.1", 0, address.append)
        threading.Thread(target=dashboard.serve, args=serving, daemon=True).start()
        wait_for(lambda: address)
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        problems = []
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.goto(address[0])
        for title in ("Convergence", "Pruning timeline", "η_Q and η_V"):
            page.wait_for_selector(f".gtitle:text-is('{title}')", state="attached", timeout=60_000)
        drawn = "[...document.querySelectorAll('.js-plotly-plot')].filter(one => one.querySelector('.gtitle'))"
        marks = page.evaluate(f"{drawn}.map(one => one.querySelectorAll('path').length)")
        assert len(marks) >= 6 and all(marks)
        assert page.locator(".ytitle:text-is('validation loss')").count() and process.poll() is None
        page.goto(f"{address[0]}/note")
        page.wait_for_selector("text=This search is not finished", timeout=60_000)
        before = page.locator("text=This search is not finished").text_content()
        seen = lambda: page.reload() and page.locator("text=This search is not finished").text_content(timeout=60_000)  # noqa: E731
        assert wait_for(lambda: seen() != before) and process.poll() is None  # it follows the search
        assert problems == []
        page.close()
    finally:
        process.kill()
        process.wait()


def test_how_soon_the_page_shows_is_measured_in_a_browser(tmp_path):
    command = [sys.executable, "-m", "studies.benchmarks.speed.report_page", "--quick", "--trials", "6"]
    root, environment = Path(__file__).resolve().parents[2], {**os.environ, "BROWSER_PATH": str(CHROME)}
    command += ["--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment)
    assert done.returncode == 0, done.stderr
    document = json.loads(next(tmp_path.glob("page-*.json")).read_text())
    assert document["settings"]["trials"] == 6 and len(document["rows"]) == 2
    assert 0 < document["figures"]["loaded_s"] <= document["figures"]["first_figures_s"]
