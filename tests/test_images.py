"""Image input: finding files and decoding images."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.image_files import PHOTO, PIXELS, encoded, pixels, png
from xaihub import Preprocessing, SourceImage, load_image
from xaihub.errors import InputError


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
