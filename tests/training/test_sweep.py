"""A sweep over a parameter of an objective: one run per value, a rule, a report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.training import toys
from xaihub.errors import ParameterError, UnknownName
from xaihub.hub import Hub
from xaihub.specs import Judged
from xaihub.training import run as service
from xaihub.training.config import Config, checked
from xaihub.training.sweep import Report, Trial, choose, markdown, parse, sweep

JUDGED = [
    Judged(explainer="saliency", parameters={"absolute": False}, metrics=("saliency_stability", "point_fidelity")),
    Judged(explainer="lime", parameters={"features": "grid:2", "samples": 16}, metrics=("point_fidelity",)),
]


def plan(images: Path, **values: Any) -> Config:
    return checked({**toys.plan(images, **{"objective": "expo-stability", "epochs": 2, **values})})


def trial(value: str, loss: float, accuracy: float) -> Trial:
    return Trial(value=value, card="", loss=loss, accuracy=accuracy, scores={}, reasons={})


@pytest.mark.parametrize(
    ("others", "taken"),
    [
        ([("0.1", 1.019, 0.9), ("1", 1.03, 0.9)], "0.1"),
        ([("0.1", 1.03, 0.9), ("1", 0.9, 0.9)], "1"),
        ([("0.1", 0.9, 0.894), ("1", 0.9, 0.8)], "0"),
        ([("0.1", 0.9, 0.895), ("1", 0.9, 0.8)], "0.1"),
        ([("0.1", float("nan"), 0.9), ("1", 2.0, 0.9)], "0"),
    ],
)
def test_the_strongest_value_that_costs_hardly_anything_is_taken(
    others: list[tuple[str, float, float]], taken: str
) -> None:
    trials = [trial("0", 1.0, 0.9), *(trial(*other) for other in others)]

    assert choose(trials).value == taken


@pytest.mark.parametrize("text", ["c", "c=", "c=1", "=1,2", "c=1,1", "c=,1"])
def test_a_sweep_needs_a_name_and_two_values(text: str) -> None:
    with pytest.raises(ParameterError, match="does not name a parameter and two or more different values"):
        parse(text)


def test_a_sweep_is_read_with_its_values_in_their_order() -> None:
    assert parse("c = 0, 0.1,0.05") == ("c", ["0", "0.1", "0.05"])


def test_every_value_is_trained_and_judged_on_the_same_images(hub: Hub, images: Path, tmp_path: Path) -> None:
    config, folder, told = plan(images), tmp_path / "sweep", []

    def run() -> Report:
        return sweep(
            hub, config, "c", ["0", "0.3"], folder, judged=JUDGED, images=3, shown=2, device="cpu", tell=told.append
        )

    report = run()

    assert [Path(found.card).parent.name for found in report.trials] == ["c=0", "c=0.3"]
    assert all(Path(found.card).is_file() for found in report.trials)
    first = report.trials[0]
    assert first.scores["saliency saliency_stability"] > 0
    assert first.scores["lime point_fidelity"] is not None
    assert first.scores["saliency point_fidelity"] is None
    assert "no local linear model" in first.reasons["saliency point_fidelity"]
    record = json.loads((folder / "report.json").read_text())
    assert record["chosen"] == report.chosen
    assert [found["value"] for found in record["trials"]] == ["0", "0.3"]
    page = (folder / "report.md").read_text()
    assert "| | c=0 | c=0.3 |" in page
    assert f"Recommended: **c={report.chosen}**" in page
    assert [file.name for file in report.files[2:]] == ["before-after-1.png", "before-after-2.png"]
    with Image.open(folder / "before-after-1.png") as drawn:
        assert drawn.height > 600  # two rows

    # What is done is kept: a second call trains nothing and finds the same.
    times = {file: file.stat().st_mtime_ns for file in folder.glob("*/log.csv")}
    epochs = sum(line.startswith("epoch") for line in told)
    again = run()
    assert markdown(again) == markdown(report)
    assert sum(line.startswith("epoch") for line in told) == epochs
    assert len(times) == 2


def test_wrong_names_are_found_before_anything_is_trained(hub: Hub, images: Path, tmp_path: Path) -> None:
    config, folder = plan(images), tmp_path / "sweep"

    with pytest.raises(ParameterError, match="no parameter 'd'"):
        sweep(hub, config, "d", ["0", "1"], folder, judged=[], device="cpu")
    with pytest.raises(ParameterError, match="'c' of expo-stability cannot be '-1'"):
        sweep(hub, config, "c", ["0", "-1"], folder, judged=[], device="cpu")
    with pytest.raises(UnknownName, match="nothing_such"):
        sweep(hub, config, "c", ["0", "1"], folder, judged=[Judged(explainer="nothing_such")], device="cpu")
    assert not folder.exists()


def test_objectives_name_explainers_and_metrics_that_exist(hub: Hub) -> None:
    for spec in hub.objectives:
        for item in spec.judged:
            hub.get_explainer(item.explainer, **dict(item.parameters)).check_parameters()
            assert [hub.get_metric(name).name for name in item.metrics] == list(item.metrics)


def test_images_that_are_explained_are_those_held_out_with_their_own_classes(
    hub: Hub, images: Path, tmp_path: Path
) -> None:
    from xaihub.training.setup import accelerating, labelled_images, prepared, set_up

    classes = tmp_path / "classes.txt"
    classes.write_text("red\nblue\n")  # not in the order of the alphabet
    start = service.train(
        hub, plan(images, classes=str(classes), objective="cross_entropy"), tmp_path / "start", device="cpu"
    )
    config = plan(images, model=str(start.card), scratch=False)
    with accelerating(config, "cpu") as accelerator:
        trained = set_up(hub, config, accelerator, lambda *_: None).data
    model = hub.load_model(str(start.card), device="cpu")
    again = prepared(labelled_images(config), model, config, lambda *_: None, checked=True)
    assert again.images.classes == trained.images.classes == ("red", "blue")
    assert again.val == trained.val
    assert again.images.labels == trained.images.labels
