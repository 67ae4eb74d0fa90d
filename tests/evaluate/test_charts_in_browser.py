"""Charts of a report in a real browser: they follow the filters, and have their numbers as a table.

Needs what test_report_in_browser.py needs.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.evaluate.test_budgets import Sampling
from tests.evaluate.test_html_report import Made
from tests.evaluate.test_html_report import made as made
from tests.evaluate.test_report_in_browser import Tab, pytestmark, serious
from tests.evaluate.test_report_in_browser import browser as browser
from tests.evaluate.test_report_in_browser import tab as tab
from tests.evaluate.toys import config
from tests.test_html_pages import blocks
from xaihub.evaluation.plan import make_plan
from xaihub.evaluation.report.write import write_report
from xaihub.evaluation.run import evaluate
from xaihub.evaluation.store import RunStore
from xaihub.hub import Hub
from xaihub.hub.host import PluginHost

__all__ = ["pytestmark"]


@pytest.fixture(scope="module")
def reports(made: Made, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The report of two checkpoints with three budgets, whole and split."""
    host, folder = PluginHost(entry_points=[]), tmp_path_factory.mktemp("budgets")
    host.register(Sampling(), name="toys")
    hub = Hub(host)
    chosen = config(
        made.photos, models=["toy", "toy2"], explainers=["toy_sampled", "toy_gradient"], budget=[4, 16, 64],
        metrics=["toy_mean", "toy_drawn"], labels=str(made.photos.parent / "labels.csv"),
    )  # fmt: skip
    with RunStore(folder / "run", create=True) as store:
        evaluate(hub, make_plan(hub, chosen), store)
        write_report(store, hub, folder / "whole.html")
        write_report(store, hub, folder / "split.html", largest=20_000)
    return folder / "whole.html", folder / "split.html"


def lone_class(report: Path) -> tuple[str, int]:
    """Return a class of the first model that only one image has, and the number of the image."""
    images = blocks(report.read_text("utf-8"))[0]["images"]
    classes = [next(case[2] for case in image["cases"] if case[0] == 0) for image in images]
    (name, _), *_ = [item for item in Counter(classes).items() if item[1] == 1]
    return name, classes.index(name)


def lines(page: Any, box: str) -> set[str]:
    """Return what charts draw: lines and the numbers of their axes."""
    return {str(chart.inner_html()) for chart in page.locator(f"{box} svg[role=img]").all()}


def test_mean_curves_are_those_of_the_images_that_the_filters_leave(tab: Tab, reports: tuple[Path, Path]) -> None:
    page, (name, _) = tab.open(reports[0]), lone_class(reports[0])
    page.select_option("#filter-model", "0")
    everything = lines(page, "#curve-charts")
    assert page.inner_text("#curve-note") == "Mean over all images"
    page.select_option("#filter-class", name)
    assert page.inner_text("#curve-note") == "Mean over the images that the filters leave"
    assert page.inner_text("#findings-note") == "Of all images, whatever the filters."
    filtered = lines(page, "#curve-charts")
    assert filtered != everything
    page.locator("#gallery .card").first.click()
    assert lines(page, "#viewer .charts") == filtered  # of one image, the mean is its own curve
    page.keyboard.press("Escape")
    page.select_option("#filter-class", "")
    assert lines(page, "#curve-charts") == everything
    assert not tab.printed


def test_a_split_report_says_that_its_curves_ignore_the_filter(tab: Tab, reports: tuple[Path, Path]) -> None:
    page, (name, _) = tab.open(reports[1]), lone_class(reports[1])
    everything = lines(page, "#curve-charts")
    page.select_option("#filter-class", name)
    assert "whatever the class and the prediction" in page.inner_text("#curve-note")
    assert lines(page, "#curve-charts") == everything
    assert not tab.printed


def test_quality_against_budget_is_drawn_for_each_explainer_and_follows_the_filters(
    tab: Tab, reports: tuple[Path, Path]
) -> None:
    page, (name, image) = tab.open(reports[0]), lone_class(reports[0])
    page.select_option("#filter-model", "0")
    chart = page.locator("#budget-charts figure").first
    assert chart.locator("svg[role=img]").get_attribute("aria-label").startswith("toy_")
    assert chart.locator("circle").count() >= 3 + 1  # toy_sampled, toy_gradient, and their marks in the legend
    chart.locator("summary").click()
    rows = [row.inner_text().split("\t") for row in chart.locator("tbody tr").all()]
    assert [row[:3] for row in rows if row[0] == "toy_sampled"] == [
        ["toy_sampled", "4 passes", "4"], ["toy_sampled", "16 passes", "16"], ["toy_sampled", "64 passes", "64"],
    ]  # fmt: skip
    data = blocks(reports[0].read_text("utf-8"))[0]
    metric = next(n for n, one in enumerate(data["metrics"]) if one["name"] in chart.locator("caption").inner_text())
    means = {data["explainers"][p["explainer"]].get("budget"): p["mean"] for p in data["points"]
             if p["model"] == 0 and p["metric"] == metric}  # fmt: skip
    assert [float(row[3]) for row in rows if row[0] == "toy_sampled"] == pytest.approx(
        [means[f"{budget} passes"] for budget in (4, 16, 64)], rel=1e-2
    )
    page.select_option("#filter-class", name)
    chart = page.locator("#budget-charts figure").first
    chart.locator("summary").click()
    own = {data["explainers"][r[2]].get("budget"): r[3 + metric] for r in data["records"] if r[:2] == [image, 0]}
    cells = [row.inner_text().split("\t") for row in chart.locator("tbody tr").all()]
    assert [float(row[3]) for row in cells if row[0] == "toy_sampled"] == pytest.approx(
        [own[f"{budget} passes"] for budget in (4, 16, 64)], rel=1e-2
    )
    chart.locator(".legend button").first.press("Enter")
    assert chart.locator("svg g.faint").count() >= 1
    assert not tab.printed
    assert not tab.outside()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_new_parts_are_accessible_and_fit(
    browser: Any, reports: tuple[Path, Path], scheme: str, width: int
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
    page = Tab(context.new_page()).open(reports[0])
    for summary in page.locator("#budget summary, .pairs > summary").all():
        summary.click()
    assert serious(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    context.close()


def test_paired_comparisons_sort_and_hide_with_their_model(tab: Tab, reports: tuple[Path, Path]) -> None:
    page = tab.open(reports[0])
    box = page.locator(".pairs[data-model=toy]")
    box.locator("summary").click()
    heading = box.locator("th[data-kind=number]").nth(1)
    heading.locator("button").click()
    shown = [float(cell.get_attribute("data-value")) for cell in box.locator("tbody tr td:nth-child(4)").all()]
    assert len(shown) == 2 * 10
    assert shown == sorted(shown)
    page.select_option("#filter-model", "1")
    assert not box.is_visible()
    assert page.locator(".pairs[data-model=toy2]").is_visible()
    assert "toy2 minus toy" in page.inner_text("#checkpoints")
    assert not tab.printed
