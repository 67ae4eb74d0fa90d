"""What is made of a run: merged runs, exports, charts and tables."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.evaluate.toys import config, values
from xaihub.evaluation.bootstrap import interval
from xaihub.evaluation.charts import curve_chart, plot
from xaihub.evaluation.columns import ListedScores
from xaihub.evaluation.config import Choice
from xaihub.evaluation.export import export
from xaihub.evaluation.leaderboard import boards
from xaihub.evaluation.merge import merge
from xaihub.evaluation.plan import make_plan
from xaihub.evaluation.results import ScoreRow
from xaihub.evaluation.run import evaluate
from xaihub.evaluation.store import RunStore
from xaihub.hub import Hub


def test_merging_two_halves_equals_the_whole(hub: Hub, photos: Path, store: RunStore, tmp_path: Path) -> None:
    evaluate(hub, make_plan(hub, config(photos, metrics=["toy_mean"])), store)
    for name, explainers in (("a", ["toy_gradient"]), ("b", ["toy_noise"])):
        with RunStore(tmp_path / name, create=True) as half:
            chosen = config(photos, metrics=["toy_mean"], explainers=explainers, controls=False)
            evaluate(hub, make_plan(hub, chosen), half)
    made, aside = merge([tmp_path / "a", tmp_path / "b"], tmp_path / "ab")
    with made as merged:
        assert aside == 0
        assert [row[4] for row in values(merged)] == [row[4] for row in values(store)]
        assert merged.config.explainers == ["toy_gradient", "toy_noise"]


def test_export_writes_one_line_a_score(hub: Hub, photos: Path, store: RunStore, tmp_path: Path) -> None:
    evaluate(hub, make_plan(hub, config(photos)), store)
    text = export(store, "csv", None)
    assert text is not None
    assert len(text.splitlines()) == 25
    export(store, "json", tmp_path / "scores.json")
    assert (tmp_path / "scores.json").read_text().count('"metric"') == 24


def test_parquet_holds_the_same_rows(hub: Hub, photos: Path, store: RunStore, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    pandas = pytest.importorskip("pandas")
    evaluate(hub, make_plan(hub, config(photos)), store)
    export(store, "parquet", tmp_path / "scores.parquet")
    assert list(pandas.read_parquet(tmp_path / "scores.parquet")["value"]) == [row.value for row in store.rows()]


def test_a_partitioned_table_holds_the_same_rows_in_a_file_per_metric(
    hub: Hub, photos: Path, store: RunStore, tmp_path: Path
) -> None:
    pytest.importorskip("pyarrow")
    pandas = pytest.importorskip("pandas")
    (photos / "broken.png").write_text("no image")
    evaluate(hub, make_plan(hub, config(photos)), store)
    export(store, "parquet", tmp_path / "scores", partitioned=True)
    assert len(list((tmp_path / "scores").glob("model=toy/metric=*/part-0.parquet"))) == 3
    found = pandas.read_parquet(tmp_path / "scores").sort_values(["metric", "explainer", "image"])
    assert list(found["value"]) == [row.value for row in store.rows()]
    assert list(found["metric"]) == [row.metric for row in store.rows()]
    assert list(pandas.read_parquet(tmp_path / "scores" / "_failed.parquet")["image"]) == [str(photos / "broken.png")]


def test_charts_are_drawn_for_curves_and_costs(hub: Hub, photos: Path, store: RunStore, tmp_path: Path) -> None:
    evaluate(hub, make_plan(hub, config(photos)), store)
    rows = store.rows()
    charts = plot(boards(rows, hub), rows, tmp_path / "charts")
    assert {"curve_toy_drawn__toy.png", "cost_toy_mean__toy.png"} <= {path.name for path in charts}
    for path in charts:
        with Image.open(path) as image:
            assert image.width > 600


def test_charts_keep_settings_of_one_method_and_metric_apart(hub: Hub, photos: Path, store: RunStore) -> None:
    explainers = [Choice("toy_noise", {"width": 1}), Choice("toy_noise", {"width": 2})]
    metrics = [Choice("toy_drawn", {"label": "here/a b"}), Choice("toy_drawn", {"label": "c"})]
    evaluate(hub, make_plan(hub, config(photos, explainers=explainers, metrics=metrics)), store)
    rows = store.rows()
    (board,) = boards(rows, hub)
    charts = dict(curve_chart(board, ListedScores.of(rows)[0]))
    assert sorted(charts) == ["curve_toy_drawn_label=c", "curve_toy_drawn_label=here_a_b"]
    for figure in charts.values():
        lines = figure.axes[0].get_lines()
        assert [line.get_label() for line in lines] == ["toy_noise width=1.0", "toy_noise width=2.0"]
    assert len(plot([board], rows, store.folder / "charts")) == 4


def test_the_board_has_the_mean_of_the_rows_and_an_interval_around_it(hub: Hub, photos: Path, store: RunStore) -> None:
    evaluate(hub, make_plan(hub, config(photos)), store)
    (board,) = boards(store.rows(), hub)
    own = [r.value for r in store.rows() if (r.explainer, r.metric) == ("toy_gradient", "toy_mean")]
    entry = board.entries["toy_gradient", "toy_mean"]
    assert entry.mean == pytest.approx(np.mean(own))
    assert min(own) <= entry.low <= entry.mean <= entry.high <= max(own)  # type: ignore[type-var]
    assert board.explainers[-1] == "toy_noise"
    assert entry.best


def test_the_bootstrap_interval_covers_the_mean_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        _, low, high = interval(list(generator.normal(size=40)))
        hits += low <= 0 <= high
    assert 0.88 <= hits / 200 <= 0.99


def test_one_metric_with_two_settings_gets_two_columns(hub: Hub, photos: Path, store: RunStore) -> None:
    chosen = config(
        photos, explainers=[Choice("toy_noise", {"width": 1}), Choice("toy_noise", {"width": 2})], metrics=["toy_mean"]
    )
    evaluate(hub, make_plan(hub, chosen), store)
    (board,) = boards(store.rows(), hub)
    assert board.explainers == ["toy_noise width=1.0", "toy_noise width=2.0"]


def test_a_method_that_refuses_most_images_is_not_called_best_for_the_rest(hub: Hub) -> None:
    blank: Any = {
        "model": "m", "explainer_parameters": {}, "control": False, "metric": "toy_mean", "metric_parameters": {},
        "curve": None, "details": {}, "forward_passes": 0, "backward_passes": 0, "seconds": 0.0,
        "key": "", "record": {},
    }  # fmt: skip
    rows = [
        ScoreRow(**blank, image=str(number), explainer=name, value=value, error=None if value else "refused")
        for name, values in (("a", [0.95] + 9 * [None]), ("b", [1.0] + 9 * [0.7]))
        for number, value in enumerate(values)
    ]
    (board,) = boards(rows, hub)
    assert board.entries["b", "toy_mean"].best
    assert not board.entries["a", "toy_mean"].best
    assert board.entries["a", "toy_mean"].count == 1
    assert any('different images for toy_mean; "best" uses the 1 images they share' in note for note in board.notes)


def test_the_axes_of_a_chart_are_the_metrics_own(hub: Hub, photos: Path, store: RunStore) -> None:
    evaluate(hub, make_plan(hub, config(photos, metrics=["toy_drawn"])), store)
    rows = store.rows()
    (board,) = boards(rows, hub)
    named = replace(board, axes={"toy_drawn": ("depth", "likeness")})
    (figure,) = dict(curve_chart(named, ListedScores.of(rows)[0])).values()
    assert (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()) == ("depth", "likeness")
