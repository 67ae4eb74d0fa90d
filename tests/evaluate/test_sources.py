"""Sources: class folders, tables, shards and data sets give the rows of the same images as files."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.evaluate.toys import config, values
from xaihub.errors import InputError, ParameterError
from xaihub.evaluation.leaderboard import boards
from xaihub.evaluation.listing import listed
from xaihub.evaluation.merge import merge
from xaihub.evaluation.plan import Shard, make_plan
from xaihub.evaluation.run import evaluate
from xaihub.evaluation.store import RunStore
from xaihub.hub import Hub

BOXES = [[0, 0, 11, 19], [12, 0, 13, 19]]


def shard(path: Path, photos: Path, numbers: range) -> Path:
    """A WebDataset shard with labels, masks and boxes, and a pickled member that raises when it is read."""
    with tarfile.open(path, "w") as archive:
        for number in numbers:
            mask = io.BytesIO()
            Image.new("L", (24, 20), 255).save(mask, "png")
            parts = {
                "cls": str(number % 3).encode(),
                "png": (photos / f"{number}.png").read_bytes(),
                "mask.png": mask.getvalue(),
                "boxes.json": json.dumps(BOXES).encode(),
                "pyd": pickle.dumps(Unreadable()),
                "txt": b"a caption",
            }
            for kind, content in parts.items():
                member = tarfile.TarInfo(f"val/{number:04d}.{kind}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


class Unreadable:
    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("a pickle was read",)


def test_shards_hold_images_with_labels_masks_and_boxes(
    hub: Hub, photos: Path, store: RunStore, tmp_path: Path
) -> None:
    shard(tmp_path / "a-000.tar", photos, range(2))
    shard(tmp_path / "a-001.tar", photos, range(2, 4))
    found = listed([str(tmp_path / "a-*.tar")])
    assert [item.label for item in found.items()] == [0, 1, 2, 0]
    assert found[0] == str(tmp_path / "a-000.tar" / "val" / "0000.png")
    assert found.item(1).boxes == [tuple(box) for box in BOXES]
    metrics = ["toy_mean", "toy_pool", "toy_truth"]
    evaluate(hub, make_plan(hub, config(tmp_path / "a-*.tar", metrics=metrics)), store)
    assert {row.value for row in store.rows() if row.metric == "toy_truth"} == {1.0}
    assert [row.record["target"]["index"] for row in store.rows()[:4]] == [0, 1, 2, 0]
    table = tmp_path / "labels.csv"
    table.write_text("file,class_index\n" + "".join(f"{number}.png,{number % 3}\n" for number in range(4)))
    with RunStore(tmp_path / "files", create=True) as files:
        evaluate(hub, make_plan(hub, config(photos, metrics=metrics[:2], labels=str(table))), files)
        expected = [row[1:] for row in values(files)]
    assert [row[1:] for row in values(store) if row[3] != "toy_truth"] == expected


def test_class_folders_give_labels_and_accuracy(hub: Hub, photos: Path, store: RunStore, tmp_path: Path) -> None:
    for number in range(4):
        folder = tmp_path / "val" / f"n{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        (photos / f"{number}.png").rename(folder / f"{number}.png")
    plan = make_plan(hub, config(tmp_path, images=[f"imagefolder:{tmp_path / 'val'}"], metrics=["toy_mean"]))
    assert [Path(source).name for source in plan.images] == ["0.png", "3.png", "1.png", "2.png"]
    assert list(plan.labels.values()) == [0, 0, 1, 2]
    evaluate(hub, plan, store)
    (board,) = boards(store.scores(), hub, plan.labels)
    assert board.labelled == 4
    assert board == boards(store.rows(), hub, plan.labels)[0]


def test_a_table_lists_images_with_labels_masks_and_boxes(hub: Hub, photos: Path, tmp_path: Path) -> None:
    (photos / "images.csv").write_text(
        "file,class_index,mask,left,top,right,bottom\n"
        "3.png,2,,0,0,11,19\n3.png,2,,12,0,13,19\n0.png,,0.png,,,,\nmissing.png,,,,,,\n"
    )
    plan = make_plan(hub, config(photos / "images.csv"))
    assert [Path(source).name for source in plan.images] == ["3.png", "0.png", "missing.png"]
    assert dict(plan.labels) == {str(photos / "3.png"): 2}
    assert dict(plan.boxes) == {str(photos / "3.png"): [tuple(map(float, box)) for box in BOXES]}
    assert dict(plan.masks) == {str(photos / "0.png"): str(photos / "0.png")}
    assert [Path(source).name for source in listed([str(photos / "images.csv")], limit=2)] == ["3.png", "0.png"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name\na.png\n", "has no column 'file'"),
        ("file,class_index\na.png,-1\n", "line 2: the class is -1, not an index"),
        ("file,class_index\na.png,x\n", "line 2: class_index is 'x', not a number"),
        ("file,left,top,right,bottom\na.png,1,2\n", "the box is empty or incomplete"),
        ("file,class_index\n,1\n", "the file name is missing"),
    ],
)
def test_a_wrong_table_is_refused_with_its_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "images.csv").write_text(content)
    with pytest.raises(InputError, match=message):
        listed([str(tmp_path / "images.csv")])


def test_what_is_not_there_or_not_a_shard_is_refused(tmp_path: Path, photos: Path) -> None:
    (tmp_path / "no.tar").write_bytes(b"no archive" * 100)
    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    for path, message in (
        ("no.tar", "cannot read the shard"),
        ("empty.tar", "no image in the shard"),
        ("none-*.tar", "no file matches"),
    ):
        with pytest.raises(InputError, match=message):
            listed([str(tmp_path / path)])
    with pytest.raises(InputError, match="has no subfolders"):
        listed([f"imagefolder:{photos}"])
    with pytest.raises(InputError, match="does not name a data set and a split"):
        listed(["hf:imagenet-1k"])


def test_a_damaged_member_costs_its_own_image(hub: Hub, photos: Path, store: RunStore, tmp_path: Path) -> None:
    (photos / "1.png").write_text("no image")
    shard(tmp_path / "a.tar", photos, range(4))
    evaluate(hub, make_plan(hub, config(tmp_path / "a.tar", metrics=["toy_mean"])), store)
    ((source, reason),) = store.failed_images().items()
    assert source.endswith("a.tar/val/0001.png")
    assert "is not an image" in reason
    assert source in reason
    assert len(store.rows()) == 3 * 2


def test_shards_by_content_are_merged_into_the_rows_of_the_whole(
    hub: Hub, photos: Path, store: RunStore, tmp_path: Path
) -> None:
    """The metric that looks at other images sees the same ones, whichever shard they are in."""
    for number in range(4, 12):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photos / f"{number:02d}.png")
    evaluate(hub, make_plan(hub, config(photos)), store)
    parts = []
    for part in ("1/2", "2/2"):
        with RunStore(tmp_path / part[0], create=True) as one:
            plan = make_plan(hub, config(photos, shard=part))
            evaluate(hub, plan, one)
            parts.append(one.count())
            assert evaluate(hub, plan, one).scores == 0
    assert sum(parts) == store.count()
    assert min(parts) > 0
    merged, aside = merge([tmp_path / "1", tmp_path / "2"], tmp_path / "both")
    with merged:
        assert aside == 0
        assert values(merged) == values(store)
        assert merged.config.shard is None
        assert evaluate(hub, make_plan(hub, config(photos)), merged).scores == 0


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0"])
def test_a_wrong_shard_is_refused(text: str) -> None:
    with pytest.raises(ParameterError, match="is not a shard"):
        Shard.parse(text)


@pytest.mark.slow
def test_a_data_set_of_the_hub_is_streamed_once(
    hub: Hub, photos: Path, store: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets", reason="needs xaihub[datasets]")
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "hub"))
    for number in range(4):
        folder = tmp_path / "data" / "validation" / f"n{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.png").write_bytes((photos / f"{number}.png").read_bytes())
    source = f"hf:{tmp_path / 'data'}:validation"
    plan = make_plan(hub, config(tmp_path, images=[source], metrics=["toy_mean"]))
    assert list(plan.labels.values()) == [0, 0, 1, 1]
    evaluate(hub, plan, store)
    assert len(store.rows()) == 4 * 2
    monkeypatch.setattr(datasets.IterableDataset, "__iter__", None)  # the second time, nothing is streamed
    assert evaluate(hub, make_plan(hub, config(tmp_path, images=[source], metrics=["toy_mean"])), store).scores == 0
