"""Where labelled images come from, how they are split, and what is refused."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.training.data_files import labelled, save
from xaihub import Preprocessing
from xaihub.errors import InputError
from xaihub.training.data.builtin import SHAPES, evidence_image
from xaihub.training.data.images import check_classes, readable, split
from xaihub.training.data.sources import open_images


def quiet(_text: str, _done: int, _total: int) -> None:
    """Watch nothing."""


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


@pytest.mark.parametrize("start", ["digits:", "", "a/"])
def test_a_name_that_is_too_long_for_a_file_is_refused_in_one_line(start: str) -> None:
    with pytest.raises(InputError):
        open_images(start + "9" * 5000)
