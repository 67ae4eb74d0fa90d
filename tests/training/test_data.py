"""Where labelled images come from, how they are split, and what is refused."""

from __future__ import annotations

import csv
import pickle
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from xaihub import Preprocessing
from xaihub.errors import InputError, MissingExtra, OutputError
from xaihub.training.data.builtin import SHAPES, evidence_image
from xaihub.training.data.held_out import write_held_out
from xaihub.training.data.images import LabelledImages, check_classes, readable, split
from xaihub.training.data.sources import open_images


def quiet(_text: str, _done: int, _total: int) -> None:
    """Watch nothing."""


def save(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (value, value, value)).save(path)
    return path


def labelled(labels: list[int], classes: int, parts: list[str] | None = None) -> LabelledImages:
    names = [str(index) for index in range(len(labels))]
    return LabelledImages(name="toy", classes=tuple("abcdefgh"[:classes]), labels=labels, names=names,
                    parts=parts or (), read=lambda _index: Image.new("RGB", (8, 8)))  # fmt: skip


def test_a_folder_of_class_folders(tmp_path: Path) -> None:
    save(tmp_path / "dog/1.png", 10)
    save(tmp_path / "dog/deep/2.png", 20)
    save(tmp_path / "cat/1.png", 30)
    (tmp_path / "cat/notes.txt").write_text("no image")

    found = open_images(str(tmp_path))

    assert found.classes == ("cat", "dog")
    assert [(Path(name).name, label) for name, label in zip(found.names, found.labels, strict=True)] == [
        ("1.png", 0), ("1.png", 1), ("2.png", 1)]  # fmt: skip
    assert found.read(0).getpixel((0, 0)) == (30, 30, 30)
    assert not found.parts


@pytest.mark.parametrize("held", ["val", "validation", "test"])
def test_a_folder_with_a_split_of_its_own(tmp_path: Path, held: str) -> None:
    for part in ("train", held):
        for name in ("cat", "dog"):
            save(tmp_path / part / name / "1.png")

    found = open_images(str(tmp_path))
    made = split(found, fraction=0.2, seed=0)

    assert found.classes == ("cat", "dog")
    assert {Path(found.names[index]).parts[-3] for index in made.train} == {"train"}
    assert {Path(found.names[index]).parts[-3] for index in made.val} == {held}


def test_a_class_called_train_is_a_class_where_it_holds_no_folders(tmp_path: Path) -> None:
    save(tmp_path / "train/1.png")
    save(tmp_path / "bus/1.png")
    assert open_images(str(tmp_path)).classes == ("bus", "train")


def test_a_table_of_names(tmp_path: Path) -> None:
    save(tmp_path / "pics/a.png", 7)
    file = tmp_path / "data.csv"
    file.write_text("file,label,split\npics/a.png,zebra,train\npics/b.png,ant,val\npics/c.png,ant,train\n")

    found = open_images(str(file))

    assert (found.classes, found.labels, found.parts) == (("ant", "zebra"), [1, 0, 0], ["train", "val", "train"])
    assert found.read(0).getpixel((0, 0)) == (7, 7, 7)


def test_rows_called_test_are_held_out_only_where_no_others_are(tmp_path: Path) -> None:
    file = tmp_path / "data.csv"
    file.write_text("file,label,split\na.png,0,train\nb.png,1,test\nc.png,1,val\n")
    both = open_images(str(file))
    file.write_text("file,label,split\na.png,0,train\nb.png,1,test\n")
    alone = open_images(str(file))

    assert [Path(name).name for name in both.names] == ["a.png", "c.png"]
    assert (both.labels, both.parts, list(both.notes)) == (
        [0, 1], ["train", "val"], ["1 rows of the split test skipped"]
    )  # fmt: skip
    assert (alone.parts, list(alone.notes)) == (["train", "val"], [])


def test_a_table_of_indices_takes_its_names_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "data.csv"
    file.write_text("path,class_index\na.png,2\nb.png,0\nc.png,1\n")
    assert open_images(str(file)).classes == ("0", "1", "2")
    assert open_images(str(file), classes=("x", "y", "z")).classes == ("x", "y", "z")


@pytest.mark.parametrize(
    ("text", "classes", "message"),
    [
        ("file,label\na.png,3\nb.png,0\n", ("x", "y"), "line 2: the label 3 is out of range"),
        ("file,label\na.png,0\nb.png,-1\n", None, "line 3: the label -1 is out of range"),
        ("file,label\na.png,ox\n", ("x", "y"), "line 2: 'ox' is not among the 2 class names given"),
        ("name,label\na.png,ox\n", None, "has no column 'file'"),
        ("file,kind\na.png,ox\n", None, "has no column 'label'"),
        ("file,label\na.png,\n", None, "line 2: 'label' is empty"),
        ("file,label,split\na.png,ox,other\n", None, "the split 'other' is not train, val or test"),
    ],
)
def test_a_table_that_is_wrong_is_refused(
    tmp_path: Path, text: str, classes: tuple[str, ...] | None, message: str
) -> None:
    file = tmp_path / "data.csv"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        open_images(str(file), classes=classes)


def test_digits_are_built_in() -> None:
    found = open_images("digits")
    assert (len(found), found.classes) == (1797, tuple("0123456789"))
    assert found.read(0).size == (8, 8)
    assert found.upright
    check_classes(found)


def test_generated_images_differ_from_noise_only_where_their_masks_say() -> None:
    found = open_images("evidence:40")
    check_classes(found)
    assert (len(found), found.classes) == (40, SHAPES)
    for index in range(8):
        image, mask = evidence_image(index)
        pixels = np.asarray(image).mean(axis=2)
        assert 0.005 < mask.mean() < 0.12
        assert pixels[mask].mean() > pixels[~mask].mean() + 40
        assert found.read(index).tobytes() == image.tobytes()


@pytest.mark.parametrize("name", ["nowhere", "evidence:3", "evidence:x", "digits:5"])
def test_data_that_are_not_there_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="there are no data|cannot have"):
        open_images(name)


def test_a_folder_without_classes_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "1.png")
    with pytest.raises(InputError, match="has no class folders"):
        open_images(str(tmp_path))


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        ([0, 0], 1, "has 1 class, 'a'"),
        ([0, 0], 2, "class 'b' of 'toy' has no image"),
        ([0, 2, 1], 2, "'1' has the label 2, but 'toy' has 2 classes"),
        ([], 0, "has 0 classes"),
    ],
)
def test_labels_that_nothing_can_be_learned_from_are_refused(labels: list[int], classes: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_classes(labelled(labels, classes))


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


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    for name in ("cat", "dog"):
        for index in range(3):
            save(tmp_path / name / f"{index}.png", index)
    whole = (tmp_path / "dog/1.png").read_bytes()
    (tmp_path / "dog/1.png").write_bytes(whole[: len(whole) // 2])
    return tmp_path


def test_an_unreadable_image_is_refused_by_name(damaged: Path) -> None:
    with pytest.raises(InputError, match=r"dog/1\.png.*--set skip_unreadable=true"):
        readable(open_images(str(damaged)), skip=False, watch=quiet)


def test_an_image_that_the_model_cannot_take_is_found_before_training(tmp_path: Path) -> None:
    for name in ("cat/1.png", "dog/1.png", "dog/2.png", "dog/.hidden.png", "__MACOSX/cat/1.png"):
        save(tmp_path / name)
    Image.new("RGB", (900, 1)).save(tmp_path / "dog/2.png")
    border = Preprocessing(
        spatial=[lambda image: image.resize((160, 160 * image.height // image.width))],
        size=(3, 160, 160),
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
    )
    images = open_images(str(tmp_path))
    assert len(images) == 3
    with pytest.raises(
        InputError, match="900 x 1 pixels is too thin or too large for the model.*--set skip_unreadable=true"
    ):
        readable(images, skip=False, watch=quiet, check=border.check)
    assert len(readable(images, skip=True, watch=quiet, check=border.check)) == 2


def test_unreadable_images_can_be_skipped(damaged: Path) -> None:
    found = readable(open_images(str(damaged)), skip=True, watch=quiet)
    assert found.labels == [0, 0, 0, 1, 1]
    assert [found.read(index).getpixel((0, 0))[0] for index in range(5)] == [0, 1, 2, 0, 2]  # type: ignore[index]
    assert "1 unreadable images skipped" in found.notes[0]
    assert "dog/1.png" in found.notes[0]


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


def test_names_that_are_numbers_are_names_where_they_are_given(tmp_path: Path) -> None:
    file = tmp_path / "data.csv"
    file.write_text("file,label\na.png,2000\nb.png,1990\n")
    assert open_images(str(file), classes=["1990", "2000"]).labels == [1, 0]
    file.write_text("file,class_index,label\na.png,2,10\nb.png,0,1\n")
    assert open_images(str(file), classes=["1", "2", "10"]).labels == [2, 0]


@pytest.mark.parametrize("label", ["20000000", "-1"])
def test_a_label_that_cannot_be_an_index_is_refused_at_once(tmp_path: Path, label: str) -> None:
    file = tmp_path / "data.csv"
    file.write_text(f"file,label\na.png,0\nb.png,{label}\n")
    with pytest.raises(InputError, match=f"line 3: the label {label} is out of range"):
        open_images(str(file))


def test_a_name_with_a_line_in_it_is_no_number(tmp_path: Path) -> None:
    file = tmp_path / "data.csv"
    file.write_text("file,label\na.png,1_0\nb.png,2_0\n")
    assert open_images(str(file)).classes == ("1_0", "2_0")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("0 1 0 cat", r"line 5: the label 'cat' is a word, but 1 of 4 labels are words \(write names or indices"),
        ("cat dog 3 cat", "line 4: the label '3' is a number, but 3 of 4 labels are words"),
        ("1 2 3 1", r"its labels are numbers up to 3, but none is 0 \(number the classes from 0 without gaps"),
        ("0 1 5 1", "its labels are numbers up to 5, but none is 2, nor 2 others"),
    ],
)
def test_labels_that_are_neither_names_nor_indices_throughout_are_refused(
    tmp_path: Path, labels: str, message: str
) -> None:
    file = tmp_path / "data.csv"
    rows = [f"{number}.png,{label}" for number, label in enumerate(labels.split())]
    file.write_text("\n".join(["file,label", *rows]))
    with pytest.raises(InputError, match=message):
        open_images(str(file))


def test_a_list_of_class_names_settles_what_the_labels_are(tmp_path: Path) -> None:
    file = tmp_path / "data.csv"
    file.write_text("file,label\na.png,7\nb.png,none\n")
    assert open_images(str(file), classes=["none", "7"]).labels == [1, 0]


def test_images_can_be_sent_to_processes_that_are_not_forked(tmp_path: Path) -> None:
    save(tmp_path / "dog/1.png", 10)
    save(tmp_path / "cat/1.png", 30)
    (tmp_path / "data.csv").write_text("file,label\ndog/1.png,dog\ncat/1.png,cat\n")
    for data in (str(tmp_path), str(tmp_path / "data.csv"), "digits", "evidence:16"):
        found = open_images(data)
        assert pickle.loads(pickle.dumps(found.read))(1).tobytes() == found.read(1).tobytes()


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


@pytest.mark.parametrize("start", ["digits:", "", "a/"])
def test_a_name_that_is_too_long_for_a_file_is_refused_in_one_line(start: str) -> None:
    with pytest.raises(InputError):
        open_images(start + "9" * 5000)
