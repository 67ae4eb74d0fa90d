"""Reports in a real browser: every control works, nothing is loaded, no error, accessible, and fast when large.

Needs the dependency group `browser` and Chromium (XAIHUB_CHROMIUM names another one than on the path).
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.evaluate.test_html_report import HOSTILE, Made
from tests.evaluate.test_html_report import made as made
from tests.test_html_pages import explanation
from xaihub.api.compare import Comparison
from xaihub.evaluation.board import Board, Entry
from xaihub.evaluation.tables import board_table
from xaihub.explainers.page.document import document

playwright = pytest.importorskip("playwright.sync_api", reason="needs the dependency group browser")
CHROMIUM = os.environ.get("XAIHUB_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@dataclass
class Tab:
    """A page, with what it printed and what it loaded."""

    page: Any
    printed: list[str] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)

    def open(self, file: Path) -> Any:
        self.page.on("console", lambda message: self.printed.append(message.text))
        self.page.on("pageerror", lambda error: self.printed.append(str(error)))
        self.page.on("dialog", lambda dialog: self.printed.append(dialog.message))
        self.page.on("request", lambda request: self.loaded.append(request.url))
        self.page.goto(file.as_uri())
        return self.page

    def outside(self) -> list[str]:
        return [address for address in self.loaded if not address.startswith(("data:", "file:"))]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def tab(browser: Any) -> Iterator[Tab]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    yield Tab(context.new_page())
    context.close()


@pytest.fixture(scope="module")
def report(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("report") / "report.html"
    made.report(file)
    return file


def column(page: Any, table: str, number: int) -> list[str]:
    cells = page.locator(f"{table} tbody tr:visible > :nth-child({number})")
    return [str(cell.get_attribute("data-value")) for cell in cells.all()]


def until(page: Any, expression: str) -> None:
    """Wait until an expression is true; the page's policy forbids what Playwright's own waiting evaluates."""
    ends = time.perf_counter() + 10
    while not page.evaluate(expression):
        assert time.perf_counter() < ends, expression
        page.wait_for_timeout(20)


def serious(page: Any) -> list[Any]:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs the dependency group browser")
    found = axe.Axe().run(page).response["violations"]
    return [(item["id"], [node["html"] for node in item["nodes"]]) for item in found
            if item["impact"] in ("serious", "critical")]  # fmt: skip


def test_sorting_filtering_viewing_and_sliding(tab: Tab, report: Path) -> None:
    page = tab.open(report)
    board = "table.board[data-model=toy]"
    heading = page.locator(f"{board} thead th").nth(2)
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    known = [float(value) for value in column(page, board, 3) if value]
    assert known == sorted(known)
    assert len(known) > 1
    heading.locator("button").press("Enter")
    assert heading.get_attribute("aria-sort") == "descending"
    turned = column(page, board, 3)
    assert [float(value) for value in turned if value] == known[::-1]
    assert turned[-1] == ""  # missing values stay last

    page.select_option("#filter-class", "b")
    assert page.locator("#gallery .card:visible").count() == int(page.inner_text("#filter-status").split()[0])
    assert "recomputed" in page.inner_text(f"{board} caption")
    page.select_option("#filter-class", "")
    page.select_option("#filter-model", "1")
    assert not page.locator(board).is_visible()
    page.locator("#filters summary").click()
    page.get_by_role("checkbox", name="toy_filled").uncheck()
    assert page.locator("table.board:visible tr[data-explainer=toy_filled]:visible").count() == 0
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Reset").click()
    until(page, "document.getElementById('filter-count').textContent.startsWith('(4 of 4')")
    assert page.locator(board).is_visible()

    page.locator("#gallery .card").first.focus()
    page.keyboard.press("Enter")
    viewer = page.locator("#viewer")
    assert viewer.is_visible()
    first = page.inner_text("#viewer-title")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#viewer-title") != first
    slider, map_ = viewer.get_by_label("Opacity of the maps"), viewer.locator("img.map").first
    slider.focus()
    page.keyboard.press("Home")
    assert map_.evaluate("node => getComputedStyle(node).opacity") == "0"
    page.keyboard.press("End")
    assert map_.evaluate("node => getComputedStyle(node).opacity") == "1"
    assert map_.evaluate("node => node.complete && node.naturalWidth > 0")
    page.keyboard.press("Escape")
    assert not viewer.is_visible()
    assert page.evaluate("document.activeElement.className") == "card"
    assert not tab.printed
    assert tab.loaded == [report.as_uri(), *[a for a in tab.loaded if a.startswith("data:")]]


def test_names_and_summaries_that_look_like_markup_are_shown_as_text(tab: Tab, report: Path) -> None:
    page = tab.open(report)
    assert page.locator("#gallery .card b").all_inner_texts()[0] == f"{HOSTILE}.png"
    page.locator("#gallery .card").first.click()
    assert page.inner_text("#viewer-title") == f"{HOSTILE}.png"
    page.wait_for_timeout(200)
    assert not tab.printed
    assert not tab.outside()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_pages_are_accessible_and_fit(browser: Any, report: Path, scheme: str, width: int) -> None:
    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
    page = Tab(context.new_page()).open(report)
    assert serious(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator("#gallery .card").first.click()
    assert serious(page) == []
    context.close()


def test_the_pages_of_a_split_report_open_from_the_file(tab: Tab, made: Made, tmp_path: Path) -> None:
    made.report(tmp_path / "split.html", largest=20_000)
    page = tab.open(tmp_path / "split.html")
    page.locator("#images").scroll_into_view_if_needed()
    until(page, "document.querySelector('#gallery img').naturalWidth > 0")
    page.locator("#gallery .card").nth(1).click()
    page.wait_for_selector(".detail input[type=range]")
    assert page.locator("h1").inner_text() == "b.png"
    assert page.locator("img.map").count() > 2
    assert serious(page) == []
    page.get_by_role("link", name="all images").click()
    page.wait_for_selector("#gallery .card")
    assert not tab.printed
    assert not tab.outside()


def test_the_page_of_a_comparison_works_and_is_accessible(tab: Tab, tmp_path: Path) -> None:
    page = tab.open(Comparison(explanations=[[explanation(HOSTILE)]], failures=[]).save(tmp_path / "page.html"))
    page.get_by_label("Opacity of the maps").fill("30")
    assert page.locator("img.map").evaluate("node => getComputedStyle(node).opacity") == "0.3"
    assert page.get_by_role("img", name="sufficient set of test").is_visible()
    assert serious(page) == []
    assert not tab.printed


def large(explainers: int, images: int) -> str:
    """Return a report of explainers x images explanations with four metrics."""
    names, metrics = [f"explainer {n}" for n in range(explainers)], ["a", "b", "c", "d"]
    generator = np.random.default_rng(0)
    values = generator.normal(size=(images, explainers, 4)).round(4).tolist()
    entry = Entry(mean=0.5, low=0.4, high=0.6, count=images, failed=0)
    board = Board(
        model="m", metrics=metrics, directions=dict.fromkeys(metrics, True), axes=dict.fromkeys(metrics, ("x", "y")),
        explainers=names, controls=frozenset(), entries={(n, k): entry for n in names for k in metrics},
    )  # fmt: skip
    data = {
        "models": ["m"], "explainers": [{"name": name, "control": False} for name in names],
        "metrics": [{"name": m, "arrow": "↑", "better": "higher", "axes": ["x", "y"]} for m in metrics],
        "images": [{"name": f"{n}.png", "thumb": None, "href": None,
                    "cases": [[0, "cat", f"class {n % 50}", n % 3 > 0]]} for n in range(images)],
        "records": [[i, 0, e, *values[i][e]] for i in range(images) for e in range(explainers)],
    }  # fmt: skip
    return document("large", boards=[board_table(board)], judged=True, data=data)


def test_ten_thousand_records_open_and_sort_in_two_seconds(tab: Tab, tmp_path: Path) -> None:
    file = tmp_path / "large.html"
    file.write_text(large(20, 500), encoding="utf-8")
    started = time.perf_counter()
    page = tab.open(file)
    opened = time.perf_counter()
    for _ in range(2):
        page.locator("#records thead button").nth(4).click()
    until(page, "document.querySelector('#records th[aria-sort=descending]')")
    sorted_ = time.perf_counter()
    assert page.inner_text("#records-caption") == "10000 explanations"
    shown = [float(text) for text in page.locator("#records tbody td:nth-child(5)").all_inner_texts()]
    assert shown == sorted(shown, reverse=True)
    assert opened - started < 2
    assert sorted_ - opened < 2
    assert not tab.printed
