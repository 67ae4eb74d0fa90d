"""Which label, mask or box belongs to which image."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from xaihub.errors import InputError
from xaihub.matching import matched

PICTURES = ["photos/cat/001.jpg", "photos/dog/001.jpg", "photos/dog/002.jpg"]


def test_names_that_occur_once_are_enough() -> None:
    entries = {"y.jpg": 1, "elsewhere/x.jpg": 2, "z.jpg": 3}
    assert matched(["a/x.jpg", "a/y.jpg"], entries.items(), where="table") == {
        "a/x.jpg": 2,
        "a/y.jpg": 1,
    }


def test_folders_tell_images_of_one_name_apart() -> None:
    entries = {"photos/cat/001.jpg": 3, "/other/machine/dog/001.jpg": 7, "/other/machine/bird/001.jpg": 9}
    assert matched(PICTURES, entries.items(), where="table") == {"photos/cat/001.jpg": 3, "photos/dog/001.jpg": 7}


def test_masks_agree_without_endings() -> None:
    masks = {"dog/001.png": "dog", "cat/001.png": "cat", "002.png": "second"}
    assert list(matched(PICTURES, masks.items(), where="folder", by_stem=True).values()) == ["cat", "dog", "second"]


def test_an_image_without_an_entry_does_not_get_that_of_its_twin() -> None:
    assert matched(PICTURES, [("dog/001.jpg", 7)], where="table") == {"photos/dog/001.jpg": 7}


def test_paths_may_start_from_the_tables_own_folder(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    image = str(tmp_path / "a" / "x.jpg")
    entries = {"a/x.jpg": 1, "b/x.jpg": 2}
    assert matched([image], entries.items(), where="table", base=tmp_path) == {image: 1}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"001.jpg": 3}, "lists '001.jpg', which several images are called"),
        ({"a/002.jpg": 3, "b/002.jpg": 4}, "several entries for 'photos/dog/002.jpg': a/002.jpg, b/002.jpg"),
        (
            {"photos/dog/002.jpg": 3, "./photos/dog/002.jpg": 4},
            "lists 'photos/dog/002.jpg' twice with different values",
        ),
    ],
)
def test_what_cannot_be_told_is_refused(entries: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        matched(PICTURES, entries.items(), where="table")


def test_an_entry_that_is_there_twice_must_say_the_same() -> None:
    assert matched(["x.jpg"], [("x.jpg", 1), ("x.jpg", 1)], where="table") == {"x.jpg": 1}
    with pytest.raises(InputError, match="lists 'x.jpg' twice with different values"):
        matched(["x.jpg"], [("x.jpg", 1), ("x.jpg", 2)], where="table")


def test_many_images_of_one_name_are_matched_in_seconds() -> None:
    images = [f"photos/{number // 100}/{number}/image.jpg" for number in range(20_000)]
    entries = [(f"{number // 100}/{number}/image.png", number) for number in range(20_000)]
    started = time.process_time()
    assert list(matched(images, entries, where="masks", by_stem=True).values()) == list(range(20_000))
    assert time.process_time() - started < 30


def test_a_name_that_no_file_can_have_matches_nothing() -> None:
    assert matched(["a.png"], [("a\0.png", 1)], where="labels") == {}
