"""Which images are held out from training, and data of Hugging Face."""

from __future__ import annotations

import csv
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.training.data_files import labelled, save
from xaihub.errors import InputError, MissingExtra, OutputError
from xaihub.training.data.builtin import evidence_image
from xaihub.training.data.held_out import write_held_out
from xaihub.training.data.images import split
from xaihub.training.data.sources import open_images


def test_the_split_is_stratified_and_fixed_by_the_seed() -> None:
    labels = [0] * 50 + [1] * 20 + [2] * 3
    made = split(labelled(labels, 3), fraction=0.2, seed=1)

    assert Counter(labels[index] for index in made.val) == {0: 10, 1: 4, 2: 1}
    assert sorted([*made.train, *made.val]) == list(range(73))
    assert made.val == split(labelled(labels, 3), fraction=0.2, seed=1).val
    assert made.val != split(labelled(labels, 3), fraction=0.2, seed=2).val


def test_nothing_is_held_out_if_nothing_is_asked_for() -> None:
    assert split(labelled([0, 1, 1], 2), fraction=0, seed=0).val == []


def test_a_class_of_one_image_stays_to_be_learned() -> None:
    made = split(labelled([0, 1, 1, 1], 2), fraction=0.5, seed=0)
    assert 0 in made.train
    with pytest.raises(InputError, match="no class of 'toy' has two images"):
        split(labelled([0, 1], 2), fraction=0.5, seed=0)


def test_a_class_that_is_only_held_out_is_refused() -> None:
    with pytest.raises(InputError, match="class 'b' of 'toy' has no image in its training part"):
        split(labelled([0, 1], 2, ["train", "val"]), fraction=0.2, seed=0)


def test_hugging_face_data_need_their_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtra, match=r"'hf:cifar10' needs 'datasets'.*xaihub\[datasets\]"):
        open_images("hf:cifar10")


class _Table(list[dict[str, Any]]):
    def __init__(self, rows: list[dict[str, Any]], features: dict[str, Any]) -> None:
        super().__init__(rows)
        self.features = features

    def __getitem__(self, key: Any) -> Any:
        return [row[key] for row in self] if isinstance(key, str) else super().__getitem__(key)


class _Image:
    pass


class _ClassLabel:
    names = ("no", "yes")


@pytest.fixture
def hub_of_data(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Stand in for the library `datasets`; the real one is tested where it is installed."""
    tables: dict[str, Any] = {}
    module: Any = ModuleType("datasets")
    module.Image, module.ClassLabel = _Image, _ClassLabel
    module.load_dataset = lambda name: tables[name]
    monkeypatch.setitem(sys.modules, "datasets", module)
    return tables


def test_hugging_face_data_are_read_by_their_columns(hub_of_data: dict[str, Any]) -> None:
    features = {"image": _Image(), "answer": _ClassLabel()}
    rows = [{"image": Image.new("L", (5, 4), 9), "answer": index % 2} for index in range(3)]
    hub_of_data["toy"] = {"train": _Table(rows[:2], features), "test": _Table(rows[2:], features)}

    found = open_images("hf:toy")

    assert (found.classes, found.labels, found.parts) == (("no", "yes"), [0, 1, 0], ["train", "train", "val"])
    assert found.read(2).getpixel((0, 0)) == (9, 9, 9)


def test_hugging_face_data_without_labels_are_refused(hub_of_data: dict[str, Any]) -> None:
    hub_of_data["toy"] = {"train": _Table([], {"image": _Image(), "text": str})}
    with pytest.raises(InputError, match="has no column of class labels"):
        open_images("hf:toy")
    with pytest.raises(InputError, match="cannot load the data set 'gone'"):
        open_images("hf:gone")


def test_real_hugging_face_data_saved_to_disk(tmp_path: Path) -> None:
    datasets, pyarrow = pytest.importorskip("datasets"), pytest.importorskip("pyarrow")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    images = [{"bytes": save(tmp_path / f"{value}.png", value).read_bytes(), "path": None} for value in (1, 2)]
    rows = pyarrow.table({"image": images, "label": [0, 1]}, schema=features.arrow_schema)
    # With a fingerprint of its own, nothing is pickled to make one.
    table = datasets.Dataset(
        datasets.table.InMemoryTable(rows), datasets.DatasetInfo(features=features), fingerprint="x"
    )
    table.save_to_disk(str(tmp_path / "saved"))

    found = open_images(f"hf:{tmp_path / 'saved'}")

    assert (found.classes, found.labels) == (("a", "b"), [0, 1])
    assert found.read(1).getpixel((0, 0)) == (2, 2, 2)


def test_images_held_out_are_written_for_evaluation(tmp_path: Path) -> None:
    data = split(open_images("evidence:40"), fraction=0.2, seed=0)
    write_held_out(data, tmp_path / "out")

    with (tmp_path / "out/labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["class_index"]) for row in rows] == [index % 4 for index in data.val]
    for row, index in zip(rows, data.val, strict=True):
        image, mask = evidence_image(index)
        with Image.open(tmp_path / "out/images" / row["file"]) as written:
            assert written.tobytes() == image.tobytes()
        with Image.open(tmp_path / "out/masks" / row["file"]) as written:
            assert np.array_equal(np.asarray(written) > 127, mask)
    with pytest.raises(OutputError, match="already exists"):
        write_held_out(data, tmp_path / "out")


def test_files_held_out_are_copied_as_they_are(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        for index in range(2):
            save(tmp_path / "in" / name / f"{index}.bmp", index)
    data = split(open_images(str(tmp_path / "in")), fraction=0.5, seed=0)
    write_held_out(data, tmp_path / "out")

    copies = sorted((tmp_path / "out/images").iterdir())
    assert [file.read_bytes() for file in copies] == [Path(data.images.names[i]).read_bytes() for i in data.val]
    assert not (tmp_path / "out/masks").exists()


def test_a_flat_folder_of_test_images_is_skipped_and_one_to_hold_out_is_refused(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        save(tmp_path / "train" / name / "1.png")
    save(tmp_path / "test/1.png")

    found = open_images(str(tmp_path))

    assert found.classes == ("cat", "dog")
    assert {*found.parts} == {"train"}
    assert "test is skipped" in found.notes[0]
    save(tmp_path / "val/1.png")
    with pytest.raises(InputError, match="val' has no class folders"):
        open_images(str(tmp_path))


def test_what_is_held_out_is_there_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    names = [str(save(tmp_path / name)) for name in ("a.png", "b.png", "c.png", "gone.png")]
    Path(names[3]).unlink()
    made = split(
        replace(labelled([0, 1, 0, 1], 2, ["train", "train", "val", "val"]), names=names), fraction=0.2, seed=0
    )
    with pytest.raises((InputError, OutputError, FileNotFoundError)):
        write_held_out(made, tmp_path / "held")
    assert not (tmp_path / "held").exists()
    save(Path(names[3]))
    write_held_out(made, tmp_path / "held")
    assert len(list((tmp_path / "held" / "images").iterdir())) == 2
    assert not list(tmp_path.glob(".held*"))
