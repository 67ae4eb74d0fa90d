"""`xaihub.tune`: settings are chosen on one half of the images, and judged on the other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.evaluate.toys import Toys
from xaihub import (
    Case,
    Explainer,
    ExplainerSpec,
    Hub,
    Meta,
    Metric,
    MetricSpec,
    Model,
    Passes,
    ResolvedTarget,
    hookimpl,
)
from xaihub.api.parameters import Setting
from xaihub.api.tune import RESULT, Tuner
from xaihub.errors import ExplainerRefused, ParameterError
from xaihub.evaluation.store import RunStore
from xaihub.hub.host import PluginHost

CALLS: list[str] = []


class Dial(Explainer):
    """A map of one value, which is best at level 3; refuses above 8."""

    level: Annotated[float, Meta(ge=0, le=10)] = 5.0
    samples: Annotated[int, Meta(ge=1), Passes()] = 4

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Tensor:
        CALLS.append("explain")
        if self.level > 8:
            raise ExplainerRefused("the level is too high")
        for _ in range(self.samples):
            model(inputs)
        return torch.full((len(inputs), 1, *inputs.shape[2:]), self.level)


class Near(Metric):
    """How near the map is to 3, up to a value of the image; lower is better."""

    weight: float = 1.0

    def score(self, case: Case) -> float:
        level = float(case.explanation.values.mean())
        return self.weight * abs(level - 3) + float(case.scene.image.mean())


class Blind(Metric):
    """Reads the image only."""

    def score(self, case: Case) -> float:
        return float(case.scene.image.mean())


class Lucky(Metric):
    """Differs by the map in a way that means nothing."""

    def score(self, case: Case) -> float:
        seed = int(1e4 * float(case.explanation.values.mean()) + 1e6 * float(case.scene.image.std()))
        return float(np.random.default_rng(seed).normal())


class Dials:
    @hookimpl
    def xaihub_register_explainers(self) -> list[ExplainerSpec]:
        return [ExplainerSpec(name="dial", target=f"{__name__}:Dial")]

    @hookimpl
    def xaihub_register_metrics(self) -> list[MetricSpec]:
        better = {"Near": False, "Blind": True, "Lucky": True}
        specs = [
            MetricSpec(name=name.lower(), target=f"{__name__}:{name}", higher_is_better=up)
            for name, up in better.items()
        ]
        return [*specs, MetricSpec(name="undirected", target=f"{__name__}:Blind", higher_is_better=None)]


@pytest.fixture
def hub() -> Hub:
    host = PluginHost(entry_points=[])
    host.register(Toys(), name="toys")
    host.register(Dials(), name="dials")
    CALLS.clear()
    return Hub(host)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 20 * number + 20, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def tuner(hub: Hub, photos: Path, *params: str, metrics: Sequence[str] = ("near",), **changes: Any) -> Tuner:
    trials = changes.pop("trials", 12)
    settings = [Setting.parse(text) for text in params]
    return Tuner(
        hub, [str(photos)], explainer="dial", metrics=metrics, model="toy", params=settings, trials=trials,
        scalars=changes,
    )  # fmt: skip


def images_of(folder: Path) -> set[str]:
    with RunStore(folder) as store:
        return {row.image for row in store.rows()}


def test_a_better_setting_is_found_and_its_gain_is_measured_on_other_images(
    hub: Hub, photos: Path, tmp_path: Path
) -> None:
    found = tuner(hub, photos, budget=8).run(tmp_path / "out")
    (level,) = found.best.parameters.values()
    assert abs(level - 3) < 1
    assert found.best.objective == max(one.objective for one in found.tried if one.objective is not None)
    assert found.gain is not None
    assert found.gain.mean == pytest.approx(2 - abs(level - 3), abs=1e-5)
    assert found.better
    assert found.verdict.startswith("better than the defaults: gain +")
    assert found.command == f"xaihub explain IMAGE -m toy -e dial -p level={level} --budget 8"
    first, second = images_of(tmp_path / "out" / "development"), images_of(tmp_path / "out" / "test")
    assert len(first) == len(second) == found.images == found.gain.images == 6
    assert not first & second
    assert {one.passes for one in found.tried if not one.reason} == {8}  # every setting has the same budget
    assert json.loads((tmp_path / "out" / RESULT).read_text("utf-8"))["verdict"] == found.verdict
    assert found.to_frame()["objective"].notna().sum() == len([one for one in found.tried if not one.reason])


def test_a_setting_that_fails_is_reported_and_never_the_best(hub: Hub, photos: Path, tmp_path: Path) -> None:
    found = tuner(hub, photos, "level=3,9").run(tmp_path / "out")
    failed = next(one for one in found.tried if one.parameters == {"level": 9.0})
    assert (failed.objective, failed.scores) == (None, {})
    assert "the level is too high" in failed.reason
    assert found.best.parameters == {"level": 3.0}


@pytest.mark.parametrize(
    ("metric", "verdict"),
    [
        ("blind", "nothing better than the defaults was found: none of 11 other settings"),
        ("lucky", "nothing better than the defaults was shown: gain "),
    ],
)
def test_it_is_said_that_nothing_better_was_found(
    hub: Hub, photos: Path, tmp_path: Path, metric: str, verdict: str
) -> None:
    found = tuner(hub, photos, "level=0..8", metrics=[metric]).run(tmp_path / "out")
    assert found.verdict.startswith(verdict)
    assert not found.better
    assert found.command == "xaihub explain IMAGE -m toy -e dial"
    assert (tmp_path / "out" / "test").exists() == (metric == "lucky")


def test_of_several_metrics_the_signed_sum_decides(hub: Hub, photos: Path, tmp_path: Path) -> None:
    wanted = tuner(hub, photos, "level=4,7", "near.weight=2", metrics=["near", "blind"])
    found = wanted.run(tmp_path / "out")
    assert found.metrics == {"near": -1, "blind": 1}
    for one in found.tried:
        assert one.objective == pytest.approx(one.scores["blind"] - one.scores["near"])
        assert one.objective == pytest.approx(-2 * abs(one.parameters.get("level", 5.0) - 3), abs=1e-5)


def test_an_interrupted_search_continues_and_another_one_may_use_its_folder(
    hub: Hub, photos: Path, tmp_path: Path
) -> None:
    def stop(_text: str, done: int, _total: int) -> None:
        if done > 20:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        tuner(hub, photos, "level=0..8").run(out, watch=stop)
    assert CALLS
    whole = tuner(hub, photos, "level=0..8").run(out)
    assert len(CALLS) == 12 * 6 + 2 * 6  # each map is computed once
    assert tuner(hub, photos, "level=0..8").run(out).to_dict() == whole.to_dict()
    assert len(CALLS) == 12 * 6 + 2 * 6
    other = tuner(hub, photos, "level=0..8", seed=1, trials=4).run(out)
    assert len(other.tried) == 4
    assert other.images == 6


def test_copies_of_an_image_are_in_the_same_half(hub: Hub, photos: Path, tmp_path: Path) -> None:
    for number in range(12):
        (photos / f"copy{number}.png").write_bytes((photos / f"{number}.png").read_bytes())
    for half in tuner(hub, photos).halves:
        names = {Path(source).stem.removeprefix("copy") for source in half}
        assert len(half) == 2 * len(names)


def test_the_cost_is_that_of_the_defaults_times_the_number_of_maps(hub: Hub, photos: Path, tmp_path: Path) -> None:
    cost = tuner(hub, photos, trials=5).cost(tmp_path / "out")
    assert (cost.settings, cost.images) == (5, (6, 6))
    assert cost.forward_passes == 4 * (5 * 6 + 2 * 6)
    assert len(CALLS) == 1


@pytest.mark.parametrize(
    ("params", "changes", "reason"),
    [
        (("level=3",), {}, "dial has no parameter to search"),
        (("lvl=3,4",), {}, "dial has no parameter 'lvl'"),
        (("other.level=3,4",), {}, "nothing named 'other' is selected"),
        (("level=3,4", "samples=2"), {"budget": 8}, "contradict each other"),
        ((), {"metrics": ["undirected"]}, "metric 'undirected' has no better direction"),
        ((), {"limit": 3}, "3 different images are too few for two halves"),
        ((), {"trials": 1}, "1 trials are too few"),
    ],
)
def test_what_cannot_be_searched_is_refused(
    hub: Hub, photos: Path, params: tuple[str, ...], changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ParameterError, match=reason):
        tuner(hub, photos, *params, **changes)
    assert not CALLS


def test_defaults_that_fail_for_every_image_end_the_search(hub: Hub, photos: Path, tmp_path: Path) -> None:
    wanted = tuner(hub, photos, "level=9", "samples=1,2")
    with pytest.raises(ParameterError, match="the defaults have no score for any image.*the level is too high"):
        wanted.run(tmp_path / "out")
    assert wanted.cost(tmp_path / "cost").unknown
