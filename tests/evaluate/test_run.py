"""Runs: every image, explainer and metric once, whatever fails or is added."""

from __future__ import annotations

import os
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageOps

from tests.evaluate.toys import CALLS, config, values
from xaihub.errors import InputError, OutputError, ParameterError
from xaihub.evaluation.annotations import truth
from xaihub.evaluation.config import Choice
from xaihub.evaluation.estimate import estimate
from xaihub.evaluation.plan import load_models, make_plan
from xaihub.evaluation.run import evaluate
from xaihub.evaluation.store import RunStore
from xaihub.hub import Hub
from xaihub.images import load_image


def test_every_image_explainer_and_metric_gets_one_row(hub: Hub, photos: Path, store: RunStore) -> None:
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
    assert (again.explanations, again.scores, again.kept, again.forward_passes) == (0, 0, 24, 0)


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


def test_an_image_that_cannot_be_read_is_recorded_and_the_run_goes_on(hub: Hub, photos: Path, store: RunStore) -> None:
    (photos / "0broken.png").write_text("no image")
    totals = evaluate(hub, make_plan(hub, config(photos)), store)
    assert totals.failed == 1
    ((source, reason),) = store.failed_images().items()
    assert source.endswith("0broken.png")
    assert "is not an image" in reason
    assert len(store.rows()) == 24


def test_odd_images_cost_themselves_and_a_resumed_run_does_not_stop_at_them(
    hub: Hub, photos: Path, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (30000, 2)).save(photos / "0thin.png")
    os.mkfifo(photos / "0pipe.png")
    Image.new("RGB", (8, 8)).save(photos / "0odd.png")
    opened = Image.open

    def odd(file: Any, **options: Any) -> Any:  # whatever Pillow raises for one file
        if file.name.endswith("0odd.png"):
            raise struct.error("argument out of range")
        return opened(file, **options)

    monkeypatch.setattr(Image, "open", odd)
    for _ in range(2):
        evaluate(hub, make_plan(hub, config(photos)), store)
        assert {Path(source).name for source in store.failed_images()} == {"0thin.png", "0odd.png"}
        assert len(store.rows()) == 24


def test_progress_counts_an_image_that_is_passed_over(hub: Hub, photos: Path, store: RunStore, tmp_path: Path) -> None:
    (photos / "0broken.png").write_text("no image")
    (tmp_path / "masks").mkdir()
    for number in range(4):
        Image.new("L", (24, 20), 255).save(tmp_path / "masks" / f"{number}.png")
    (tmp_path / "masks" / "1.png").write_text("no image")
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
    [("top1 vs a", "9.png", "with itself", 4), (None, "2.png", "not an image", 1)],
)
def test_an_image_without_a_target_or_a_mask_is_recorded_and_the_run_goes_on(
    hub: Hub, photos: Path, store: RunStore, tmp_path: Path, target: str | None, broken: str, says: str, count: int
) -> None:
    (tmp_path / "masks").mkdir()
    for number in range(4):
        Image.new("L", (24, 20), 255).save(tmp_path / "masks" / f"{number}.png")
    (tmp_path / "masks" / broken).write_text("no image")
    plan = make_plan(hub, config(photos, metrics=["toy_truth"], masks=str(tmp_path / "masks"), target=target))
    totals = evaluate(hub, plan, store)
    failures = store.failed_images()
    assert totals.failed == len(failures) == count
    assert all(says in reason for reason in failures.values())
    assert len(store.rows()) == 2 * (4 - count)


def test_labels_choose_the_class(hub: Hub, photos: Path, store: RunStore, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("file,class_index\n" + "".join(f"{n}.png,{n % 3}\n" for n in range(4)))
    evaluate(hub, make_plan(hub, config(photos, labels=str(tmp_path / "labels.csv"), metrics=["toy_mean"])), store)
    assert {Path(r.image).stem: r.record["target"]["index"] for r in store.rows()} == {"0": 0, "1": 1, "2": 2, "3": 0}


def test_masks_and_boxes_go_through_the_models_own_geometry(
    hub: Hub, photos: Path, store: RunStore, tmp_path: Path
) -> None:
    (tmp_path / "boxes.csv").write_text(
        "file,left,top,right,bottom\n" + "".join(f"{n}.png,0,0,11,19\n" for n in range(4))  # the left half of 24 x 20
    )
    chosen = config(photos, metrics=["toy_truth"], boxes=str(tmp_path / "boxes.csv"), controls=False)
    evaluate(hub, make_plan(hub, chosen), store)
    assert [row.value for row in store.rows()] == [0.5] * 4


@pytest.mark.parametrize("metrics", [["toy_mean", "toy_drawn"], ["toy_drawn", "toy_pool"]])
def test_a_run_makes_the_passes_that_were_estimated_and_loads_its_models_once(
    hub: Hub, photos: Path, store: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metrics: list[str]
) -> None:
    monkeypatch.setattr("xaihub.evaluation.inputs.KEPT", 2)  # so that the pool's images are loaded again
    plan = make_plan(hub, config(photos, metrics=metrics))
    models = load_models(hub, plan)
    monkeypatch.setattr(hub, "load_model", None)
    with RunStore(tmp_path / "trial", create=True) as trial:
        cost = estimate(hub, plan, trial, models)
    rows: list[int] = []
    models[0].module.register_forward_hook(lambda _module, _inputs, output: rows.append(len(output)))
    totals = evaluate(hub, plan, store, models)
    # Per image: the prediction, the gradient, and the masked image of toy_drawn, which both explainers share.
    assert sum(rows) == totals.forward_passes == cost.forward_passes == 4 * 3
    assert totals.backward_passes == cost.backward_passes == 4
    assert totals.predicted == 4


def test_a_score_is_charged_for_the_passes_it_needs_whoever_made_them_first(
    hub: Hub, photos: Path, store: RunStore
) -> None:
    for explainers in (["toy_noise"], ["toy_noise", "toy_gradient"]):
        chosen = config(photos, explainers=explainers, metrics=["toy_drawn", "toy_pool"], controls=False)
        evaluate(hub, make_plan(hub, chosen), store)
    passes = {(row.explainer, row.metric): row.forward_passes for row in store.rows()}
    assert passes == {
        (explainer, metric): count
        for explainer in ("toy_gradient", "toy_noise")
        for metric, count in (("toy_drawn", 1), ("toy_pool", 0))
    }


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


def test_photos_of_one_name_get_the_labels_and_masks_of_their_own_folders(
    hub: Hub, photos: Path, tmp_path: Path
) -> None:
    for name, number in (("cat", 0), ("dog", 1)):
        for folder in ("twins", "masks"):
            (tmp_path / folder / name).mkdir(parents=True)
        (photos / f"{number}.png").rename(tmp_path / "twins" / name / "001.png")
        Image.new("L", (24, 20), 255).save(tmp_path / "masks" / name / "001.png")
    (tmp_path / "labels.csv").write_bytes("\ufefffile,class_index\ncat/001.png,2\ndog/001.png,1\n".encode())
    chosen = config(tmp_path / "twins", labels=str(tmp_path / "labels.csv"), masks=str(tmp_path / "masks"))
    plan = make_plan(hub, chosen)
    assert [plan.labels[image] for image in plan.images] == [2, 1]
    assert [Path(plan.masks[image]).parent.name for image in plan.images] == ["cat", "dog"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("file,class_index\n0.png,1\n./0.png,2\n", "twice with different values"),
        ("file,class_index\n0.png,1\n0.png,2\n", "lists '0.png' twice with different values"),
        ("class_index,file\n5\n", "line 2: the file name is missing"),
    ],
)
def test_tables_that_contradict_themselves_or_name_nothing_are_refused(
    hub: Hub, photos: Path, table: str, message: str
) -> None:
    (photos / "labels.csv").write_text(table)
    with pytest.raises(InputError, match=message):
        make_plan(hub, config(photos, labels=str(photos / "labels.csv")))


@pytest.mark.skipif(os.name == "nt", reason="names are always text there")
def test_a_file_name_that_is_no_text_is_refused_before_any_work(hub: Hub, photos: Path) -> None:
    (photos / "0.png").rename(os.fsdecode(os.fsencode(photos) + b"/\xff.png"))
    with pytest.raises(InputError, match="is not UTF-8"):
        make_plan(hub, config(photos))


def test_models_that_cannot_be_told_apart_are_refused(hub: Hub, photos: Path, tmp_path: Path) -> None:
    cards = [tmp_path / name / "card.yaml" for name in ("a", "b")]
    for card in cards:
        card.parent.mkdir()
        card.write_text("name: net\nadapter: toys\narchitecture: toy\n")
    with pytest.raises(ParameterError, match="are both named 'net'"):
        load_models(hub, make_plan(hub, config(photos, models=[str(card) for card in cards])))
    cards[1].write_text("name: ten\nadapter: toys\narchitecture: toy\n")
    with pytest.raises(ParameterError, match="are the same network"):
        load_models(hub, make_plan(hub, config(photos, models=[str(card) for card in cards])))


def test_a_refused_process_does_not_change_the_plan_of_another(hub: Hub, photos: Path, store: RunStore) -> None:
    evaluate(hub, make_plan(hub, config(photos, metrics=["toy_mean"])), store)
    with store.writing(), RunStore(store.folder) as second, pytest.raises(OutputError, match="another process"):
        evaluate(hub, make_plan(hub, config(photos, metrics=["toy_pool"], seed=7)), second)
    assert store.config.metrics == ["toy_mean"]
    assert store.config.seed == 0


def test_what_a_crop_pads_an_image_with_is_no_evidence(hub: Hub, photos: Path, store: RunStore, tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    Image.new("L", (24, 20)).save(tmp_path / "masks" / "0.png")
    plan = make_plan(hub, config(photos, masks=str(tmp_path / "masks")))
    model = hub.load_model("toy")
    model.preprocessing = replace(model.preprocessing, spatial=[lambda image: ImageOps.expand(image, 4, (128,) * 3)])
    found = truth(model, load_image(plan.images[0]).rgb, plan.masks[plan.images[0]], None)
    assert found is not None
    assert not bool(found.any())
