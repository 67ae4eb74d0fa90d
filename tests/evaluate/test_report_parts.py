"""What a report shows of several budgets and of checkpoints, and the curves that its filters need."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.evaluate.test_budgets import chosen
from tests.evaluate.test_budgets import sampling as sampling
from tests.test_html_pages import blocks, elsewhere
from xaihub.evaluation.board import labelled
from xaihub.evaluation.config import Choice
from xaihub.evaluation.plan import make_plan
from xaihub.evaluation.report.series import series
from xaihub.evaluation.report.write import write_report
from xaihub.evaluation.run import evaluate
from xaihub.evaluation.store import RunStore
from xaihub.hub import Hub
from xaihub.hub.host import PluginHost


def reported(hub: Hub, photos: Path, store: RunStore, **changes: Any) -> str:
    evaluate(hub, make_plan(hub, chosen(photos, **changes)), store)
    file = store.folder / "report.html"
    write_report(store, hub, file)
    return file.read_text("utf-8")


def test_explainers_that_differ_in_budget_are_one_curve(sampling: Hub, photos: Path, store: RunStore) -> None:
    page = reported(sampling, photos, store)
    data = blocks(page)[0]
    curves = {item["name"]: (item.get("series"), item.get("budget")) for item in data["explainers"]}
    assert curves == {
        "toy_gradient": (None, None), "toy_sampled samples=4": ("toy_sampled", "4 passes"),
        "toy_sampled samples=16": ("toy_sampled", "16 passes"), "toy_sampled samples=64": ("toy_sampled", "64 passes"),
        "toy_noise": (None, None),
    }  # fmt: skip
    spent = {data["explainers"][point["explainer"]]["name"]: point["x"] for point in data["points"]}
    assert spent["toy_sampled samples=16"] == 16
    assert 'id="budget-charts"' in page
    assert 'href="#budget"' in page
    assert not elsewhere(page)


def test_other_parameters_make_curves_of_their_own(sampling: Hub, photos: Path, store: RunStore) -> None:
    explainers = [Choice("toy_sampled", {"scale": scale}) for scale in (0.5, 2.0)]
    evaluate(sampling, make_plan(sampling, chosen(photos, explainers=explainers, budget=[4, "0.05s"], limit=1)), store)
    found = series(labelled(store.rows()), sampling)
    assert set(found.values()) == {
        (f"toy_sampled scale={scale}", budget) for scale in (0.5, 2.0) for budget in ("4 passes", "0.05 s")
    }


def test_one_budget_is_no_curve(sampling: Hub, photos: Path, store: RunStore) -> None:
    assert 'id="budget-charts"' not in reported(sampling, photos, store, budget=4)


def test_explainers_that_are_not_installed_any_more_are_on_no_curve(
    sampling: Hub, photos: Path, store: RunStore
) -> None:
    evaluate(sampling, make_plan(sampling, chosen(photos)), store)
    assert series(labelled(store.rows()), Hub(PluginHost(entry_points=[]))) == {}


@pytest.fixture
def page(sampling: Hub, photos: Path, store: RunStore) -> str:
    return reported(sampling, photos, store, models=["toy", "toy2"], explainers=["toy_gradient"], budget=None)


def test_checkpoints_are_compared_in_a_table(page: str) -> None:
    (section,) = re.findall(r'<section id="checkpoints".*?</section>', page, re.DOTALL)
    assert "<h3>toy2 minus toy</h3>" in section
    assert section.count("<tr>") + section.count('<tr class="control">') == 1 + 2
    assert section.count(">no difference found<") == 2  # four images are too few
    assert 'href="#checkpoints"' in page


def test_one_model_has_no_checkpoints(sampling: Hub, photos: Path, store: RunStore) -> None:
    assert 'id="checkpoints"' not in reported(sampling, photos, store, budget=None)
