"""Two checkpoints of one architecture in one run: the paired difference of each explainer and metric."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from scipy.stats import wilcoxon

from tests.evaluate.toys import config
from xaihub.cli import cli
from xaihub.cli._app import App
from xaihub.evaluation import run as running
from xaihub.evaluation.bootstrap import interval
from xaihub.evaluation.checkpoints import Checkpoints, checkpoints
from xaihub.evaluation.estimate import estimate
from xaihub.evaluation.merge import merge
from xaihub.evaluation.plan import make_plan
from xaihub.evaluation.results import ScoreRow
from xaihub.evaluation.run import evaluate
from xaihub.evaluation.store import RunStore
from xaihub.hub import Hub


@pytest.fixture
def run(hub: Hub, photos: Path, store: RunStore) -> RunStore:
    chosen = config(photos, models=["toy2", "toy"], explainers=["toy_gradient", "toy_filled"], metrics=["toy_mean"])
    evaluate(hub, make_plan(hub, chosen), store)
    return store


def compared(store: RunStore, hub: Hub) -> Checkpoints:
    (found,) = checkpoints(store.scores(), store.structures, hub)
    return found


def test_the_second_checkpoint_minus_the_first_is_compared_image_by_image(run: RunStore, hub: Hub) -> None:
    found = compared(run, hub)
    assert (found.first, found.second) == ("toy2", "toy")  # in the order of the plan
    assert {one.explainer for one in found.changes} == {"toy_filled", "toy_gradient", "toy_noise"}
    values = {(row.model, row.explainer, row.image): row.value for row in run.rows()}
    images = sorted({image for *_, image in values})
    raw = {}
    for one in found.changes:
        paired = [values["toy", one.explainer, image] - values["toy2", one.explainer, image] for image in images]  # type: ignore[operator]
        assert (one.mean, one.low, one.high) == pytest.approx(interval(paired))
        assert one.count == 4
        raw[one.explainer] = 1.0 if not any(paired) else float(wilcoxon(paired).pvalue)
    assert all(one.p >= raw[one.explainer] - 1e-12 for one in found.changes)
    assert max(one.p for one in found.changes) <= 1
    assert {one.comparisons for one in found.changes} == {3}
    assert all(one.better == (one.mean > 0) for one in found.changes)
    assert checkpoints(run.rows(), run.structures, hub) == [found]  # from rows as from the file


def test_json_frame_and_terminal_show_it(hub: Hub, photos: Path, tmp_path: Path) -> None:
    words = ["evaluate", str(photos), "-m", "toy", "-m", "toy2", "-e", "toy_gradient", "-k", "toy_mean", "-q"]
    words += ["--timeout", "0"]
    shown = CliRunner().invoke(cli, [*words, "-o", str(tmp_path / "a")], obj=App(hub))
    assert "toy2 minus toy, paired by image\nexplainer     toy_mean\n" in shown.stdout
    printed = json.loads(CliRunner().invoke(cli, [*words, "-o", str(tmp_path / "b"), "--json"], obj=App(hub)).stdout)
    with RunStore(tmp_path / "b") as store:
        found = compared(store, hub)
    assert printed["checkpoints"] == [found.to_dict()]
    assert list(found.to_frame()["explainer"]) == [one.explainer for one in found.changes]


def test_other_architectures_are_not_compared(run: RunStore, hub: Hub) -> None:
    assert set(run.structures) == {"toy2", "toy"}
    assert len(set(run.structures.values())) == 1
    assert checkpoints(run.scores(), {"toy": "x", "toy2": "y"}, hub) == []
    assert checkpoints(run.scores(), {}, hub) == []


def test_merged_runs_compare_their_checkpoints(hub: Hub, photos: Path, tmp_path: Path) -> None:
    for name in ("toy", "toy2"):
        with RunStore(tmp_path / name, create=True) as one:
            evaluate(hub, make_plan(hub, config(photos, models=[name], metrics=["toy_mean"])), one)
            assert checkpoints(one.scores(), one.structures, hub) == []
    merged, _ = merge([tmp_path / "toy", tmp_path / "toy2"], tmp_path / "both")
    with merged:
        assert (compared(merged, hub).first, compared(merged, hub).second) == ("toy", "toy2")


def row(model: str, image: str, value: float, *, metric: str = "toy_mean", target: int = 0) -> ScoreRow:
    return ScoreRow(
        image=image, model=model, explainer="e", explainer_parameters={}, control=False, metric=metric,
        metric_parameters={}, value=value, curve=None, details={}, forward_passes=0, backward_passes=0, seconds=0,
        error=None, key=image + model, record={"target": {"index": target}, "predicted": {"index": 0}},
    )  # fmt: skip


def test_a_difference_of_one_sign_has_the_exact_p_value_and_is_named_by_class(hub: Hub) -> None:
    gains = np.random.default_rng(0).uniform(0.1, 1, size=8)
    rows = [row("a", str(place), 1.0) for place in range(8)]
    rows += [row("b", str(place), 1.0 + gain, target=int(place < 3)) for place, gain in enumerate(gains)]
    rows += [row("b", "only b", 9.0)]
    costs = [row(model, str(place), 5.0, metric="cost_seconds") for model in "ab" for place in range(8)]
    rows = [*costs, *rows]
    (found,) = checkpoints(rows, {"a": "s", "b": "s"}, hub)
    (change,) = found.changes
    assert change.p == pytest.approx(2.0**-7)
    assert change.significant
    assert (change.mean, change.count) == (pytest.approx(gains.mean()), 8)
    assert found.notes == [
        "a and b explain different classes for 3 of 8 images; give labels or a target to explain the same class"
    ]


def test_a_model_that_did_not_change_has_no_difference(hub: Hub) -> None:
    rows = [row(model, str(place), place / 7) for model in "ab" for place in range(8)]
    (found,) = checkpoints(rows, {"a": "s", "b": "s"}, hub)
    assert [(one.p, one.mean, one.low, one.high) for one in found.changes] == [(1, 0, 0, 0)]


def test_each_checkpoint_is_compared_with_the_first_of_its_architecture(hub: Hub) -> None:
    rows = [row(model, str(place), place + ord(model)) for model in "abcd" for place in range(4)]
    found = checkpoints(rows, {"c": "s", "a": "s", "d": "other", "b": "s"}, hub)
    assert [(one.first, one.second) for one in found] == [("c", "a"), ("c", "b")]


def test_a_dry_run_keeps_to_the_timeout(
    hub: Hub, photos: Path, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[float] = []

    class Watched(running.Isolation):
        def __init__(self, **settings: Any) -> None:
            given.append(settings["timeout"])
            super().__init__(**settings)

    monkeypatch.setattr(running, "Isolation", Watched)
    estimate(hub, make_plan(hub, config(photos, metrics=["toy_mean"])), store, timeout=7.5)
    assert given == [7.5]
