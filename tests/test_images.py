"""Image input: finding files and decoding images."""

from __future__ import annotations

import io
import os
import socket
import struct
import threading
import time
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from xaihub import Preprocessing, SourceImage, load_image, sample_photo
from xaihub.errors import InputError
from xaihub.explainers.rendering import png_bytes
from xaihub.images import find_images

RNG = np.random.default_rng(0)
# Smooth, so that lossy formats stay close to it; no symmetry, so that each orientation shows.
ACROSS, DOWN = np.meshgrid(np.linspace(0, 250, 48), np.linspace(0, 120, 32))
PIXELS = np.stack([ACROSS, DOWN, np.full((32, 48), 60.0)], axis=-1).astype(np.uint8)
PHOTO = Image.fromarray(PIXELS)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def exif(entries: list[tuple[int, int, int, bytes]]) -> bytes:
    """EXIF data of (tag, type, count, value) entries, as they are."""
    head, body, rest = b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)), b"", b""
    for tag, kind, count, value in entries:
        place = struct.pack("<I", 8 + 2 + 12 * len(entries) + 4 + len(rest))
        body += struct.pack("<HHI", tag, kind, count) + (place if len(value) > 4 else value.ljust(4, b"\0"))
        rest += value if len(value) > 4 else b""
    return head + body + bytes(4) + rest


def pixels(source: Any) -> np.ndarray[Any, Any]:
    image = load_image(source)
    assert image.rgb.mode == "RGB"
    return np.asarray(image.rgb)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_a_lossless_file_gives_its_pixels(kind: str, tmp_path: Path) -> None:
    file = tmp_path / f"photo.{kind.lower()}"
    file.write_bytes(encoded(PHOTO, kind))
    assert np.array_equal(pixels(file), PIXELS)
    assert np.array_equal(pixels(str(file)), PIXELS)
    assert np.array_equal(pixels(file.read_bytes()), PIXELS)


@pytest.mark.parametrize(("kind", "options"), [("JPEG", {"quality": 95}), ("WEBP", {"quality": 95}), ("GIF", {})])
def test_a_lossy_file_gives_nearly_its_pixels(kind: str, options: dict[str, Any]) -> None:
    error = np.abs(pixels(encoded(PHOTO, kind, **options)).astype(int) - PIXELS)
    assert error.mean() < 4


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG"])
def test_of_an_animation_the_first_frame_is_taken(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert pixels(data)[4, 4, 0] > 240
    assert pixels(data)[4, 4, 2] < 15


@pytest.mark.parametrize(
    ("orientation", "stored"),
    [
        (1, PIXELS),
        (2, PIXELS[:, ::-1]),
        (3, PIXELS[::-1, ::-1]),
        (4, PIXELS[::-1]),
        (5, PIXELS.transpose(1, 0, 2)),
        (6, np.rot90(PIXELS, 1)),
        (7, PIXELS.transpose(1, 0, 2)[::-1, ::-1]),
        (8, np.rot90(PIXELS, -1)),
    ],
)
def test_each_exif_orientation_is_undone(orientation: int, stored: np.ndarray[Any, Any]) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), "PNG", exif=exif)
    assert np.array_equal(pixels(data), PIXELS)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_transparency_is_laid_over_white(kind: str) -> None:
    alpha = np.zeros((32, 48), np.uint8)
    alpha[:, 24:] = 255
    data = encoded(Image.fromarray(np.dstack([PIXELS, alpha])), kind, **({"lossless": True} if kind == "WEBP" else {}))
    assert (pixels(data)[:, :24] == 255).all()
    assert np.array_equal(pixels(data)[:, 24:], PIXELS[:, 24:])


def test_half_transparency_is_mixed_with_white() -> None:
    data = encoded(Image.new("RGBA", (4, 4), (0, 100, 200, 128)), "PNG")
    assert np.abs(pixels(data)[0, 0].astype(int) - [127, 177, 227]).max() <= 1


@pytest.mark.parametrize("transparency", [1, b"\xff\x00"])
def test_a_transparent_palette_entry_is_white(transparency: int | bytes) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    data = encoded(image, "PNG", transparency=transparency)
    assert pixels(data).tolist() == [[[10, 20, 30], [255, 255, 255]]]


def test_grey_with_alpha_is_laid_over_white() -> None:
    assert pixels(encoded(Image.new("LA", (2, 2), (9, 0)), "PNG")).min() == 255


def test_grey_and_one_bit_images_become_rgb() -> None:
    grey = PIXELS[:, :, 0]
    assert np.array_equal(pixels(encoded(Image.fromarray(grey), "PNG")), np.dstack([grey] * 3))
    bits = Image.fromarray(grey > 100)
    assert bits.mode == "1"
    assert np.array_equal(pixels(encoded(bits, "PNG"))[:, :, 0], (grey > 100) * np.uint8(255))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_not_clipped(kind: str) -> None:
    grey = np.linspace(0, 65535, 32 * 48).reshape(32, 48).astype(np.uint16)
    found = pixels(encoded(Image.fromarray(grey), kind))[:, :, 0]
    assert np.array_equal(found, np.rint(grey / 257))
    assert found[0, 0] == 0
    assert found[-1, -1] == 255


def test_a_dark_sixteen_bit_image_stays_dark() -> None:
    assert pixels(encoded(Image.fromarray(np.full((4, 4), 200, np.uint16)), "PNG")).max() == 1


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 100.0, 255.0], [0, 100, 255]),
        ([0.0, 32767.5, 65535.0], [0, 128, 255]),
        ([0.0, 65535.0, 131070.0], [0, 128, 255]),
        ([-1.0, 0.0, 1.0], [0, 128, 255]),
    ],
)
def test_float_grey_is_scaled_by_the_range_that_it_needs(values: list[float], expected: list[int]) -> None:
    data = encoded(Image.fromarray(np.array([values], np.float32)), "TIFF")
    assert pixels(data)[0, :, 0].tolist() == expected


class TestRangesOfGreyValues:
    RAMP = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (64, 1))

    @pytest.mark.parametrize(
        ("factor", "kind"), [(1, np.float32), (255, np.float32), (65535, np.float32), (255, np.int32)]
    )
    @pytest.mark.parametrize("extreme", [1.004, 1.08, 3.7, -2.0, 1000.0])
    def test_no_pixel_decides_alone(self, factor: float, kind: type, extreme: float) -> None:
        values = (self.RAMP * factor).astype(kind)
        values[0, 0] = extreme * factor
        image = load_image(encoded(Image.fromarray(values), "TIFF"))
        plain = load_image(encoded(Image.fromarray((self.RAMP * factor).astype(kind)), "TIFF"))
        assert np.array_equal(np.asarray(image.rgb)[1:], np.asarray(plain.rgb)[1:])
        assert (np.asarray(plain.rgb).min(), np.asarray(plain.rgb).max()) == (0, 255)
        assert plain.notes == ()
        assert image.notes == (f"pixel values outside 0 to {factor:g} were clipped (1 of 4096 pixels)",)

    def test_overshoot_of_a_filter_along_edges_does_not_decide(self) -> None:
        values = np.where(np.arange(64) < 32, -0.07, 1.07) * np.ones((64, 1))
        assert set(np.unique(pixels(encoded(Image.fromarray(values.astype(np.float32)), "TIFF")))) == {0, 255}

    def test_a_range_that_the_file_declares_is_used(self) -> None:
        data = encoded(Image.fromarray(self.RAMP), "TIFF", tiffinfo={340: 0.0, 341: 2.0})
        assert pixels(data).max() in (127, 128)

    @pytest.mark.parametrize("declared", [(0.0, 0.0), (1.0, 0.0), (0.0, float("inf")), (float("nan"), 1.0)])
    def test_a_declared_range_without_values_is_ignored(self, declared: tuple[float, float]) -> None:
        data = encoded(Image.fromarray(self.RAMP), "TIFF", tiffinfo={340: declared[0], 341: declared[1]})
        assert pixels(data).max() == 255

    def test_an_unknown_range_is_estimated_and_noted(self) -> None:
        image = load_image(encoded(Image.fromarray(self.RAMP * 1e6), "TIFF"))
        assert "the file declares no range of pixel values, so 0 to" in image.notes[0]
        assert np.asarray(image.rgb)[:, 30].mean() == pytest.approx(255 * 30 / 63, abs=3)

    def test_unsigned_integers_above_the_signed_range_stay_bright(self) -> None:
        data = encoded(Image.fromarray(np.array([[0, -1]], np.int32)), "TIFF")
        signed = data.index(b"\x53\x01\x03\x00\x01\x00\x00\x00\x02") + 8  # SampleFormat
        unsigned = data[:signed] + b"\x01" + data[signed + 1 :]
        assert pixels(unsigned)[0, :, 0].tolist() == [0, 255]

    def test_a_large_image_is_converted_like_a_small_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        data = (
            encoded(Image.fromarray(self.RAMP * 2), "TIFF"),
            encoded(Image.fromarray(np.dstack([PIXELS, PIXELS[..., 0]])), "PNG"),
        )
        whole = [pixels(one) for one in data]
        monkeypatch.setattr("xaihub.images.colour.STRIP", 100)
        assert all(np.array_equal(pixels(one), found) for one, found in zip(data, whole, strict=True))


class TestTransparency:
    """In every mode that a file can have it, transparent pixels become white, and the others stay as they are."""

    @pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
    def test_a_transparent_grey_of_any_depth(self, bits: int) -> None:
        levels = 2**bits
        row = np.arange(min(levels, 8)) * (levels - 1) // (min(levels, 8) - 1)
        key = int(row[1])
        packed = "".join(f"{value:0{bits}b}" for value in row)
        data = bytes(int(packed.ljust(-len(packed) // 8 * -8, "0")[i : i + 8], 2) for i in range(0, len(packed), 8))
        found = pixels(png(len(row), bits, 0, data, key.to_bytes(2, "big")))[0, :, 0]
        expected = np.rint(row / (levels - 1) * 255)
        expected[1] = 255
        assert np.array_equal(found, expected)

    @pytest.mark.parametrize("bits", [8, 16])
    def test_a_transparent_colour(self, bits: int) -> None:
        unit = 257 if bits == 16 else 1
        size = bits // 8
        data = b"".join((value * unit).to_bytes(size, "big") for value in (10, 20, 30, 10, 20, 31))
        key = b"".join((value * unit).to_bytes(2, "big") for value in (10, 20, 30))
        assert pixels(png(2, bits, 2, data, key)).tolist() == [[[255] * 3, [10, 20, 31]]]

    @pytest.mark.parametrize("mode", ["LA", "La", "PA", "RGBA", "RGBa"])
    def test_an_alpha_channel_of_a_pillow_image(self, mode: str) -> None:
        image = Image.new("RGBA", (2, 1), (9, 9, 9, 0))
        image.putpixel((1, 0), (9, 9, 9, 255))
        made = image.convert("LA").convert(mode) if mode == "La" else image.convert(mode)
        assert pixels(made).tolist() == [[[255] * 3, [9] * 3]]

    @pytest.mark.parametrize("mode", ["I", "F", "I;16"])
    def test_a_transparent_value_of_a_deep_image(self, mode: str) -> None:
        kind = {"I": np.int32, "F": np.float32, "I;16": np.uint16}[mode]
        image = Image.fromarray(np.array([[0, 200, 65535]], kind))
        image.info["transparency"] = 200
        assert pixels(image)[0, :, 0].tolist() == [0, 255, 255]


def png(width: int, bits: int, colour: int, row: bytes, transparent: bytes) -> bytes:
    """A PNG file of one row, with a transparent grey or colour."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, 1, bits, colour, 0, 0, 0)
    parts = ((b"IHDR", head), (b"tRNS", transparent), (b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def test_thirty_two_bit_integers_are_scaled() -> None:
    data = encoded(Image.fromarray(np.array([[0, 65535]], np.int32)), "TIFF")
    assert pixels(data)[0, :, 0].tolist() == [0, 255]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_float_grey_that_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(InputError, match="'bytes': the image has NaN or infinite pixels"):
        load_image(encoded(Image.fromarray(np.array([[0.5, value]], np.float32)), "TIFF"))


def test_a_cmyk_jpeg_keeps_its_colours() -> None:
    cmyk = Image.new("RGB", (16, 16), (200, 30, 60)).convert("CMYK")
    assert np.abs(pixels(encoded(cmyk, "JPEG", quality=95)).astype(int) - [200, 30, 60]).max() < 12


GREY, RGB = (Preprocessing(spatial=[], size=(channels, 8, 8), mean=(0.0,), std=(1.0,)) for channels in (1, 3))


class TestArraysAndImages:
    def test_bytes_floats_and_bits_are_read(self) -> None:
        assert np.array_equal(pixels(PIXELS), PIXELS)
        assert np.array_equal(pixels(PIXELS / 255), PIXELS)
        assert np.array_equal(pixels((PIXELS.astype(np.uint16)) * 257), PIXELS)
        assert np.array_equal(pixels(PIXELS[:, :, :1]), pixels(PIXELS[:, :, 0]))
        assert set(np.unique(pixels(PIXELS[:, :, 0] > 100))) == {0, 255}

    def test_a_fourth_channel_is_alpha(self) -> None:
        assert pixels(np.zeros((2, 2, 4), np.uint8)).min() == 255

    def test_a_pil_image_is_read_upright_and_left_alone(self) -> None:
        exif = Image.Exif()
        exif[274] = 6
        image = Image.open(io.BytesIO(encoded(PHOTO, "PNG", exif=exif)))
        assert load_image(image).rgb.size == (32, 48)
        assert image.size == (48, 32)

    def test_an_image_passes_through(self) -> None:
        image = load_image(PHOTO)
        assert load_image(image) is image
        assert isinstance(image, SourceImage)

    @pytest.mark.parametrize(
        "array",
        [
            np.zeros(3),
            np.zeros((3, 8, 8)),
            np.zeros((2, 2, 2)),
            np.zeros((1, 2, 2, 3)),
            np.zeros((0, 4, 3)),
            np.float64(1),
        ],
    )
    def test_an_array_of_another_shape_is_refused(self, array: Any) -> None:
        with pytest.raises(InputError, match="the array has the shape|channels, but the model takes 3"):
            RGB(load_image(array))

    @pytest.mark.parametrize(
        "array",
        [np.full((4, 4), 1.5), np.full((4, 4), -0.1), np.full((4, 4), np.nan), np.zeros((4, 4), np.int64),
         np.zeros((4, 4), complex)],
    )  # fmt: skip
    def test_values_of_unknown_meaning_are_refused(self, array: Any) -> None:
        with pytest.raises(InputError, match="declares no range|NaN or infinite|not numbers"):
            GREY(load_image(array))

    def test_the_checksum_is_of_the_pixels(self) -> None:
        assert load_image(PIXELS).sha256 == load_image(PHOTO).sha256
        assert load_image(PIXELS).sha256 != load_image(PIXELS[::-1]).sha256


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
