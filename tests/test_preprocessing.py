"""Preprocessing is bit-identical to the libraries' own, and its geometry can be inverted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torchvision import models

from xaihub import Geometry, Hub, ModelCard, ModelError, ModelRequest, Preprocessing
from xaihub.errors import InputError
from xaihub.models import scaling
from xaihub.specs import Weights
from xaihub_zoo.timm_adapter import TimmAdapter, _preprocessing
from xaihub_zoo.torchvision_adapter import TorchvisionAdapter

RNG = np.random.default_rng(0)
SIZES = [(451, 300), (300, 451), (97, 331), (224, 224), (64, 50), (301, 299)]
CONFIGS: dict[str, dict[str, Any]] = {
    "center": {"crop_mode": "center", "crop_pct": 0.875, "interpolation": "bilinear"},
    "center_whole": {"crop_mode": "center", "crop_pct": 1.0, "interpolation": "bicubic"},
    "squash": {"crop_mode": "squash", "crop_pct": 1.0, "interpolation": "bicubic"},
    "squash_cropped": {"crop_mode": "squash", "crop_pct": 0.9, "interpolation": "bicubic"},
    "border": {"crop_mode": "border", "crop_pct": 0.95, "interpolation": "bicubic"},
    "border_whole": {"crop_mode": "border", "crop_pct": 1.0, "interpolation": "bilinear"},
    "oblong": {"size": (96, 160), "crop_mode": "center", "crop_pct": 0.9},
    "own_mean": {"mean": (0.1, 0.2, 0.3), "std": (0.9, 0.8, 0.7)},
}


def photo(size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(RNG.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def network(**config: Any) -> torch.nn.Module:
    """A module without weights that carries a timm configuration."""
    module = torch.nn.Identity()
    module.pretrained_cfg = {"input_size": (3, 160, 160), "num_classes": 10, **config}
    return module


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_the_input_equals_timms_own_transform_bit_for_bit(name: str, size: tuple[int, int]) -> None:
    overrides = dict(CONFIGS[name])
    args = {**overrides, "input_size": (3, *overrides.get("size", (160, 160)))}
    expected = create_transform(**resolve_data_config(args=args, model=network()))
    image = photo(size)
    inputs, geometry = _preprocessing(network(), overrides)(image)
    assert torch.equal(inputs, expected(image))
    assert geometry.original == size
    assert geometry.crop == (inputs.shape[2], inputs.shape[1])


@pytest.mark.parametrize("size", [(300, 1), (1, 300), (250, 2), (3, 400), (160, 160)], ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_cropping_before_scaling_gives_the_same_pixels(
    name: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = dict(CONFIGS[name])
    args = {**overrides, "input_size": (3, *overrides.get("size", (160, 160)))}
    monkeypatch.setattr(scaling, "BLOCK", 5000)
    image = photo(size)
    ours = _preprocessing(network(), overrides)
    try:
        expected = create_transform(**resolve_data_config(args=args, model=network()))(image)
    except ValueError:  # the shorter side would get no pixel
        with pytest.raises(InputError, match="too thin or too large for the model"):
            ours(image)
        with pytest.raises(InputError, match="too thin or too large for the model"):
            ours.check(image)
    else:
        assert torch.equal(ours(image)[0], expected)


@pytest.mark.parametrize("resample", list(Image.Resampling))
def test_a_crop_of_a_scaled_image_equals_the_crop_of_the_whole(
    resample: Image.Resampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scaling, "BLOCK", 2000)
    for _ in range(40):
        width, height, wide, high = (int(number) for number in RNG.integers(1, 250, 4))
        left, top = int(RNG.integers(0, wide)), int(RNG.integers(0, high))
        box = (left, top, int(RNG.integers(left, wide)) + 1, int(RNG.integers(top, high)) + 1)
        image = photo((width, height))
        expected = image.resize((wide, high), resample)
        lazy = scaling.economical(image).resize((wide, high), resample)
        assert np.array_equal(np.asarray(lazy.crop(box)), np.asarray(expected.crop(box)))
        assert np.array_equal(np.asarray(lazy), np.asarray(expected))


def test_a_thin_image_is_never_scaled_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "LARGEST", 2**20)  # 160 x 160000 pixels are more
    monkeypatch.setattr(scaling, "BLOCK", 2**18)
    inputs, geometry = _preprocessing(network(), {})(photo((2000, 2)))
    assert inputs.shape == (3, 160, 160)
    assert geometry.scaled[0] > 160_000
    with pytest.raises(InputError, match="2000 x 2 pixels takes too much memory when it is scaled to"):
        _preprocessing(network(), {"crop_mode": "center"}).spatial[0](scaling.economical(photo((2000, 2)))).load()


def test_a_crop_that_shows_a_few_per_cent_is_noted() -> None:
    preprocessing = _preprocessing(network(), {"crop_pct": 1.0})
    (note,) = preprocessing(photo((2000, 100)))[1].notes()
    assert note == "the model's crop shows only 5 % of the image (2000 x 100 pixels); crop the image first"
    assert preprocessing(photo((300, 100)))[1].notes() == ()
    assert _preprocessing(network(), {"crop_mode": "squash"})(photo((2000, 100)))[1].notes() == ()
    assert _preprocessing(network(), dict(CONFIGS["border_whole"]))(photo((2000, 100)))[1].visible() == pytest.approx(1)


def test_the_map_of_a_large_image_is_computed_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    geometry = Geometry(original=(90, 60), scaled=(96, 64), offset=(16, 0), crop=(64, 64))
    whole = geometry.to_original(torch.rand(8, 8, generator=torch.Generator().manual_seed(0)))
    monkeypatch.setattr("xaihub.models.preprocessing.BLOCK", 500)
    again = geometry.to_original(torch.rand(8, 8, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(whole.nan_to_num(-1), again.nan_to_num(-1))


@pytest.mark.parametrize("size", [(3, 100_000, 100_000), (3, 0, 4)])
def test_an_input_of_an_impossible_size_is_refused(size: tuple[int, int, int]) -> None:
    with pytest.raises(ModelError, match="values is not supported"):
        Preprocessing(spatial=[], size=size, mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "inception_v3", "tf_efficientnet_lite0", "resnet18"])
def test_each_architecture_brings_its_own_settings(name: str) -> None:
    config = timm.get_pretrained_cfg(name)
    assert config is not None
    module = network(**config.to_dict())
    image = photo((451, 300))
    inputs, _ = _preprocessing(module, {})(image)
    assert torch.equal(inputs, create_transform(**resolve_data_config(model=module))(image))
    assert inputs.shape == config.input_size


def test_a_grey_model_gets_one_channel() -> None:
    module = network(input_size=(1, 28, 28), mean=(0.5,), std=(0.25,), crop_pct=1.0, interpolation="bilinear")
    image = photo((28, 28))
    inputs, _ = _preprocessing(module, {})(image)
    expected = (np.asarray(image.convert("L"), np.float32) / 255 - 0.5) / 0.25
    assert np.allclose(inputs[0].numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(("name", "size"), [("resnet18", (451, 300)), ("inception_v3", (300, 451))])
def test_the_input_equals_torchvisions_own_preset_bit_for_bit(name: str, size: tuple[int, int]) -> None:
    card = ModelCard(name=name, architecture=f"torchvision/{name}", weights=Weights(source="none"))
    options = {"init_weights": False} if name == "inception_v3" else {}
    request = ModelRequest(name=name, card=card, options=options)
    model = TorchvisionAdapter().build(request, torch.device("cpu"))
    image = photo(size)
    inputs, geometry = model.prepare(image)
    assert torch.equal(inputs, models.get_model_weights(name)["DEFAULT"].transforms()(image))
    assert geometry.crop == (inputs.shape[2], inputs.shape[1])


def test_the_settings_of_timms_models_are_recorded() -> None:
    card = ModelCard(name="x", architecture="test_vit", weights=Weights(source="none"))
    model = TimmAdapter().build(ModelRequest(name="x", card=card), torch.device("cpu"))
    assert model.preprocessing.description["input_size"] == (3, 160, 160)
    assert {"mean", "std", "interpolation", "crop_pct", "crop_mode"} <= set(model.preprocessing.description)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("size", [(451, 300), (97, 331), (64, 50), (301, 299)], ids=str)
def test_a_planted_point_comes_back_to_its_place(name: str, size: tuple[int, int]) -> None:
    preprocessing = _preprocessing(network(), dict(CONFIGS[name]))
    left, top, right, bottom = preprocessing(photo(size))[1].box()
    left, top, right, bottom = max(left, 0), max(top, 0), min(right, size[0]), min(bottom, size[1])
    reach = max(2, min(size) // 25)
    for share_x, share_y in [(0.5, 0.5), (0.35, 0.65), (0.68, 0.32)]:
        x, y = int(left + (right - left) * share_x), int(top + (bottom - top) * share_y)
        rows, columns = np.mgrid[: size[1], : size[0]]
        dot = np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * reach**2))
        image = Image.fromarray(np.dstack([np.rint(dot * 255).astype(np.uint8)] * 3))
        inputs, geometry = preprocessing(image)
        back = geometry.to_original(preprocessing.denormalise(inputs).mean(0)).nan_to_num(0).clamp(min=0).numpy()
        bright = np.where(back > 0.5, back, 0)
        found = (bright * columns).sum() / bright.sum(), (bright * rows).sum() / bright.sum()
        assert abs(found[0] - x) <= 1
        assert abs(found[1] - y) <= 1


@pytest.mark.parametrize("name", ["center", "center_whole", "squash", "squash_cropped", "border", "border_whole"])
@pytest.mark.parametrize("size", [(451, 300), (97, 331), (301, 299)], ids=str)
def test_a_ramp_comes_back_as_the_same_ramp(name: str, size: tuple[int, int]) -> None:
    across = np.broadcast_to(np.linspace(20, 235, size[0]), (size[1], size[0]))
    down = np.broadcast_to(np.linspace(20, 235, size[1])[:, None], (size[1], size[0]))
    image = Image.fromarray(np.rint(np.dstack([across, down, across])).astype(np.uint8))
    preprocessing = _preprocessing(network(), dict(CONFIGS[name]))
    inputs, geometry = preprocessing(image)
    seen = preprocessing.denormalise(inputs) * 255
    inner = (slice(4, -4), slice(4, -4))  # interpolation reads beyond the edge
    for channel, ramp, side in ((0, across, size[0]), (1, down, size[1])):
        error = (geometry.to_original(seen[channel]) - torch.tensor(ramp.copy()))[inner].abs()
        known = error[~error.isnan()]
        assert len(known) > 0.2 * error.numel()
        margin = 2 if name.startswith(("border", "squash")) else 3
        assert known.quantile(0.99) <= 215 / side + margin  # one pixel's step, and rounding


def test_pixels_that_the_model_never_saw_are_nan() -> None:
    geometry = Geometry(original=(400, 200), scaled=(200, 100), offset=(50, 0), crop=(100, 100))
    back = geometry.to_original(torch.ones(100, 100))
    assert back.shape == (200, 400)
    assert back[:, :100].isnan().all()
    assert back[:, 300:].isnan().all()
    assert (back[:, 100:300] == 1).all()
    assert geometry.box() == (100.0, 0.0, 300.0, 200.0)


def test_padding_lies_outside_the_image() -> None:
    geometry = Geometry(original=(200, 100), scaled=(100, 50), offset=(0, -25), crop=(100, 100))
    assert geometry.box() == (0.0, -50.0, 200.0, 150.0)
    heatmap = torch.zeros(100, 100)
    heatmap[25:75] = 1
    back = geometry.to_original(heatmap)
    assert not back.isnan().any()
    assert (back[2:-2] == 1).all()


def test_a_coarse_map_is_scaled_like_a_fine_one() -> None:
    geometry = Geometry(original=(90, 60), scaled=(96, 64), offset=(16, 0), crop=(64, 64))
    coarse = geometry.to_original(torch.arange(4.0).expand(4, 4))
    fine = geometry.to_original(((torch.arange(64) + 0.5) / 16 - 0.5).expand(64, 64))
    inside = ~fine.isnan() & (fine > 0.1) & (fine < 2.9)
    assert torch.allclose(coarse[inside], fine[inside], atol=1e-4)


def test_normalising_can_be_undone() -> None:
    preprocessing = Preprocessing(spatial=[], size=(3, 4, 4), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    pixels = torch.rand(2, 3, 4, 4)
    assert torch.allclose(preprocessing.denormalise(preprocessing.normalise(pixels)), pixels, atol=1e-6)
    assert torch.allclose(preprocessing.normalise(pixels)[:, 1], (pixels[:, 1] - 0.2) / 0.6)


@pytest.mark.parametrize("sized", ["", "input: {size: 96}\n", "input: {size: [64, 96], mean: [0.5], std: [0.25]}\n"])
def test_a_network_that_was_built_for_one_channel_sees_grey_images(tmp_path: Path, sized: str) -> None:
    card = tmp_path / "grey.yaml"
    network = "name: grey\nadapter: timm\narchitecture: test_resnet\nweights: {source: none}\noptions: {in_chans: 1}\n"
    card.write_text(network + sized)
    model = Hub().load_model(str(card))
    inputs, _ = model.prepare(Image.new("RGB", (50, 40), (255, 0, 0)))
    assert inputs.shape == model.input_size
    assert inputs.shape[0] == len(model.preprocessing.mean) == len(model.preprocessing.std) == 1
    assert float(model.preprocessing.denormalise(inputs)[0, 20, 20]) == pytest.approx(76 / 255, abs=1e-3)
    assert model.predict(inputs[None]).shape[0] == 1


def test_a_network_of_other_channels_needs_a_mean_and_std(tmp_path: Path) -> None:
    card = tmp_path / "many.yaml"
    card.write_text(
        "name: many\nadapter: timm\narchitecture: test_resnet\nweights: {source: none}\noptions: {in_chans: 5}\n"
    )
    with pytest.raises(ModelError, match="takes 5 channels, for which nothing declares mean and std"):
        Hub().load_model(str(card))
