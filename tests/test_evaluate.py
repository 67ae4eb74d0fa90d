"""Runs: nothing lost, nothing twice, whatever interrupts them."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from xaihub import (
    AdapterSpec,
    Case,
    Explainer,
    ExplainerSpec,
    Measurement,
    Metric,
    MetricSpec,
    Model,
    ModelAdapter,
    ModelRequest,
    Preprocessing,
    ResolvedTarget,
    hookimpl,
)
from xaihub.errors import ExplainerRefused, MetricRefused, OutputError, ParameterError, UnknownName
from xaihub.host import PluginHost
from xaihub.hub import Hub
from xaihub.masking import BaselineName, baseline_image
from xaihub.services.charts import curve_chart
from xaihub.services.evaluate import estimate, evaluate
from xaihub.services.evaluation import Choice, Config, check_models, make_plan, read_config
from xaihub.services.export import export, merge, plot
from xaihub.services.leaderboard import boards, interval
from xaihub.store import RunStore

CALLS: list[str] = []


class ToyAdapter(ModelAdapter):
    """Offers "toy", a small convolutional network with fixed weights."""

    def knows(self, name: str) -> bool:
        return name in ("toy", "toy2")

    def build(self, request: ModelRequest, device: torch.device) -> Model:
        generator = torch.Generator().manual_seed(len(request.name))
        module = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
        )
        for weight in module.parameters():
            weight.data = torch.randn(weight.shape, generator=generator)
        preprocessing = Preprocessing(
            spatial=[lambda image: image.resize((16, 16))], size=(3, 16, 16), mean=(0.5,) * 3, std=(0.5,) * 3
        )
        return Model(module, name=request.name, preprocessing=preprocessing, classes=("a", "b", "c"), device=device)


class ToyGradient(Explainer):
    """The gradient."""

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Tensor:
        CALLS.append("explain")
        inputs.requires_grad_()
        return torch.autograd.grad(target.score(model(inputs)).sum(), inputs)[0]


class ToyNoise(Explainer):
    """Noise of a width."""

    stochastic = True

    def __init__(self, *, width: float = 1.0) -> None:
        self.width = width

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Tensor:
        return torch.randn(len(inputs), 1, *inputs.shape[2:]) * self.width


class ToyFilled(Explainer):
    """What is hidden by a fill, over the whole picture."""

    def __init__(self, *, baseline: BaselineName = "mean") -> None:
        self.baseline = baseline

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Tensor:
        return torch.stack([row - baseline_image(self.baseline, model, row) for row in inputs])


class ToyRefusing(Explainer):
    """Refuses."""

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Tensor:
        raise ExplainerRefused("this network is too small")


class ToyMean(Metric):
    """The mean of the map."""

    def score(self, case: Case) -> float:
        CALLS.append("score")
        return float(case.heat.mean())


class ToyDrawn(Metric):
    """A random number plus the masked score: depends on the seed, uses the model, has a curve."""

    def __init__(self, *, label: str = "") -> None:
        self.label = label

    def score(self, case: Case) -> Measurement:
        drop = case.scene.memory.once("drop", lambda: float(case.scene.score(case.model(case.scene.image[None] * 0))))
        value = float(torch.rand(())) + drop
        return Measurement(value=value, curve=([0.0, 1.0], [value, 0.0]), details={"drop": drop})


class ToyTruth(Metric):
    """Needs a mask."""

    needs_truth = True

    def score(self, case: Case) -> float:
        assert case.scene.truth is not None
        return float(case.scene.truth.float().mean())


class ToyPool(Metric):
    """Looks at other pictures."""

    needs_pool = True

    def score(self, case: Case) -> float:
        if not len(case.scene.pool):
            raise MetricRefused("there is no other picture")
        return float(sum(float(image.mean()) for image, _ in case.scene.pool))


class Toys:
    """The toys as a plugin."""

    @hookimpl
    def xaihub_register_model_adapters(self) -> list[AdapterSpec]:
        return [AdapterSpec(name="toys", target=f"{__name__}:ToyAdapter")]

    @hookimpl
    def xaihub_register_explainers(self) -> list[ExplainerSpec]:
        made = {"toy_gradient": "ToyGradient", "toy_refusing": "ToyRefusing", "toy_filled": "ToyFilled"}
        specs = [ExplainerSpec(name=name, target=f"{__name__}:{target}") for name, target in made.items()]
        return [*specs, ExplainerSpec(name="toy_noise", target=f"{__name__}:ToyNoise", tags=("control",))]

    @hookimpl
    def xaihub_register_metrics(self) -> list[MetricSpec]:
        made = {"toy_mean": "ToyMean", "toy_drawn": "ToyDrawn", "toy_truth": "ToyTruth", "toy_pool": "ToyPool"}
        return [MetricSpec(name=name, target=f"{__name__}:{target}") for name, target in made.items()]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    import sys

    # importlib mode gives this file no importable name of its own.
    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or _this())
    host = PluginHost(entry_points=[])
    host.register(Toys(), name="toys")
    CALLS.clear()
    return Hub(host)


def _this() -> object:
    from types import SimpleNamespace

    return SimpleNamespace(**globals())


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def config(photos: Path, **changes: object) -> Config:
    settings = {
        "images": [str(photos)], "models": ["toy"], "explainers": ["toy_gradient"],
        "metrics": ["toy_mean", "toy_drawn", "toy_pool"], **changes,
    }  # fmt: skip
    return Config(**settings)  # type: ignore[arg-type]


def values(store: RunStore) -> list[tuple[str, str, str, str, float | None, str | None]]:
    return [(r.picture, r.model, r.explainer, r.metric, r.value, r.error) for r in store.rows()]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RunStore]:
    with RunStore(tmp_path / "run", create=True) as opened:
        yield opened


def test_every_picture_explainer_and_metric_gets_one_row(hub: Hub, photos: Path, store: RunStore) -> None:
    totals = evaluate(hub, make_plan(hub, config(photos)), store)
    assert totals.explanations == 4 * 2  # the control is added by itself
    assert totals.scores == len(store.rows()) == 4 * 2 * 3
    assert all(row.error is None for row in store.rows())
    assert {row.explainer for row in store.rows() if row.control} == {"toy_noise"}


def test_a_second_run_does_nothing(hub: Hub, photos: Path, store: RunStore) -> None:
    plan = make_plan(hub, config(photos))
    evaluate(hub, plan, store)
    CALLS.clear()
    again = evaluate(hub, plan, store)
    assert CALLS == []
    assert (again.explanations, again.scores, again.kept, again.forwards) == (0, 0, 24, 0)


def test_adding_a_metric_explains_nothing_again(hub: Hub, photos: Path, store: RunStore) -> None:
    evaluate(hub, make_plan(hub, config(photos, metrics=["toy_mean"])), store)
    CALLS.clear()
    evaluate(hub, make_plan(hub, config(photos, metrics=["toy_mean", "toy_drawn"])), store)
    assert CALLS == []
    assert len(store.rows()) == 16


def test_the_order_of_work_does_not_change_scores(hub: Hub, photos: Path, tmp_path: Path) -> None:
    with RunStore(tmp_path / "a", create=True) as a, RunStore(tmp_path / "b", create=True) as b:
        evaluate(hub, make_plan(hub, config(photos)), a)
        evaluate(hub, make_plan(hub, config(photos, metrics=["toy_pool"])), b)
        evaluate(hub, make_plan(hub, config(photos, metrics=["toy_drawn", "toy_mean"])), b)
        assert values(a) == values(b)


def test_a_picture_that_cannot_be_read_is_recorded_and_the_run_goes_on(hub: Hub, photos: Path, store: RunStore) -> None:
    (photos / "0broken.png").write_text("no picture")
    totals = evaluate(hub, make_plan(hub, config(photos)), store)
    assert totals.failed == 1
    ((source, reason),) = store.failed_pictures().items()
    assert source.endswith("0broken.png")
    assert "is not a picture" in reason
    assert len(store.rows()) == 24


def test_progress_counts_a_picture_that_is_passed_over(hub: Hub, photos: Path, store: RunStore, tmp_path: Path) -> None:
    (photos / "0broken.png").write_text("no picture")
    (tmp_path / "masks").mkdir()
    for number in range(4):
        Image.new("L", (24, 20), 255).save(tmp_path / "masks" / f"{number}.png")
    (tmp_path / "masks" / "1.png").write_text("no picture")
    told: list[tuple[str, int, int]] = []
    plan = make_plan(hub, config(photos, metrics=["toy_truth"], masks=str(tmp_path / "masks"), models=["toy", "toy2"]))
    evaluate(hub, plan, store, watch=lambda *report: told.append(report))
    firsts = {text: done for text, done, _ in reversed(told) if text.endswith("toy_gradient") and "of" not in text}
    assert {total for _, _, total in told} == {2 * 5 * 2}
    assert firsts == {f"{number}.png: toy_gradient": done for number, done in enumerate((0, 4, 6, 8))}
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    assert told[-1][1] == 20


def test_an_explainer_that_refuses_is_recorded_with_its_reason(hub: Hub, photos: Path, store: RunStore) -> None:
    plan = make_plan(hub, config(photos, explainers=["toy_refusing"], controls=False))
    totals = evaluate(hub, plan, store)
    assert totals.failed == 4
    assert {row.error for row in store.rows()} == {"this network is too small"}
    assert evaluate(hub, plan, store, retry=False).failed == 0
    assert evaluate(hub, plan, store, retry=True).failed == 4


@pytest.mark.parametrize(
    ("target", "broken", "says", "count"),
    [("top1 vs a", "9.png", "with itself", 4), (None, "2.png", "not a picture", 1)],
)
def test_a_picture_without_a_target_or_a_mask_is_recorded_and_the_run_goes_on(
    hub: Hub, photos: Path, store: RunStore, tmp_path: Path, target: str | None, broken: str, says: str, count: int
) -> None:
    (tmp_path / "masks").mkdir()
    for number in range(4):
        Image.new("L", (24, 20), 255).save(tmp_path / "masks" / f"{number}.png")
    (tmp_path / "masks" / broken).write_text("no picture")
    plan = make_plan(hub, config(photos, metrics=["toy_truth"], masks=str(tmp_path / "masks"), target=target))
    totals = evaluate(hub, plan, store)
    failures = store.failed_pictures()
    assert totals.failed == len(failures) == count
    assert all(says in reason for reason in failures.values())
    assert len(store.rows()) == 2 * (4 - count)


def test_labels_choose_the_class(hub: Hub, photos: Path, store: RunStore, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("file,class_index\n" + "".join(f"{n}.png,{n % 3}\n" for n in range(4)))
    evaluate(hub, make_plan(hub, config(photos, labels=str(tmp_path / "labels.csv"), metrics=["toy_mean"])), store)
    assert {Path(r.picture).stem: r.record["target"]["index"] for r in store.rows()} == {"0": 0, "1": 1, "2": 2, "3": 0}


def test_masks_and_boxes_go_through_the_models_own_geometry(
    hub: Hub, photos: Path, store: RunStore, tmp_path: Path
) -> None:
    (tmp_path / "boxes.csv").write_text(
        "file,left,top,right,bottom\n" + "".join(f"{n}.png,0,0,11,19\n" for n in range(4))  # the left half of 24 x 20
    )
    chosen = config(photos, metrics=["toy_truth"], boxes=str(tmp_path / "boxes.csv"), controls=False)
    evaluate(hub, make_plan(hub, chosen), store)
    assert [row.value for row in store.rows()] == [0.5] * 4


def test_an_estimate_counts_the_first_picture_and_multiplies(
    hub: Hub, photos: Path, store: RunStore, tmp_path: Path
) -> None:
    plan = make_plan(hub, config(photos, metrics=["toy_mean", "toy_drawn"]))
    with RunStore(tmp_path / "trial", create=True) as trial:
        cost = estimate(hub, plan, trial)
    real = evaluate(hub, plan, store)
    assert cost.forwards == real.forwards
    assert cost.backwards == real.backwards


def test_counted_passes_are_those_that_were_made(hub: Hub, photos: Path, store: RunStore) -> None:
    totals = evaluate(hub, make_plan(hub, config(photos, metrics=["toy_mean"], controls=False)), store)
    assert totals.forwards == 4 + 4  # one to fix the class, one of the gradient
    assert totals.backwards == 4


def _fork_and_kill(hub: Hub, photos: Path, folder: Path, delay: float) -> None:
    """Run in a child that is killed after `delay` seconds."""
    child = os.fork()
    if child == 0:
        try:
            with RunStore(folder, create=True) as opened:
                evaluate(hub, make_plan(hub, config(photos)), opened)
        finally:
            os._exit(0)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_killed_at_twenty_moments_and_resumed_the_rows_are_those_of_an_undisturbed_run(
    hub: Hub, photos: Path, store: RunStore, tmp_path: Path
) -> None:
    plan = make_plan(hub, config(photos))
    whole = evaluate(hub, plan, store)
    moments = random.Random(0)
    interrupted = 0
    for trial in range(20):
        folder = tmp_path / f"killed{trial}"
        _fork_and_kill(hub, photos, folder, moments.uniform(0, whole.seconds))
        with RunStore(folder, create=True) as resumed:
            before = len(resumed.rows())
            interrupted += 0 < before < len(store.rows())
            totals = evaluate(hub, plan, resumed)
            assert values(resumed) == values(store)
            assert totals.scores == len(store.rows()) - before
            assert resumed._db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        assert not list((folder / "maps").glob("*/.*"))
    assert interrupted >= 3  # the moments really fell into the work


def test_a_full_disk_stops_the_run_with_one_line_and_resuming_completes_it(
    hub: Hub, photos: Path, store: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(hub, config(photos))
    evaluate(hub, plan, store)
    real, left = Path.write_bytes, iter(range(3))

    def fill_up(self: Path, data: bytes) -> int:
        if next(left, None) is None:
            raise OSError(28, "No space left on device")
        return real(self, data)

    with RunStore(tmp_path / "full", create=True) as full:
        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_bytes", fill_up)
            with pytest.raises(OutputError, match="No space left on device"):
                evaluate(hub, plan, full)
        assert 0 < len(full.rows()) < len(store.rows())
        evaluate(hub, plan, full)
        assert values(full) == values(store)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte, which only some users may make."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    if made.returncode:
        pytest.skip("this user may not mount file systems")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("left", [0, 8, 16, 32, 64, 96], ids="{}k left".format)
def test_a_disk_that_is_really_full_loses_nothing_and_the_run_is_completed_afterwards(
    hub: Hub, photos: Path, store: RunStore, small_disk: Path, left: int
) -> None:
    plan = make_plan(hub, config(photos))
    evaluate(hub, plan, store)
    with RunStore(small_disk / "run", create=True) as full:
        free = os.statvfs(small_disk)
        (small_disk / "ballast").write_bytes(bytes(free.f_bavail * free.f_frsize - 1024 * left))
        with pytest.raises(OutputError, match="No space left|full"):
            evaluate(hub, plan, full)
        before = len(full.rows())
        assert before < len(store.rows())
    (small_disk / "ballast").unlink()
    with RunStore(small_disk / "run") as resumed:
        assert len(resumed.rows()) == before
        totals = evaluate(hub, plan, resumed)
        assert values(resumed) == values(store)
        assert totals.scores == len(store.rows()) - before
        assert resumed._db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"


def test_a_result_is_keyed_by_what_is_in_the_files_that_its_parameters_name(
    hub: Hub, photos: Path, store: RunStore
) -> None:
    grey = photos.parent / "grey.png"
    made = []
    for level in (100, 100, 120):
        Image.new("L", (8, 8), level).save(grey)
        plan = make_plan(
            hub,
            config(
                photos, explainers=[Choice(name="toy_filled", params={"baseline": f"image:{grey}"})], controls=False
            ),
        )
        made.append(evaluate(hub, plan, store).explanations)
    assert made == [4, 0, 4]


def test_merging_two_halves_equals_the_whole(hub: Hub, photos: Path, store: RunStore, tmp_path: Path) -> None:
    evaluate(hub, make_plan(hub, config(photos, metrics=["toy_mean"])), store)
    for name, explainers in (("a", ["toy_gradient"]), ("b", ["toy_noise"])):
        with RunStore(tmp_path / name, create=True) as half:
            chosen = config(photos, metrics=["toy_mean"], explainers=explainers, controls=False)
            half.set_config({"explainers": explainers})
            evaluate(hub, make_plan(hub, chosen), half)
    made, aside = merge([tmp_path / "a", tmp_path / "b"], tmp_path / "ab")
    with made as merged:
        assert aside == 0
        assert [row[4] for row in values(merged)] == [row[4] for row in values(store)]
        assert merged.config["explainers"] == ["toy_gradient", "toy_noise"]


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
    charts = dict(curve_chart(board, rows))
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


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("images: [photos]\nmetric: [toy_mean]\n", 2, "unknown field `metric`"),
        ("images: [photos]\nseed: many\n", 2, "expected `int`"),
        ("images:\n  - photos\nmetrics:\n  - toy_mean\n  - toy_meen\n", 5, "did you mean 'toy_mean'"),
        ("images: [photos]\nexplainers:\n  - name: toy_noise\n    params: {widht: 2}\n", 3, "did you mean 'width'"),
        ("images: [photos]\nmetrics: [toy_truth]\n", 2, "none are given"),
        ("models: [toy]\nimages: [nowhere]\n", 2, "there is no file or folder 'nowhere'"),
        ("images: [photos]\nmasks: nowhere\n", 2, "there is no file or folder 'nowhere'"),
        ("images: [photos]\nlabels: nowhere.csv\n", 2, "cannot read 'nowhere.csv'"),
        ("images: !!python/name:os.system\n", 1, "could not determine a constructor"),
        ("images: [photos\n", 2, "expected ',' or ']'"),
        ("images: []\n", 1, "of length >= 1"),
        ("images: [photos]\nlimit: 0\n", 2, "expected `int` >= 1"),
        ("images: [photos]\nbatch_size: -3\n", 2, "expected `int` >= 1"),
        ("images: [photos]\nseed: 99999999999999999999999\n", 2, "expected `int`"),
        ("images: [photos]\nmodels: []\n", 2, "of length >= 1"),
        ("images: [photos]\nmodels:\n  - toy\n  - tou\n", 4, "no model is named 'tou'"),
        ("images: [photos]\ndevice: gpu\n", 2, "there is no device called 'gpu'"),
        ("images: [photos]\ntarget: nothing\n", 2, "no class is named 'nothing'"),
        ("images: [photos]\nlabels: far.csv\n", 2, "class 3 of '0.png' is out of range"),
        ("images: [photos]\nlabels: part.csv\n", 2, "is '1.5', not an index"),
        ("images: [photos]\nlabels: nan.csv\n", 2, "is 'nan', not a number"),
        ("images: [photos]\nboxes: other.csv\n", 2, "no picture is named in 'other.csv'"),
        ("images: [photos]\nmasks: other\n", 2, "no mask in 'other' has a picture's name"),
        ("images: [photos]\nexplainers: []\ncontrols: false\n", 2, "no explainer"),
        ("images: [photos]\nexplainers:\n  - {name: toy_filled, params: {baseline: purple}}\n", 3, "'purple'"),
    ],
)
def test_a_wrong_config_is_refused_naming_line_and_key(
    hub: Hub, photos: Path, monkeypatch: pytest.MonkeyPatch, text: str, line: int, says: str
) -> None:
    monkeypatch.chdir(photos.parent)
    Path("bench.yaml").write_text(text)
    for name, row in {"far": "0.png,3", "part": "0.png,1.5", "nan": "0.png,nan"}.items():
        Path(f"{name}.csv").write_text(f"file,class_index\n{row}\n")
    Path("other.csv").write_text("file,left,top,right,bottom\nother.png,0,0,2,2\n")
    Path("other").mkdir()
    Image.new("L", (8, 8)).save("other/other.png")
    defaults = "models: [toy]\n" if "models" not in text else ""
    defaults += "" if "explainers" in text else "explainers: [toy_gradient]\n"
    defaults += "" if "metrics" in text else "metrics: [toy_mean]\n"
    Path("bench.yaml").write_text(text + defaults)

    def checked() -> None:
        chosen, file = read_config("bench.yaml")
        check_models(hub, make_plan(hub, chosen, file), file)

    with pytest.raises((ParameterError, UnknownName, OutputError)) as caught:
        checked()
    assert f"line {line}" in str(caught.value)
    assert says in str(caught.value)
