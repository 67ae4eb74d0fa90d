"""Image files that are damaged or not images, and how images are found."""

from __future__ import annotations

import io
import os
import socket
import struct
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.image_files import PHOTO, PIXELS, encoded, exif, pixels
from xaihub import load_image, sample_photo
from xaihub.errors import InputError
from xaihub.explainers.rendering import png_bytes
from xaihub.images import find_images

RNG = np.random.default_rng(0)


class TestBadFiles:
    def refusal(self, source: Any) -> str:
        with pytest.raises(InputError) as caught:
            load_image(source)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def test_a_missing_file(self, tmp_path: Path) -> None:
        assert self.refusal(tmp_path / "no.png") == f"there is no file '{tmp_path / 'no.png'}'"

    def test_an_empty_file(self, tmp_path: Path) -> None:
        (tmp_path / "x.png").touch()
        assert self.refusal(tmp_path / "x.png") == f"'{tmp_path / 'x.png'}' is empty"

    @pytest.mark.parametrize("data", [b"hello", b"<svg/>", b"%PDF-1.4", b"\x00" * 100], ids=repr)
    def test_a_file_that_is_no_image(self, data: bytes, tmp_path: Path) -> None:
        (tmp_path / "x.png").write_bytes(data)
        assert f"'{tmp_path / 'x.png'}' is not an image (known formats: JPEG, PNG" in self.refusal(tmp_path / "x.png")

    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
    @pytest.mark.parametrize("share", [0.3, 0.9])
    def test_a_truncated_file(self, kind: str, share: float) -> None:
        noise = Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8))
        data = encoded(noise, kind)
        assert "'bytes' is" in self.refusal(data[: int(len(data) * share)])

    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
    def test_random_damage_never_raises_anything_else(self, kind: str) -> None:
        exif = Image.Exif()
        exif[274] = 6
        data = encoded(PHOTO, kind, **({"exif": exif} if kind in ("JPEG", "PNG", "WEBP") else {}))
        refused = 0
        for _ in range(150):
            damaged = bytearray(data)
            for where in RNG.integers(0, min(len(data), 300), 4):
                damaged[where] = RNG.integers(256)
            try:
                load_image(bytes(damaged))
            except InputError:
                refused += 1
        assert refused > 10

    def test_a_folder(self, tmp_path: Path) -> None:
        assert self.refusal(tmp_path) == f"cannot read '{tmp_path}': Is a directory"

    def test_a_name_that_no_file_can_have(self) -> None:
        assert "cannot read" in self.refusal("x" * 5000)
        assert "cannot read" in self.refusal("a\0b")

    def test_a_decompression_bomb(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)  # Pillow refuses above twice this
        assert self.refusal(encoded(PHOTO, "PNG")) == "'bytes' has too many pixels to be safe (scale it down first)"

    def test_a_large_photo_below_the_limit_is_read_without_a_warning(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
        assert np.array_equal(pixels(encoded(PHOTO, "PNG")), PIXELS)

    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
    @pytest.mark.parametrize(
        ("tag", "type_", "value"),
        [(0x11A, 10, struct.pack("<iI", -1, 0)), (0x11A, 5, bytes(8)), (0x8769, 4, b"\xff\xff\xff\x7f"),
         (0x10E, 7, b"\xff" * 9), (0x8825, 2, b"a"), (0x11B, 12, struct.pack("<d", float("nan")))],
    )  # fmt: skip
    def test_damaged_metadata_cost_neither_the_image_nor_its_orientation(
        self, kind: str, tag: int, type_: int, value: bytes
    ) -> None:
        data = exif([(0x112, 3, 1, struct.pack("<H", 6)), (tag, type_, max(1, len(value) // 8), value)])
        options = {"tiffinfo": Image.Exif()} if kind == "TIFF" else {"exif": b"Exif\0\0" + data}
        try:
            image = load_image(encoded(PHOTO, kind, **options))
        except struct.error:  # what is tested is reading, and Pillow does not write all of them
            pytest.skip("Pillow refuses to write it")
        assert image.rgb.size == ((48, 32) if kind == "TIFF" else (32, 48))

    @pytest.mark.parametrize(
        "error", [struct.error("x"), TypeError("x"), IndexError("x"), ZeroDivisionError("x"), KeyError("x"),
                  AttributeError("x"), OverflowError("x"), RecursionError("x"), AssertionError(), MemoryError()],
    )  # fmt: skip
    def test_whatever_a_decoder_raises_is_one_line(self, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_args: Any, **_options: Any) -> None:
            raise error

        monkeypatch.setattr(Image, "open", fail)
        assert "'bytes' " in self.refusal(encoded(PHOTO, "PNG"))

    def test_threads_that_decode_leave_the_filters_of_warnings_alone(self) -> None:
        before = warnings.filters[:]
        data = encoded(PHOTO, "PNG")
        threads = [threading.Thread(target=lambda: [load_image(data) for _ in range(100)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert warnings.filters == before

    @pytest.mark.parametrize("kind", ["fifo", "socket", "/dev/zero", "/dev/null", "link"])
    def test_what_is_not_a_regular_file_never_blocks(self, kind: str, tmp_path: Path) -> None:
        file = tmp_path / "x.png"
        if kind == "fifo":
            os.mkfifo(file)
        elif kind == "socket":
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(str(file))
            listener.close()
        else:
            file.symlink_to("/dev/zero" if kind == "link" else kind)
        assert "it is not a regular file (use - to read standard input)" in self.refusal(file)
        with pytest.raises(InputError, match="not a regular file"):
            find_images([file])

    @pytest.mark.parametrize("source", [None, 3, ["a.png"], {"a": 1}, object()])
    def test_what_is_not_an_image_at_all(self, source: Any) -> None:
        assert "is not an image" in self.refusal(source)

    def test_a_closed_standard_input(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sys.stdin", None)
        assert self.refusal("-") == "standard input is closed"

    @pytest.mark.parametrize("size", [(2000, 1), (1, 2000), (30000, 2)])
    def test_an_image_that_is_too_thin(self, size: tuple[int, int]) -> None:
        expected = f"the image is too thin: {size[0]} x {size[1]} pixels (crop it; one side can be up to 1000 times"
        assert expected in self.refusal(encoded(Image.new("RGB", size), "PNG"))
        assert expected in self.refusal(np.zeros((*size[::-1], 3), np.uint8))

    @pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "GIF"])
    def test_the_size_is_checked_before_anything_is_decoded(self, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        data = encoded(Image.new("L", (300, 300)), kind)
        monkeypatch.setattr("xaihub.images.decoding.BUDGET", 300 * 300 * 8 - 1)
        monkeypatch.setattr(Image.Image, "load", lambda _self: pytest.fail("it was decoded"))
        assert "too many pixels to be safe: 300 x 300 (scale it down first)" in self.refusal(data)

    def test_a_tile_that_is_larger_than_its_image(self) -> None:
        data = encoded(PHOTO, "TIFF", compression="tiff_lzw", tiffinfo={322: 2**16, 323: 2**16})
        count = struct.unpack("<H", data[(start := struct.unpack("<I", data[4:8])[0]) : start + 2])[0] if data else 0
        entries = b"".join(struct.pack("<HHII", tag, 4, 1, 2**20) for tag in (322, 323))
        moved = data[start + 2 : start + 2 + 12 * count] + entries + bytes(4)
        tiled = data[:4] + struct.pack("<I", len(data)) + data[8:] + struct.pack("<H", count + 2) + moved
        assert "too many pixels to be safe" in self.refusal(tiled)

    def test_a_jpeg_of_many_scans(self) -> None:
        data = encoded(PHOTO, "JPEG", progressive=True)
        scan = data.rindex(b"\xff\xda")
        assert "more than 64 scans" in self.refusal(data[:scan] + data[scan:-2] * 80 + data[-2:])
        assert pixels(data).shape == (32, 48, 3)

    def test_an_image_without_pixels(self) -> None:
        assert self.refusal(Image.new("RGB", (0, 4))) == "the image has no pixels"


class TestFindingImages:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        (tmp_path / "deep" / "er").mkdir(parents=True)
        for name in ("b.png", "a.JPG", "deep/er/c.webp", "notes.txt", "deep/d.tiff"):
            (tmp_path / name).write_bytes(b"x")
        return tmp_path

    def names(self, folder: Path, *paths: str) -> list[str]:
        return [str(Path(found).relative_to(folder)) for found in find_images([str(folder / path) for path in paths])]

    def test_a_folder_is_searched_with_its_subfolders(self, folder: Path) -> None:
        assert self.names(folder, "") == ["a.JPG", "b.png", "deep/d.tiff", "deep/er/c.webp"]

    def test_a_glob_is_expanded_in_order(self, folder: Path) -> None:
        assert self.names(folder, "*.[pJ]*") == ["a.JPG", "b.png"]
        assert self.names(folder, "**/*.webp") == ["deep/er/c.webp"]

    def test_doubles_are_removed_and_the_order_is_kept(self, folder: Path) -> None:
        assert self.names(folder, "b.png", "*.png", "", "b.png")[:2] == ["b.png", "a.JPG"]

    def test_a_file_is_taken_whatever_its_suffix(self, folder: Path) -> None:
        assert self.names(folder, "notes.txt") == ["notes.txt"]

    def test_a_name_with_glob_characters_is_a_file_first(self, tmp_path: Path) -> None:
        (tmp_path / "cat[1].png").write_bytes(b"x")
        assert self.names(tmp_path, "cat[1].png") == ["cat[1].png"]

    def test_hidden_files_and_what_archives_add_are_skipped(self, folder: Path) -> None:
        for name in (
            ".git/x.png",
            "deep/.thumbs/y.png",
            "__MACOSX/z.png",
            "._a.JPG",
            ".b.png",
            "deep/__MACOSX/._q.jpg",
        ):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(b"x")
        assert self.names(folder, "") == ["a.JPG", "b.png", "deep/d.tiff", "deep/er/c.webp"]
        assert self.names(folder, ".git") == [".git/x.png"]  # it was named
        assert self.names(folder, ".b.png") == [".b.png"]

    def test_own_figures_are_skipped_with_a_note_unless_they_are_named(self, folder: Path) -> None:
        (folder / "deep" / "own.PNG").write_bytes(png_bytes(PHOTO))
        notes: list[str] = []
        assert "deep/own.PNG" not in [
            str(Path(one).relative_to(folder)) for one in find_images([folder], note=notes.append)
        ]
        assert notes == [f"{str(folder)!r}: 1 figure that xaihub has drawn skipped"]
        assert self.names(folder, "deep/*.PNG", "b.png") == ["b.png"]
        assert self.names(folder, "deep/own.PNG") == ["deep/own.PNG"]
        with pytest.raises(InputError, match="holds only figures that xaihub has drawn"):
            find_images([str(folder / "deep" / "*.PNG")])

    def test_a_marked_figure_is_a_valid_png(self) -> None:
        with Image.open(io.BytesIO(png_bytes(PHOTO))) as image:
            assert image.text == {"Software": "xaihub"}
        assert np.array_equal(pixels(png_bytes(PHOTO)), PIXELS)

    @pytest.mark.slow
    def test_fifty_thousand_files_cost_seconds(self, tmp_path: Path) -> None:
        for number in range(50):
            (tmp_path / str(number)).mkdir()
        for number in range(50_000):
            os.mknod(tmp_path / str(number % 50) / f"{number}.{'png' if number % 2 else 'jpg'}")
        started = time.process_time()
        assert len(find_images([tmp_path])) == 50_000
        assert time.process_time() - started < 30

    def test_standard_input_stands_for_itself(self) -> None:
        assert find_images(["-"]) == ["-"]

    @pytest.mark.parametrize("path", ["none.png", "*.bmp", "x" * 5000])
    def test_what_is_not_there_is_named(self, folder: Path, path: str) -> None:
        with pytest.raises(InputError, match=r"there is no file or folder|no file matches"):
            self.names(folder, path)

    def test_a_folder_without_images_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no image in the folder"):
            find_images([tmp_path])

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
    @pytest.mark.parametrize("locked", ["", "deep"])
    def test_an_unreadable_folder_is_named(self, folder: Path, locked: str) -> None:
        (folder / locked).chmod(0)
        try:
            with pytest.raises(InputError, match=f"cannot read the folder '{folder / locked}'"):
                find_images([folder])
        finally:
            (folder / locked).chmod(0o700)

    def test_a_folder_that_the_system_refuses_to_list_is_named(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def scandir(path: Any) -> Any:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(os, "scandir", scandir)
        with pytest.raises(InputError, match=f"cannot read the folder '{folder}': Permission denied"):
            find_images([folder])


def test_standard_input_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stdin:
        buffer = io.BytesIO(encoded(PHOTO, "PNG"))

    monkeypatch.setattr("sys.stdin", Stdin)
    image = load_image("-")
    assert (image.name, image.source) == ("stdin", "-")
    assert load_image("-").sha256 == image.sha256  # a second model asks for it as well
    assert np.array_equal(np.asarray(image.rgb), PIXELS)


def test_the_sample_photo_is_installed() -> None:
    image = load_image(sample_photo())
    assert image.name == "chelsea"
    assert image.rgb.size == (451, 300)
