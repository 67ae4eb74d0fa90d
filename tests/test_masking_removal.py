"""Removal operators: every baseline, the fill formula, and inpainting."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import xaihub
from xaihub import Model, ParameterError, Preprocessing, XaihubError
from xaihub.errors import PluginError
from xaihub.masking import Fill, Inpaint, Removal, baseline_image, make_removal

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.1)


def _model(height: int = 8, width: int = 12) -> Model:
    """A network that returns its input, so that what the model was shown can be read off the outputs."""
    spatial = (lambda image: image.resize((width, height), Image.Resampling.NEAREST),)
    plain = Preprocessing(spatial=spatial, size=(3, height, width), mean=MEAN, std=STD)
    return Model(nn.Flatten(), name="mirror", preprocessing=plain)


def _image(height: int = 8, width: int = 12) -> Tensor:
    return torch.randn(3, height, width, generator=torch.Generator().manual_seed(0))


def _units(level: float) -> Tensor:
    return torch.tensor([(level - m) / s for m, s in zip(MEAN, STD, strict=True)]).view(3, 1, 1).expand(3, 8, 12)


@pytest.mark.parametrize(
    ("name", "level"),
    [("black", 0.0), ("grey", 0.5), ("white", 1.0), ("constant:0.3", 0.3), ("constant:0", 0.0), ("constant:1", 1.0)],
)
def test_even_baselines_are_levels_of_the_image(name: str, level: float) -> None:
    assert torch.allclose(baseline_image(name, _model(), _image()), _units(level), atol=1e-6)


def test_zero_is_zero_and_mean_is_the_mean_of_each_channel() -> None:
    image = _image()
    assert torch.equal(baseline_image("zero", _model(), image), torch.zeros_like(image))
    mean = baseline_image("mean", _model(), image)
    assert torch.allclose(mean[1], torch.full((8, 12), float(image[1].mean())), atol=1e-6)


def test_noise_lies_in_the_range_of_pixels_and_follows_the_seed() -> None:
    model, image = _model(), _image()
    torch.manual_seed(4)
    first = baseline_image("noise", model, image)
    torch.manual_seed(4)
    assert torch.equal(first, baseline_image("noise", model, image))
    pixels = model.preprocessing.denormalise(first)
    assert pixels.min() >= -1e-6
    assert pixels.max() <= 1 + 1e-6
    assert pixels.std() > 0.2


@pytest.mark.parametrize("size", [(64, 64), (8, 96), (224, 40)])
def test_blur_keeps_the_mean_and_loses_detail(size: tuple[int, int]) -> None:
    image = _image(*size)
    blurred = baseline_image("blur", _model(*size), image)
    assert blurred.shape == image.shape
    assert blurred.std() < 0.6 * image.std()
    constant = torch.full((3, *size), 0.7)
    assert torch.allclose(baseline_image("blur", _model(*size), constant), constant, atol=1e-5)


def test_another_image_is_prepared_like_the_first(tmp_path: Path) -> None:
    path = tmp_path / "other: one.png"
    Image.fromarray(np.full((20, 20, 3), 51, dtype=np.uint8)).save(path)
    assert torch.allclose(baseline_image(f"image:{path}", _model(), _image()), _units(0.2), atol=1e-5)


def test_an_image_that_is_missing_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(XaihubError, match=r"none\.png"):
        baseline_image(f"image:{tmp_path / 'none.png'}", _model(), _image())


@pytest.mark.parametrize(
    "name", ["", "purple", "constant:", "constant:2", "constant:-0.1", "constant:nan", "constant:x", "image:", "zero:1"]
)
def test_a_baseline_that_does_not_exist_is_refused(name: str) -> None:
    with pytest.raises(ParameterError, match="baseline"):
        make_removal(name, _model(), _image())


def test_inpaint_is_a_removal_but_no_image() -> None:
    assert isinstance(make_removal("inpaint", _model(), _image()), Inpaint)
    with pytest.raises(ParameterError, match="cannot be used here"):
        baseline_image("inpaint", _model(), _image())


@pytest.mark.parametrize("kind", ["soft", "binary", "bool"])
def test_fill_is_mask_times_image_plus_the_rest_of_the_baseline(kind: str) -> None:
    image, baseline = _image(), torch.randn(3, 8, 12)
    soft = torch.rand(5, 1, 8, 12)
    masks = {"soft": soft, "binary": (soft > 0.5).float(), "bool": soft > 0.5}[kind]
    shown = Fill(baseline)(_model(), image, masks).view(5, 3, 8, 12)
    for row in range(5):
        for channel in range(3):
            m = masks[row, 0].float()
            expected = m * image[channel] + (1 - m) * baseline[channel]
            assert torch.allclose(shown[row, channel], expected, atol=1e-6)


def test_fill_shows_exactly_the_image_and_exactly_the_baseline() -> None:
    image, baseline = _image(), torch.randn(3, 8, 12)
    shown = Fill(baseline)(_model(), image, torch.stack([torch.ones(1, 8, 12), torch.zeros(1, 8, 12)]))
    assert torch.equal(shown[0], image.flatten())
    assert torch.equal(shown[1], baseline.flatten())


@pytest.mark.parametrize("size", [(8, 12), (7, 13), (16, 8), (1, 9), (33, 33)])
def test_inpainting_keeps_what_is_visible_and_stays_within_its_range(size: tuple[int, int]) -> None:
    image = _image(*size) + 3
    masks = (torch.rand(6, 1, *size, generator=torch.Generator().manual_seed(1)) < 0.3).float()
    masks[:, :, 0, 0] = 1
    masks[0] = 0
    masks[0, 0, 0, -1] = 1  # a single visible pixel fills everything
    shown = Inpaint()(_model(*size), image, masks).view(6, 3, *size)
    assert torch.allclose(shown[0], image[:, :1, -1:].expand_as(image), atol=1e-5)
    for row in range(6):
        visible = masks[row, 0].bool()
        for channel in range(3):
            seen = image[channel][visible]
            assert torch.equal(shown[row, channel][visible], seen)
            assert shown[row, channel].min() >= seen.min() - 1e-5
            assert shown[row, channel].max() <= seen.max() + 1e-5


def test_inpainting_leaves_a_constant_image_constant() -> None:
    image = torch.full((3, 9, 14), 0.7)
    masks = (torch.rand(4, 1, 9, 14) < 0.2).float()
    masks[:, :, 4, 4] = 1
    assert torch.allclose(Inpaint()(_model(9, 14), image, masks), torch.tensor(0.7), atol=1e-6)


def test_inpainting_nothing_visible_gives_the_mean_of_the_data() -> None:
    shown = Inpaint()(_model(), _image(), torch.zeros(2, 1, 8, 12))
    assert torch.equal(shown, torch.zeros_like(shown))


def test_inpainting_a_half_hidden_pixel_mixes_it_once_with_its_surroundings() -> None:
    image = torch.zeros(3, 1, 1) + 2.0
    masks = torch.full((1, 1, 1, 1), 0.5)
    assert torch.allclose(Inpaint()(_model(1, 1), image, masks), torch.tensor(2.0))
    square = torch.zeros(3, 2, 2)
    square[:, 0, 0] = 4.0
    half = torch.ones(1, 1, 2, 2)
    half[..., 0, 0] = 0.5
    shown = Inpaint()(_model(2, 2), square, half).view(3, 2, 2)
    # Half of itself, and half of the weighted mean of all four: 0.5 * 4 + 0.5 * (0.5 * 4 / 3.5).
    assert torch.allclose(shown[:, 0, 0], torch.tensor(2 + 0.5 * 2 / 3.5), atol=1e-6)


def test_a_plugin_can_add_a_way_to_hide_pixels() -> None:
    class Doubling(Removal):
        def __call__(self, model: Model, image: Tensor, masks: Tensor) -> Tensor:
            return 2 * model((image * masks).contiguous())

    loaded = xaihub.load_model()
    loaded.baselines = {"doubling": lambda: lambda model, image: Doubling()}
    image = torch.randn(loaded.input_size)
    masks = torch.ones(1, 1, *loaded.input_size[1:])
    doubled = make_removal("doubling", loaded, image)(loaded, image, masks)
    torch.testing.assert_close(doubled, 2 * loaded(image[None]))


def test_an_unknown_baseline_is_refused_with_those_of_plugins_as_well() -> None:
    loaded, image = _model(), _image()
    loaded.baselines = {"doubling": lambda: lambda model, image: Fill(image)}
    with pytest.raises(ParameterError, match="no baseline is named 'doublin'") as refused:
        make_removal("doublin", loaded, image)
    assert "inpaint, doubling, constant:V" in str(refused.value.hint)
    with pytest.raises(ParameterError, match="'doubling' cannot be used here"):
        baseline_image("doubling", loaded, image)


def test_a_plugins_baseline_of_the_wrong_type_is_refused() -> None:
    loaded = xaihub.load_model()
    loaded.baselines = {"wrong": lambda: lambda model, image: 3}
    with pytest.raises(PluginError, match="'wrong' returned int"):
        make_removal("wrong", loaded, torch.randn(loaded.input_size))
